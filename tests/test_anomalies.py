"""Anomaly maps: closed forms of their scores, thresholds from healthy people, and the verb from end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_run import one_line
from torch import Tensor

from data_modules import FolderDataModule, OneSlice, Preprocessing
from lit_medgen.__main__ import main
from lit_medgen.anomalies import able
from lit_medgen.batch import Condition, DataSpec, Request, Requests
from lit_medgen.diffusion import Resynthesis
from lit_medgen.errors import InputError
from lit_medgen.evaluation.anomalies import Mapped, Mapping, lesion_classes, prevalence, scores_of, threshold_of
from lit_medgen.evaluation.anomaly_page import examples
from lit_medgen.methods import DDPM, VDM
from lit_medgen.networks import UNet


def mapped(person: str, lesion: Tensor | None, values: Tensor, image: Tensor | None = None) -> Mapped:
    shown = torch.zeros(1, *values.shape) if image is None else image
    return Mapped(f"key of {person}", person, shown, shown, values, lesion, None)


def marks(*voxels: int) -> Tensor:
    found = torch.zeros(4, 5, dtype=torch.bool)
    found.view(-1)[list(voxels)] = True
    return found


def test_a_map_that_is_the_marks_has_perfect_scores_and_a_constant_one_those_of_chance() -> None:
    ill = [mapped(f"p{k}", marks(k, k + 1), marks(k, k + 1).float()) for k in range(4)]
    well = [mapped(f"h{k}", marks(), torch.zeros(4, 5)) for k in range(3)]
    perfect = scores_of([*ill, *well], lambda one: one.map, well, 0.05)["scores"]
    assert {name: row["value"] for name, row in perfect.items()} == {
        "auroc": 1.0,
        "average_precision": 1.0,
        "dice": 1.0,
        "false_positives": 0.0,
    }
    assert (perfect["auroc"]["num_people"], perfect["false_positives"]["num_people"]) == (4, 3)
    chance = scores_of([*ill, *well], lambda one: torch.ones(4, 5), well, 0.05)["scores"]
    assert chance["auroc"]["value"] == 0.5
    assert chance["average_precision"]["value"] == pytest.approx(prevalence(ill)) == pytest.approx(0.1)


def test_the_threshold_is_that_of_healthy_people_over_the_foreground() -> None:
    values = torch.arange(20.0).view(4, 5)
    air = torch.full((1, 4, 5), -1.0)
    air.view(-1)[:10] = 0.0
    healthy = [mapped("a", marks(), values, air)]
    assert threshold_of([values], healthy, 0.1) == pytest.approx(np.quantile(np.arange(10), 0.9))
    marked = mapped("b", marks(19), values, air)
    assert marked.foreground.sum() == 11  # what is marked counts, even in air


class Flat:
    """Data of one image, for requests."""

    def __init__(self, images: Tensor, label_map: Tensor) -> None:
        self.images, self.label_map = images, label_map

    def requests(self) -> Requests:
        def read(index: int) -> Request:
            condition = Condition(label_map=self.label_map[index : index + 1])
            return Request([index], condition, [f"k{index}"], None, self.images[index : index + 1])

        return Requests(range(len(self.images)), [{}] * len(self.images), frozenset({"label_map"}), read)


def untrained() -> DDPM:
    torch.manual_seed(0)
    model = DDPM(UNet(2, channels=(8, 8), attention=(False, True), num_res_blocks=1), parametrisation="v")
    for parameter in model.denoiser.network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    model.take_spec(DataSpec(1, (8, 12), (1.0, 1.0)))
    return model.eval()


def test_maps_depend_on_their_image_alone_and_vanish_where_the_counterpart_is_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 8, 12, generator=generator) * 2 - 1
    label_map = torch.zeros(3, 1, 8, 12, dtype=torch.int64)
    label_map[0, 0, 2:4, 3:6] = 1
    label_map[2] = -1
    model, data = untrained(), Flat(images, label_map)
    people = {"k0": "a", "k1": "b", "k2": "c"}

    def maps(batch_size: int = 3, **how: Any) -> list[Mapped]:
        arguments = {"num_steps": 4} | how
        repeats = arguments.pop("repeats", 1)
        mapping = Mapping(Resynthesis(**arguments), {}, repeats, (1,), batch_size)
        return list(mapping.of(model, data.requests(), people))

    for noised in (False, True):
        together, alone = maps(noised=noised, repeats=2), maps(1, noised=noised, repeats=2)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.map, other.map, atol=1e-4, rtol=0)
    found = maps(level=1e-2, num_steps=2)
    assert [one.has_lesion for one in found] == [True, False, False]
    assert found[2].lesion is None
    assert [one.person for one in found] == ["a", "b", "c"]
    assert max(one.map.max().item() for one in found) < 0.02
    noisy = maps(noised=True, repeats=1)
    torch.testing.assert_close(noisy[0].map, (images[0] - noisy[0].counterpart).abs().mean(0), atol=1e-6, rtol=0)
    assert not torch.equal(noisy[0].map, maps(noised=True, repeats=2)[0].map)


def test_which_classes_are_lesions_is_said_or_clear() -> None:
    assert lesion_classes((), None) == ()
    assert lesion_classes(("none", "lesion"), None) == (1,)
    assert lesion_classes(("air", "a", "b"), ["b", "a"]) == (2, 1)
    for names, asked, complaint in (
        ((), ["a"], "no label maps"),
        (("air", "a", "b"), None, "--lesion is missing"),
        (("air", "a"), ["c"], "no class 'c'"),
    ):
        with pytest.raises(InputError, match=complaint):
            lesion_classes(names, asked)


def test_a_figure_shows_one_image_of_each_person_with_lesions_and_some_without() -> None:
    ill = [mapped(f"p{k // 2}", marks(*range(k + 1)), torch.zeros(4, 5)) for k in range(4)]
    well = [mapped(f"h{k}", marks(), torch.zeros(4, 5)) for k in range(5)]
    assert [one.person for one in examples([*ill, *well])] == ["p1", "p0", "h0", "h2"]
    assert int(examples(ill)[0].lesion.sum()) == 4  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantom people, every second with lesions."""
    folder = tmp_path_factory.mktemp("lesions")
    assert main(["phantom", "lesions", "--out", str(folder), "--num_subjects", "8", "--seed", "1"]) == 0
    return folder


