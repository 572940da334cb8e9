"""`MedicalDataModule`: bad arguments, and loaders that ranks, workers and interruptions do not change."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.folder import FolderDataModule
from data_modules.recipes.volumes import Preprocessing
from data_modules.records import Record, person_hash
from data_modules.slice_sets import UniformDraw
from data_modules.splits import SPLITS
from data_modules.store import Store
from data_modules.views import OneSlice, View, Volume
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError
from lit_medgen.images import read_image


@pytest.fixture
def heads(cohort: Path, small: Preprocessing, tmp_path: Path) -> FolderDataModule:
    """A prepared cohort with slice sets."""
    module = FolderDataModule(
        str(cohort),
        pattern="sub-0[0-7]/*.nii.gz",
        table="participants.tsv",
        attributes=["age"],
        preprocessing=small,
        view=UniformDraw(4),
        batch_size=2,
        fractions=(0.6, 0.4, 0.0),
        store_dir=str(tmp_path),
        num_jobs=1,
    )
    module.prepare_data()
    module.setup("fit")
    return module


def at(module: FolderDataModule, batches: int = 0, rank: int = 0, ranks: int = 1) -> FolderDataModule:
    """The module inside a trainer whose run has taken some batches."""
    progress = SimpleNamespace(total=SimpleNamespace(completed=batches))
    loop: Any = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=ranks, fit_loop=loop)
    module.trainer = trainer
    return module


def train(module: FolderDataModule, num: int) -> list[Batch]:
    return list(islice(module.train_dataloader(), num))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.key for batch in first] == [batch.key for batch in second]
    for a, b in zip(first, second, strict=True):
        for name in ("image", "affine"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
        for name in ("slice_index", "observed"):
            torch.testing.assert_close(getattr(a.condition, name), getattr(b.condition, name), rtol=0, atol=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (1.0, 1.0, 1.0)])
def test_bad_fractions_are_an_input_error(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match=r"data\.init_args\.fractions is \["):
        FolderDataModule(".", fractions=fractions)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_bad_batch_size_is_an_input_error(batch_size: int) -> None:
    with pytest.raises(InputError, match=rf"data\.init_args\.batch_size is {batch_size}"):
        FolderDataModule(".", batch_size=batch_size)


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        FolderDataModule(".", batchsize=3)


def test_no_training_people_are_an_input_error(heads: FolderDataModule) -> None:
    heads.fractions = (0.0, 0.5, 0.5)
    with pytest.raises(InputError, match=r"fractions \[0.0, 0.5, 0.5\] and seed 0 leave no training people of the 8"):
        heads.setup("fit")


def test_without_a_store_prepare_is_named(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lit_medgen prepare"):
        FolderDataModule(str(cohort), store_dir=str(tmp_path)).setup("fit")


def test_an_empty_split_is_no_error(heads: FolderDataModule) -> None:
    assert list(heads.test_dataloader()) == []
    assert heads.images("test").all().shape == (0, 1, 10, 12, 9)


def test_training_continues_exactly(heads: FolderDataModule) -> None:
    through = train(at(heads), 14)
    state = at(heads, batches=6).state_dict()
    heads.load_state_dict(state)
    assert_equal(train(at(heads, batches=6), 8), through[6:])


def test_the_order_survives_a_change_of_ranks_and_batch_size(heads: FolderDataModule) -> None:
    expected = [key for batch in train(at(heads), 12) for key in batch.key]
    keys: list[str] = []
    taken = 0
    for ranks, batch_size, steps in ((2, 1, 3), (1, 4, 2), (2, 3, 1), (1, 2, 2)):  # 6 + 8 + 6 + 4 samples
        heads.batch_size = batch_size
        each = [train(at(heads, taken, rank, ranks), steps) for rank in range(ranks)]
        keys += [key for step in range(steps) for rank in each for key in rank[step].key]
        taken += steps
        heads.load_state_dict(at(heads, taken, 0, ranks).state_dict())
    assert keys == expected


def test_every_pass_draws_other_slices_of_an_image(heads: FolderDataModule) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {}
    for batch in train(heads, 6 * len(heads.records["train"]) // heads.batch_size):
        assert batch.condition.slice_index is not None
        for key, index in zip(batch.key, batch.condition.slice_index.tolist(), strict=True):
            seen.setdefault(key, set()).add(tuple(index))
    assert min(map(len, seen.values())) > 1


def test_another_seed_is_another_run(heads: FolderDataModule) -> None:
    first = train(heads, 5)
    heads.seed = 1
    assert [batch.key for batch in first] != [batch.key for batch in train(heads, 5)]


def test_workers_do_not_change_the_batches(heads: FolderDataModule) -> None:
    expected = train(heads, 5)
    heads.num_workers = 2
    assert_equal(train(heads, 5), expected)


def test_ranks_share_the_steps_of_one(heads: FolderDataModule) -> None:
    alone = train(at(heads), 6)
    heads.batch_size = 1
    ranks = [train(at(heads, rank=rank, ranks=2), 6) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        assert batch.key == [rank[step].key[0] for rank in ranks]
        torch.testing.assert_close(batch.image, torch.cat([rank[step].image for rank in ranks]))


def test_ranks_share_the_validation_people(heads: FolderDataModule) -> None:
    keys = [[key for batch in at(heads, rank=rank, ranks=3).val_dataloader() for key in batch.key] for rank in range(3)]
    assert sorted(key for rank in keys for key in rank) == sorted(record.key for record in heads.records["val"])
    assert max(map(len, keys)) - min(map(len, keys)) <= 1


@pytest.mark.parametrize("view", [Volume(), OneSlice(middle=1, per_person=1)])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_files_of_another_folder_are_brought_to_the_grid_as_those_of_the_data(
    heads: FolderDataModule, tmp_path: Path, view: View[Any], axis: Any
) -> None:
    """Else the training images themselves, as raw files among samples, are no copies to an audit."""
    module = FolderDataModule(
        str(heads.root),
        pattern="sub-0[0-7]/*.nii.gz",
        preprocessing=heads.preprocessing,
        axis=axis,
        view=view,
        store_dir=str(tmp_path / "own"),
        num_jobs=1,
    )
    module.prepare_data()
    module.setup("fit")
    known = {image.numpy().tobytes() for split in SPLITS for image in module.images(split).all()[:, 0].half()}
    brought = [module.brought(*read_image(path)) for path in sorted(heads.root.glob("sub-0[0-7]/*.nii.gz"))]
    assert {image.astype("float16").tobytes() for image in brought if image is not None} == known
    assert module.brought(np.zeros((9, 9)), np.eye(3)) is None  # a single slice has no place in a volume


def test_spec_survives_a_checkpoint(heads: FolderDataModule) -> None:
    assert type(heads.spec).from_plain(heads.spec.plain()) == heads.spec


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_single_slices_are_upright_images(heads: FolderDataModule, axis: Any, tmp_path: Path) -> None:
    """Up in the head is up in the image: the second axis of a 2D image goes down."""
    module = FolderDataModule(
        str(heads.root),
        pattern="sub-0[0-7]/*.nii.gz",
        preprocessing=heads.preprocessing,
        axis=axis,
        view=OneSlice(3, per_person=2),
        batch_size=2,
        fractions=(0.6, 0.4, 0.0),
        store_dir=str(tmp_path / "slices"),
        num_jobs=1,
    )
    module.prepare_data()
    module.setup("fit")
    place = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    plane = [side for i, side in enumerate(heads.preprocessing.size) if i != place]
    assert module.spec.size == tuple(plane)
    assert module.spec.slice_axis == ""
    (batch, *_) = train(module, 1)
    assert batch.image.shape == (2, 1, *plane)
    assert batch.condition.slice_index is not None
    volumes = {record.key: module.store.read(record) for record in module.store.records}
    for image, key, index in zip(batch.image, batch.key, batch.condition.slice_index[:, 0].tolist(), strict=True):
        expected = torch.from_numpy(volumes[key].take(index, axis=place).copy()).flip(1)
        torch.testing.assert_close(image[0], expected)
    evaluated = module.images("val", one_per_person=True).all()
    people = len({record.person for record in module.records["val"]})
    assert len(evaluated) == 2 * people
    first = module.records["val"][0]
    indices = OneSlice(3, per_person=2).evaluated_of(heads.preprocessing.size[place])
    for image, index in zip(evaluated[:2, 0], indices, strict=True):
        expected = torch.from_numpy(volumes[first.key].take(index, axis=place).copy()).flip(1)
        torch.testing.assert_close(image, expected)


def test_more_middle_slices_than_there_are_is_one_line(heads: FolderDataModule) -> None:
    heads.view = OneSlice(1000)
    with pytest.raises(InputError, match="middle is 1000, but there are"):
        heads.setup("fit")


def test_evaluation_loaders_pin_and_persist_as_that_of_training(
    heads: FolderDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads.num_workers = 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for loader in (at(heads).train_dataloader(), heads.val_dataloader(), heads.test_dataloader()):
        assert loader.persistent_workers
        assert loader.pin_memory


def test_evaluation_can_stop_early_and_start_again_with_the_same_workers(heads: FolderDataModule) -> None:
    heads.num_workers, heads.batch_size = 1, 1
    loader = at(heads).val_dataloader()
    first = next(iter(loader))
    again = list(loader)
    assert again[0].key == first.key
    assert len(again) == len(heads.records["val"])


def test_images_are_read_when_they_are_needed(heads: FolderDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Store.read

    def noted(store: Store, record: Record, *rest: Any, **options: Any) -> Any:
        read.append(record.key)
        return whole(store, record, *rest, **options)

    monkeypatch.setattr(Store, "read", noted)
    images = heads.images("train", limit=3)
    assert read == []
    assert images.keys == list(heads.people("train"))[:3]
    assert images.people == list(heads.people("train").values())[:3]
    torch.testing.assert_close(images.read([2, 0]), images.all()[[2, 0]])
    assert read == [images.keys[index] for index in (2, 0, 0, 1, 2)]


def test_requests_are_made_from_what_people_are_made_from(heads: FolderDataModule) -> None:
    first = heads.images("train", one_per_person=True)
    requests = heads.requests("train", 2 * len(first) + 1)
    assert list(requests.seeds) == list(range(2 * len(first) + 1))
    every = list(requests.batches(4))
    assert [key for request in every for key in request.key] == (first.keys * 3)[: len(requests)]
    assert torch.equal(
        torch.cat([request.target for request in every]), first.all().repeat(3, 1, 1, 1, 1)[: len(requests)]
    )  # type: ignore[misc]
    records = {record.key: record for record in heads.records["train"]}
    for made_from, request in zip(requests.made_from, map(requests.read, range(len(requests))), strict=True):
        record = records[made_from["key"]]
        known = {name: value for name, value in record.attributes.items() if value == value}
        assert made_from == {"key": record.key} | known
        assert torch.equal(request.condition.source, request.target)  # type: ignore[arg-type]
        assert request.affine is not None
        torch.testing.assert_close(request.affine[0].numpy(), record.affine)
        assert {name: value.item() for name, value in request.condition.attributes.items() if name in known} == known
    assert len(heads.requests("train")) == len(first)


def test_digest_follows_data_and_view(heads: FolderDataModule) -> None:
    before = heads.digest
    heads.view = UniformDraw(5)
    assert heads.digest != before
    heads.view = UniformDraw(4)
    assert heads.digest == before
    heads.store.digest = "another"
    assert heads.digest != before


def again(module: FolderDataModule, **options: Any) -> FolderDataModule:
    """The module with options of its own, set up."""
    for name, value in options.items():
        setattr(module, name, value)
    module.setup("validate")
    return module


def test_who_is_excluded_is_gone_and_nobody_else_moves(
    heads: FolderDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {split: heads.people(split) for split in SPLITS}
    digest = heads.digest
    gone = {person_hash("sub-01"), person_hash("sub-05")}
    listed = tmp_path / "withdrawn.txt"
    listed.write_text("sub-01\n\n sub-05 \nsub-99\n")
    heads.exclude = str(listed)
    capsys.readouterr()
    heads.prepare_data()
    printed = capsys.readouterr().out
    assert "removed from" in printed
    assert "left out: 4 images of 2 people, of 3 who are listed\n" in printed
    again(heads)
    for split in SPLITS:
        kept = {key: person for key, person in before[split].items() if person not in gone}
        assert heads.people(split) == kept
    assert sum(map(len, before.values())) - sum(len(heads.people(split)) for split in SPLITS) == 4
    assert heads.digest != digest
    listed.write_text("1000223\n")
    heads.prepare_data()
    assert "none of the ids is one of this data set" in capsys.readouterr().out
    assert again(heads).people("train") == before["train"]
    assert heads.digest == digest
    listed.unlink()
    with pytest.raises(InputError, match=r"data\.init_args\.exclude: .*withdrawn\.txt cannot be read"):
        again(heads)


def test_a_balanced_run_sees_every_value_as_often_and_goes_on_where_it_stopped(heads: FolderDataModule) -> None:
    ages = [record.attributes["age"] for record in heads.records["train"]]
    lone = ages.index(max(ages))
    for k, record in enumerate(heads.records["train"]):  # one of a kind among all others
        record.attributes["age"] = float(k == lone)
    heads.balance = "age"
    num = len(ages)
    found = [batch.condition.attributes["age"] for batch in train(at(heads), num // 2)]
    assert abs(float(torch.cat(found).sum()) - num / 2) <= 1
    through = train(at(heads), 14)
    heads.load_state_dict(at(heads, batches=6).state_dict())
    assert_equal(train(at(heads, batches=6), 8), through[6:])


def test_what_cannot_be_balanced_is_named(heads: FolderDataModule) -> None:
    heads.balance = "sex"
    with pytest.raises(InputError, match=r"data\.init_args\.balance is 'sex'; attributes of this data set: age"):
        train(heads, 1)
    heads.records["train"] *= 9
    heads.records["train"] = [replace(r, attributes={"age": float(k)}) for k, r in enumerate(heads.records["train"])]
    heads.balance = "age"
    unknown = [replace(record, attributes={"age": float("nan")}) for record in heads.records["train"]]
    assert heads.weights([*heads.records["train"][:2], *unknown]) is not None
    with pytest.raises(InputError, match=r"balance is 'age', which has \d+ values; give an attribute of at most 50"):
        train(heads, 1)
