"""People who are left out: lists of ids, and that nothing of them is left in any file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ukbiobank import EIDS, T1, module, write_ukbiobank, write_zip

from data_modules import archives
from data_modules.records import person_hash
from data_modules.splits import SPLITS
from data_modules.store import Store
from data_modules.withdrawals import LeftOut, read_ids
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import write_nifti
from lit_medgen.people import BITS, sum_of, who_left
from lit_medgen.training.frozen import refuse_other_people

GONE = EIDS[2]
SIGN = 0.33349609375
"""A value of the canary's prepared voxels, as float16, that nobody else has many of."""


# Lists.


def test_a_list_is_read_as_uk_biobank_sends_it(tmp_path: Path) -> None:
    path = tmp_path / "w12345.csv"
    path.write_bytes(
        b'\xef\xbb\xbfeid\r\n1000223\r\n"1000224"\r\n\r\n 1000225 \r\n1000226.0\r\n-7\r\n0\r\nredacted\r\n'
    )
    assert read_ids(path, "key", numbers=True) == {"1000223", "1000224", "1000225", "1000226"}
    path.write_text("")
    assert read_ids(path, "key", numbers=True) == set()


@pytest.mark.parametrize("line", ["abc", "1000223,1000224", "1e6", "10 00", "1000223_20252", "=1+1", "1" * 16])
def test_a_bad_line_is_refused_by_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"1000223\n{line}\n")
    with pytest.raises(
        InputError, match=r"data\.init_args\.withdrawals: .*list\.txt: line 2: no id of a person"
    ) as error:
        read_ids(path, "data.init_args.withdrawals", numbers=True)
    assert line not in str(error.value).partition("line 2")[2]
    assert "1000223" not in str(error.value)


def test_without_a_list_nothing_is_done(tmp_path: Path) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 4)
    with pytest.raises(InputError, match=r"data\.init_args\.withdrawals is missing; give the newest list"):
        module(root, tmp_path, withdrawals=None)
    absent = module(root, tmp_path / "store", withdrawals=str(tmp_path / "absent.txt"))
    for step in (absent.prepare_data, lambda: absent.setup("fit")):
        with pytest.raises(InputError, match=r"data\.init_args\.withdrawals: .*absent\.txt cannot be read"):
            step()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "text", ["1000223", "a/1000223_20252_2_0.zip", "t.csv: 1000223", "/x/1000223/y", "1000223.nii"]
)
def test_an_id_is_found_in_names_as_a_whole(text: str) -> None:
    left_out = LeftOut(frozenset({"1000223", "sub-01"}))
    assert left_out.named_in(text)
    assert not left_out.named_in(text.replace("1000223", "11000223"))
    assert not left_out.named_in(text.replace("1000223", "10002234"))


# Sums.


def test_who_left_is_found_and_nothing_else_passes() -> None:
    people = [person_hash(str(k)) for k in range(300)]
    listed = [*people[:40], *(person_hash(f"elsewhere {k}") for k in range(200))]
    before = sum_of(people)
    assert who_left(before, sum_of(people[7:]), listed) == sorted(people[:7])
    assert who_left(before, before, listed) == []
    assert who_left(before, sum_of(people[7:-1]), listed) is None  # one is gone who is not on the list
    assert who_left(before, sum_of([*people[7:], "new"]), listed) is None
    assert who_left(sum_of(people[7:]), before, people[7:]) is None  # a list that has become shorter
    assert who_left("", before, listed) is None
    assert who_left(before, sum_of(people[7:]), [*listed, *map(str, range(BITS))]) is None
    assert sum_of(people[::-1] + people) == before


def specs(data: Any) -> tuple[DataSpec, DataSpec]:
    """That of a set-up module, and as a checkpoint keeps it."""
    return data.spec, DataSpec.from_plain(data.spec.plain())