def test_phantoms_have_the_lesions_that_their_maps_mark(lesions: Path) -> None:
    rows = list(csv.DictReader((lesions / "participants.tsv").open(), delimiter="\t"))
    assert [row["lesion"] for row in rows] == ["0", "1"] * 4
    for row in rows:
        image, marked = (nib.load(lesions / f"{row['participant_id']}_{name}.nii.gz") for name in ("flair", "lesions"))
        volume_ml = np.abs(np.linalg.det(marked.affine[:3, :3])) / 1000 * (marked.get_fdata() > 0).sum()
        assert volume_ml == pytest.approx(float(row["lesion_ml"]), abs=1e-3)
        assert (volume_ml > 0) == (row["lesion"] == "1")
        assert image.shape == marked.shape
    bright = nib.load(lesions / f"{rows[1]['participant_id']}_flair.nii.gz").get_fdata()
    inside = nib.load(lesions / f"{rows[1]['participant_id']}_lesions.nii.gz").get_fdata() > 0
    assert bright[inside].mean() > 1.3 * bright[bright > 50].mean()


def split_files(lesions: Path) -> dict[str, str]:
    """Lists of people: two to validate, four to test, two to train, half of each with lesions."""
    people = [row["participant_id"] for row in csv.DictReader((lesions / "participants.tsv").open(), delimiter="\t")]
    lists = {"val": people[4:6], "test": people[:4]}
    for name, ids in lists.items():
        (lesions / f"{name}.txt").write_text("\n".join(ids))
    return {name: str(lesions / f"{name}.txt") for name in lists}