def test_a_longer_list_is_told_and_another_split_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 12)
    data = module(root, tmp_path / "store")
    data.prepare_data()
    data.setup("fit")
    before = {split: set(data.people(split).values()) for split in SPLITS}
    now, kept = specs(data)
    assert kept == now
    assert kept.left_out == ""
    refuse_other_people(kept, now, "the same")
    (root / "withdrawals.txt").write_text(f"{GONE}\n{EIDS[5]}\n9999999\n")
    data.prepare_data()
    data.setup("fit")
    later = data.spec
    assert later.left_out != ""
    leaving = {person_hash(GONE), person_hash(EIDS[5])}
    assert {split: set(data.people(split).values()) for split in SPLITS} == {
        split: people - leaving for split, people in before.items()
    }
    capsys.readouterr()
    refuse_other_people(kept, later, "--ckpt_path runs/x/last.ckpt")
    refuse_other_people(kept, later, "runs/x/last.ckpt")  # is told once
    line = capsys.readouterr().err
    train = len(before["train"] & leaving)
    assert line.count("runs/x/last.ckpt: trained when people were there who are left out now") == 1
    assert f"{train} train" in line or train == 0
    with pytest.raises(InputError, match="may only have grown"):
        refuse_other_people(DataSpec.from_plain(later.plain()), now, "a shorter list")
    data.seed = 1
    data.setup("fit")
    with pytest.raises(InputError, match="trained on another split of people"):
        refuse_other_people(kept, data.spec, "another seed")
    assert GONE not in str(kept.plain())
    assert person_hash(GONE) not in str(later.plain())


# Nothing is left (RELIABILITY R12).


def layers(content: bytes) -> Iterator[bytes]:
    """A file's bytes, and those of what is packed inside."""
    yield content
    if content.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from layers(archive.read(name))


def holding(sign: bytes, *places: Path) -> list[str]:
    """Names of files that hold these bytes in their name or content."""
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return [
        path.name
        for path in files
        if sign in str(path).encode() or any(sign in layer for layer in layers(path.read_bytes()))
    ]


def write_canary(root: Path) -> bytes:
    """Gives one person a brain of one value; the bytes that nobody else's voxels have in the store."""
    voxels = np.zeros((20, 24, 18), np.float32)
    voxels[3:17, 3:21, 3:15] = 1000
    voxels[6:14, 6:18, 5:13] = 1000 * (1 + SIGN) / 2
    path = root / "canary.nii.gz"
    write_nifti(path, voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    write_zip(root / f"{GONE}_20252_2_0.zip", {T1: path.read_bytes()})
    path.unlink()
    return np.full(3, SIGN, np.float16).tobytes()


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, bytes]:
    root = write_ukbiobank(tmp_path / "bulk", 8)
    return root, write_canary(root)


def derived(data: Any) -> None:
    """What is kept beside the volumes: figures, latents, a folder of memory-mapped ones, features."""
    (data.cache / "figures").mkdir(exist_ok=True)
    for record in data.store.records:
        (data.cache / "figures" / f"{record.key}.png").write_bytes(data.store.read(record).astype(np.float16).tobytes())
    for name in ("latents/latents-1.npz", "latents/deep/latents-2.npy", "features/features-3.pt"):
        path = data.cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images = np.stack([data.store.read(record) for record in data.store.records]).astype(np.float16)
        if path.suffix == ".npz":
            np.savez(path, latents=images, keys=np.array([record.key for record in data.store.records]))
        else:
            path.write_bytes(images.tobytes())


@pytest.mark.parametrize(("step", "argument"), [("prepare", "withdrawals"), ("setup", "exclude")])
def test_nothing_of_a_person_is_left(step: str, argument: str, cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    (root, sign), store, listed = cohort, tmp_path / "store", tmp_path / "list.txt"
    listed.write_text("")
    stores = [
        module(root, store, **{argument: str(listed)}),
        module(root, store, axis="coronal", **{argument: str(listed)}),  # another recipe
        module(root, store, table="ukb.csv", **{argument: str(listed)}),  # the same volumes by hard links
    ]
    for data in stores:
        data.prepare_data()
        data.setup("fit")
        derived(data)
    key = next(record.key for record in stores[0].store.records if record.person == person_hash(GONE))
    assert len(holding(sign, store)) >= 8
    assert len(holding(key.encode(), store)) >= 8
    gone = {record.key for data in stores for record in data.store.records if record.person == person_hash(GONE)}
    others = {path: path.stat().st_mtime_ns for path in store.rglob("volumes/*") if path.name[:16] not in gone}
    listed.write_text(f"{GONE}\n")
    changed = module(root, store, **{argument: str(listed)})
    if step == "prepare":
        changed.prepare_data()
    changed.setup("fit")
    for mark in (sign, GONE.encode(), person_hash(GONE).encode(), *map(str.encode, gone)):
        assert holding(mark, store) == []
    assert not list(store.rglob("latents*"))
    assert {path: path.stat().st_mtime_ns for path in store.rglob("volumes/*") if path in others} == others
    assert len(changed.store.records) == 8
    for data in stores:
        data.setup("fit")
        assert len(data.store.records) == 8
        for record in data.store.records:
            data.store.read(record)


def test_a_list_without_anybody_here_touches_nothing(cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    root, _ = cohort
    data = module(root, tmp_path / "store")
    data.prepare_data()
    data.setup("fit")
    derived(data)
    digest = data.digest
    before = {path: path.stat().st_mtime_ns for path in data.cache.rglob("*") if path.is_file()}
    (root / "withdrawals.txt").write_text("9999999\n")
    data.prepare_data()
    data.setup("fit")
    after = {path: path.stat().st_mtime_ns for path in data.cache.rglob("*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} == {data.cache / "left_out.json"}
    assert data.digest == digest
    with pytest.MonkeyPatch.context() as patch:  # and what is clean is not looked through again
        patch.setattr("data_modules.withdrawals.drop_people", lambda *_, **__: pytest.fail("again"))
        data.setup("fit")


def test_what_a_killed_preparation_left_goes_too(cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    (root, sign), store = cohort, tmp_path / "store"
    data = module(root, store)
    data.prepare_data()
    kept = sorted(path.name for path in data.address.folder.glob("volumes/*.npy"))
    for name in ("manifest.csv", "facts.npz", "keys.json"):
        (data.address.folder / name).unlink()
    (data.address.folder / "volumes" / "0123456789abcdef.npy").write_bytes(sign)  # without facts: anybody's
    (root / "withdrawals.txt").write_text(GONE)
    data.prepare_data()
    assert holding(sign, store) == []
    assert len(set(kept) - {path.name for path in data.address.folder.glob("volumes/*.npy")}) == 1


def test_a_damaged_store_is_cleaned_and_prepared_again(cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    (root, sign), store = cohort, tmp_path / "store"
    data = module(root, store)
    data.prepare_data()
    (data.address.folder / "facts.npz").write_bytes(b"damaged")
    (root / "withdrawals.txt").write_text(GONE)
    data.prepare_data()
    data.setup("fit")
    assert holding(sign, store) == []
    assert len(Store(data.address).records) == 8


def test_nothing_of_a_person_is_read(
    cohort: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = cohort
    (root / "withdrawals.txt").write_text(GONE)
    read: list[str] = []
    whole = archives.chunks
    monkeypatch.setattr(archives, "chunks", lambda path, member: read.append(path.name) or whole(path, member))
    module(root, tmp_path / "store").prepare_data()
    assert len(set(read)) == 8
    assert not any(GONE in name for name in read)


def test_a_person_who_is_back_is_prepared_again(cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    root, _ = cohort
    data = module(root, tmp_path / "store")
    data.prepare_data()
    data.setup("fit")
    digest = data.digest
    for text, num in ((GONE, 8), ("", 9)):
        (root / "withdrawals.txt").write_text(text)
        data.prepare_data()
        data.setup("fit")
        assert len(data.store.records) == num
    assert data.digest == digest


def test_everybody_on_the_list_is_one_line(cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    root, _ = cohort
    (root / "withdrawals.txt").write_text("\n".join(EIDS))
    with pytest.raises(InputError, match="all people") as error:
        module(root, tmp_path / "store").prepare_data()
    assert not any(eid in str(error.value) for eid in EIDS)


def test_requests_are_of_those_who_are_left(cohort: tuple[Path, bytes], tmp_path: Path) -> None:
    root, _ = cohort
    (root / "withdrawals.txt").write_text(GONE)
    data = module(root, tmp_path / "store", fractions=(0.5, 0.0, 0.5))
    data.prepare_data()
    data.setup("test")
    for split in ("train", "test"):
        requests = data.requests(split)
        for index in range(len(requests)):
            target = requests.read(index).target
            assert target is not None
            assert not torch.isclose(target, torch.tensor(SIGN), atol=1e-4).sum() > 20