def data_of(lesions: Path, store: Path, **arguments: Any) -> FolderDataModule:
    recipe = Preprocessing((16, 16, 16), (192.0, 192.0, 192.0), classes=("none", "lesion"))
    data = FolderDataModule(
        str(lesions),
        "*_flair.nii.gz",
        "participants.tsv",
        attributes=["age", "lesion"],
        beside={"label_map": ("_flair", "_lesions")},
        preprocessing=recipe,
        view=OneSlice(4, 2),
        split_files=split_files(lesions),
        store_dir=str(store),
        num_jobs=1,
        **arguments,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def test_people_of_one_kind_are_trained_on_and_all_are_tested(lesions: Path, tmp_path: Path) -> None:
    everybody = data_of(lesions, tmp_path)
    healthy = data_of(lesions, tmp_path, train_where={"lesion": 0})
    splits: tuple[Any, ...] = ("train", "val")
    for split in splits:
        kinds = [[record.attributes["lesion"] for record in data.records[split]] for data in (everybody, healthy)]
        assert sorted(kinds[0]) == [0, 1]
        assert kinds[1] == [0]
    assert [record.key for record in healthy.records["test"]] == [record.key for record in everybody.records["test"]]
    assert healthy.spec.people == everybody.spec.people  # the same split, of which some are not seen
    assert healthy.order() != everybody.order()
    with pytest.raises(InputError, match=r"train_where: no attribute 'lesions'; the images have 'age', 'lesion'"):
        data_of(lesions, tmp_path, train_where={"lesions": 0})


def test_maps_and_scores_from_the_command_line(
    lesions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = ("configs/ddpm_2d.yaml", "tests/tiny/any.yaml", "tests/tiny/volumes.yaml", "tests/tiny/ddpm_2d.yaml")
    words = [word for name in configs for word in ("--config", name)]
    words += ["--config", "configs/anomalies/flair.yaml", "--config", "tests/tiny/volumes.yaml"]
    words += [
        f"--data.init_args.{key}={value}" for key, value in (("root", lesions), ("store_dir", tmp_path / "store"))
    ]
    words += [f"--data.init_args.split_files.{name}={path}" for name, path in split_files(lesions).items()]
    words += ["--data.init_args.view.init_args.middle=8", "--data.init_args.view.init_args.per_person=8"]
    words += ["--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words]) == 0
    last = next(tmp_path.glob("*/checkpoints/last.ckpt"))
    run = ["anomalies", "--ckpt_path", str(last), "--trainer.accelerator=cpu", "--num_steps=2"]
    out = tmp_path / "out"
    capsys.readouterr()
    assert main([*run, "--out", str(out), "--repeats=2", "--false_positives=0.05"]) == 0
    assert "as private as the scans" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert (report["way"], report["repeats"], report["share"], report["num_people"]) == ("noise", 2, 0.05, 4)
    assert set(report["detectors"]) == {"model", "distance from the mean training image", "brightness"}
    rows = list(csv.DictReader((out / "maps.csv").open()))
    assert len(rows) == report["num"] == len(list((out / "maps").glob("*_counterpart.png")))
    assert any(int(row["lesion_voxels"]) for row in rows)
    image = nib.load(out / "maps" / rows[0]["file"])
    assert image.header["descrip"].item().startswith(b"RECONSTRUCTION")
    assert "AUROC" in (out / "report.md").read_text()
    assert (out / "anomalies.png").is_file()
    for wrong, complaint in (
        ({"--level": "0"}, "--level is 0"),
        ({"--lesion": "tumour"}, "no class 'tumour'"),
        ({"--attributes": '{"lesion": 0}'}, "not made from 'lesion'"),
        ({"--false_positives": "2"}, "--false_positives is 2"),
        ({"--guidance": ".nan"}, "--guidance is nan; give 0 or more"),
        ({"--num": "0", "--out": str(out)}, "--num is 0; give 1 or more"),
    ):
        options = [f"{name}={value}" for name, value in ({"--out": str(tmp_path / "no")} | wrong).items()]
        assert main([*run, *options]) == 2
        assert complaint in one_line(capsys)
    assert (out / "report.json").is_file()


def test_models_without_a_way_back_are_refused() -> None:
    for kind, complaint in ((VDM, "no way from an image to noise"), (DDPM, "makes images from label_map")):
        model = kind.__new__(kind)
        torch.nn.Module.__init__(model)
        object.__setattr__(model, "required", ("label_map",))
        with pytest.raises(InputError, match=complaint):
            able(model)
