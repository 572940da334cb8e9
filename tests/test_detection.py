"""Laws of `detect`: detectors, near and far sets, and the verb from end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_run import TinyRun, group_of, one_line
from torch import Tensor

from benchmarks.mean_detection import rows_of, separations
from lit_medgen.batch import DataSpec, Images
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.evaluation.detection import ImageSet, image_sets, measured, refuse_unable, rounded
from lit_medgen.evaluation.detectors import (
    Scale,
    cumulated,
    false_positives,
    histogram_distance,
    png_bits,
    separation,
    surprise,
    untypical,
    without_itself,
)
from lit_medgen.evaluation.far_sets import fitted, images_of_folder
from lit_medgen.evaluation.near_sets import near_transforms, transformed
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.png import write_png
from lit_medgen.methods import (
    CDPM,
    DDPM,
    LDM,
    LSDM,
    VDM,
    VQGAN,
    WGAN,
    AutoencoderKL,
    Autoregressive,
    ControlNet,
    Upscaler,
)

SPEC = DataSpec(1, (16, 12), (1.0, 1.0))


def grey(num: int = 6, size: tuple[int, ...] = (16, 12), seed: int = 0) -> Tensor:
    return torch.rand(num, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Detectors.


def test_areas_are_those_of_scikit_learn_and_no_area_is_turned_around() -> None:
    random = torch.Generator().manual_seed(0)
    inside, outside = (torch.randn(n, dtype=torch.float64, generator=random).round(decimals=1) for n in (40, 30))
    labels = [0] * 40 + [1] * 30
    for shift in (-1.0, 0.0, 1.0):
        found = separation(inside, outside + shift, [""] * 40, [""] * 30)
        assert found.auc.value == pytest.approx(roc_auc_score(labels, [*inside, *(outside + shift)]))
    assert separation(inside, outside - 9, [""] * 40, [""] * 30).auc.value == 0
    people = [str(i) for i in range(40)]
    same = separation(inside, inside, people, people)
    assert same.auc.value == 0.5
    assert same.auc.ci95[0] <= 0.5 <= same.auc.ci95[1]


def test_false_positives_are_counted_where_95_percent_are_found() -> None:
    outside = torch.arange(100.0)  # 95 of them are 5 and more
    assert false_positives(torch.tensor([4.9, 5.0, 7.0, 200.0]), outside) == 0.75
    assert false_positives(torch.tensor([0.0]), outside, recall=1.0) == 1
    assert false_positives(outside - 1000, outside) == 0


def test_z_scores_have_mean_0_and_standard_deviation_1_on_validation_people() -> None:
    raw = {name: 3 + 2 * grey(50, (1,), seed)[:, 0, 0].double() for seed, name in enumerate("ab")}
    scales = {name: Scale.of(values) for name, values in raw.items()}
    for name, values in raw.items():
        z = surprise({name: values}, scales)
        assert z.mean().item() == pytest.approx(0, abs=1e-12)
        assert z.std(correction=0).item() == pytest.approx(1)
        torch.testing.assert_close(untypical({name: values}, scales), z.abs())
    torch.testing.assert_close(
        surprise(raw, scales), (surprise({"a": raw["a"]}, scales) + surprise({"b": raw["b"]}, scales)) / 2
    )
    assert Scale.of(torch.ones(3)).z(torch.ones(3)).tolist() == [0, 0, 0]


def test_histogram_distance_is_the_shift_of_grey_values_and_blind_to_their_place() -> None:
    images = (torch.arange(12 * 16).view(1, 1, 16, 12) % 100) / 127.5 - 1
    shares = cumulated(torch.cat([images, images + 20 / 127.5, images.flip(2)]))
    distances = histogram_distance(shares, shares[0])
    torch.testing.assert_close(distances, torch.tensor([0, 20 / 255, 0], dtype=torch.float64))
    torch.testing.assert_close(without_itself(shares)[0], shares[1:].mean(0))


def test_a_flat_image_needs_fewer_bits_than_a_noisy_one() -> None:
    flat, noisy = png_bits(torch.cat([torch.zeros(1, 1, 32, 32, 4), grey(1, (32, 32, 4))]))
    assert flat < 0.5
    assert 7.5 < noisy < 9


# Sets.


@pytest.mark.parametrize("size", [(16, 12), (16, 8, 12)])
def test_near_sets_are_functions_of_image_and_seed(size: tuple[int, ...]) -> None:
    images = Images.of(grey(6, size), list("aabbcc"))
    for name, transform in near_transforms(len(size)).items():
        found = transformed(images, name, transform)
        assert found.people == images.people
        together = found.all()
        assert together.shape == images.all().shape
        assert together.abs().max() <= 1
        assert not torch.equal(together, images.all())
        torch.testing.assert_close(torch.cat([found.read([5, 2]), found.read([0])]), together[[5, 2, 0]])


def test_what_near_sets_do() -> None:
    images, seeds = grey(4, (16, 8, 24)), [3, 1, 4, 5]
    of = {name: transform(images, seeds) for name, transform in near_transforms(3).items()}
    for name in ("flip_x", "flip_y", "flip_z", "inverted"):  # they are their own inverses
        torch.testing.assert_close(near_transforms(3)[name](of[name], seeds), images)
    assert of["crop"].ne(images).sum(dim=(1, 2, 3, 4)).tolist() == [16 * 8 * 24 - 12 * 6 * 18] * 4
    gone = (of["missing_slices"] != images).flatten(1, 3).any(1)  # image, slice
    assert gone.sum(1).tolist() == [3] * 4
    assert not gone[:, :6].any()
    assert not gone[:, 18:].any()
    assert of["noise"].sub(images).std().item() == pytest.approx(0.1, rel=0.1)
    assert (of["gamma"] >= images - 1e-6).all()
    torch.testing.assert_close(of["blur"].mean(dim=(1, 2, 3, 4)), images.mean(dim=(1, 2, 3, 4)))
    assert of["blur"].std() < images.std() / 2


def test_images_of_8_bits_stay_as_they_are_and_others_become_such() -> None:
    levels = torch.arange(256).view(1, 1, 16, 16).float() / 255 * 2 - 1
    assert torch.equal(rounded(Images.of(levels)).all(), levels)
    assert len(rounded(Images.of(grey(1))).all().unique()) <= 256
    torch.testing.assert_close(rounded(Images.of(grey(1))).all(), grey(1), atol=1 / 255, rtol=0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_an_image_is_fitted_with_its_sides_in_their_true_ratio(spacing: tuple[float, float]) -> None:
    mm = (64.0, 24.0)
    image = torch.full([round(side / each) for side, each in zip(mm, spacing, strict=True)], 0.5)
    found = fitted(image, spacing, SPEC)
    inside = found > 0
    assert found.shape == SPEC.size
    assert (int(inside.any(1).sum()), int(inside.any(0).sum())) == (16, 6)
    assert torch.equal(found, found.flip(0, 1))


def by_size(voxels: np.ndarray, affine: np.ndarray) -> None:
    """The way of data that has none of its own."""


def test_files_of_any_kind_come_to_the_grid(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 32)[:, None] * np.ones((32, 24))
    write_png(tmp_path / "a.png", ramp)
    (tmp_path / "patient").mkdir()
    volume = 1000 * ramp[..., None] * (np.arange(5) == 2)  # only the middle slice shows something
    for name in ("b.nii.gz", "c.nii"):
        write_nifti(tmp_path / "patient" / name, volume.astype(np.float32), np.diag([2.0, 2, 2, 1]))
    found = images_of_folder("far", tmp_path, SPEC, by_size)
    assert found.people == ["", "far patient", "far patient"]
    assert not any("patient" in key or key == "a" for key in found.keys)
    images = found.all()
    assert images.shape == (3, 1, 16, 12)
    torch.testing.assert_close(images[0], images[1], atol=0.05, rtol=0)
    assert (images[0].diff(dim=1) > 0).all()
    assert len(images_of_folder("far", tmp_path, SPEC, by_size, limit=2)) == 2
    shown = images_of_folder("far", tmp_path / "patient", DataSpec(1, (16, 12), (1.0, 1.0), "LP"), by_size).all()
    torch.testing.assert_close(shown, images[1:].flip(2, 3))
    eight_bits = DataSpec(1, (16, 12), (1.0, 1.0), intensity_unit="8 bit")
    write_png(tmp_path / "a.png", ramp / 2)
    assert images_of_folder("far", tmp_path, eight_bits, by_size).read([0]).max() < 0.1  # not stretched


def test_folders_and_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"--others\.far: no folder"):
        images_of_folder("far", tmp_path / "none", SPEC, by_size)
    with pytest.raises(MissingDataError, match="no images there"):
        images_of_folder("far", tmp_path, SPEC, by_size)
    with pytest.raises(InputError, match="one channel"):
        images_of_folder("far", tmp_path, DataSpec(2, (16, 12), (1.0, 1.0)), by_size)
    write_png(tmp_path / "a.png", np.zeros((8, 8)))
    with pytest.raises(InputError, match=r"a\.png: all but a few voxels are 0"):
        images_of_folder("far", tmp_path, SPEC, by_size)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"a\.png: .*cut off"):
        images_of_folder("far", tmp_path, SPEC, by_size)
    write_png(tmp_path / "a.png", np.eye(8))
    with pytest.raises(InputError, match="the model makes volumes"):
        images_of_folder("far", tmp_path, DataSpec(1, (8, 8, 8), (1.0,) * 3), by_size)


# Models.


class Mean:
    """A model that is surprised by bright images, more so with a higher seed."""

    device = torch.device("cpu")

    def surprise(self, images: Tensor, seeds: Any) -> dict[str, Tensor]:
        return {"brightness": images.flatten(1).mean(1) + 1e-3 * torch.tensor(list(seeds))}


def test_names_of_sets_that_are_taken() -> None:
    data = SimpleNamespace(spec=SPEC)
    with pytest.raises(InputError, match=r"--others\.noise: the name of a set that there is already"):
        image_sets(data, [], {"noise": "."}, None)  # type: ignore[arg-type]


def test_what_is_measured_depends_on_no_batch() -> None:
    sets = {name: ImageSet(Images.of(grey(7, seed=seed)), "in", "") for seed, name in enumerate(("validation", "test"))}
    one, three = (measured(Mean(), sets, size) for size in (1, 3))  # type: ignore[arg-type]
    for name, values in one.items():
        assert list(values) == ["brightness", "histogram_distance", "png_bits"]
        for measure in values:
            torch.testing.assert_close(values[measure], three[name][measure])


def test_models_without_a_measure_or_that_need_more_than_an_image_are_refused() -> None:
    with pytest.raises(InputError, match="WGAN has no measure"):
        refuse_unable(WGAN.__new__(WGAN))
    for kind in (LSDM, ControlNet, Upscaler):
        with pytest.raises(InputError, match=f"{kind.__name__} makes images from (label_map|source), which"):
            refuse_unable(kind.__new__(kind))
    for kind in (CDPM, DDPM, LDM, VDM, VQGAN, AutoencoderKL, Autoregressive):
        refuse_unable(kind.__new__(kind))


# The verb.


@pytest.fixture(scope="module")
def vdm(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> TinyRun:
    """A tiny VDM of phantom radiographs after two steps."""
    run = TinyRun(tmp_path_factory.mktemp("vdm"), phantoms, ("configs/vdm.yaml",))
    assert run.fit("--data.init_args.fractions=[0.4,0.3,0.3]", "--model.init_args.times_each=2") == 0
    return run


@pytest.mark.xdist_group(group_of("configs/vdm.yaml"))
def test_a_report_of_sets_and_detectors(vdm: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for i in range(3):
        write_png(tmp_path / "far" / f"{i}.png", np.random.default_rng(i).random((20, 20)))
    out = tmp_path / "out"
    assert (
        vdm.on_checkpoint("detect", f"--out={out}", "--near=[inverted,flip_x]", f"--others.far={tmp_path / 'far'}") == 0
    )
    report = json.loads((out / "report.json").read_text())
    assert list(report["detection"]) == ["inverted", "flip_x", "far"]
    assert report["of_model"] == ["bits_per_dimension"]
    assert report["detection"]["flip_x"]["histogram_z"]["auc"] == 0.5
    assert report["detection"]["far"]["png_z"]["auc"] == 1.0
    assert list(report["measures"]) == ["bits_per_dimension", "bits_beyond_png", "histogram_distance", "png_bits"]
    rows = list(csv.DictReader((out / "detected.csv").open()))
    assert len(rows) == sum(one["images"] for one in report["sets"].values())
    validation = np.array([float(row["model_z"]) for row in rows if row["set"] == "validation"])
    for row in rows:
        beyond = float(row["bits_per_dimension"]) - float(row["png_bits"])
        assert float(row["bits_beyond_png"]) == pytest.approx(beyond, abs=1e-3)
    assert (validation.mean(), validation.std()) == pytest.approx((0, 1), abs=1e-4)
    by_set = {name: [row["person"] for row in rows if row["set"] == name] for name in report["sets"]}
    assert by_set["inverted"] == by_set["test"]
    assert not {*by_set["far"], *by_set["validation"]} & {*by_set["test"]}
    assert all((out / name).is_file() for name in ("report.md", "areas.png", "surprises.png", "images.png"))
    for name, found in separations([rows_of(out)]).items():  # the mean of one model is that model
        said = report["detection"][name]["model_z"]
        assert found.auc.value == pytest.approx(said["auc"], abs=1e-6)
        assert found.auc.ci95 == pytest.approx(said["ci95"], abs=1e-6)


def write_detected(folder: Path, tell: dict[str, list[float]]) -> Path:
    """A table of two people's images, two each: set -> their z-scores."""
    folder.mkdir()
    rows = [f"{name},{name}{i},{i // 2},{z}" for name, values in tell.items() for i, z in enumerate(values)]
    (folder / "detected.csv").write_text("\n".join(["set,key,person,model_z", *rows]))
    return folder


def test_the_mean_of_models_is_of_their_z_scores(tmp_path: Path) -> None:
    """Two models that each miss another image; together they miss none. One model twice is that model."""
    usual = {"validation": [0.0, 1.0], "test": [0.0, 0.0, 1.0, 1.0]}
    one = rows_of(write_detected(tmp_path / "one", usual | {"far": [0.5, 9.0, 9.0, 9.0]}))
    other = rows_of(write_detected(tmp_path / "other", usual | {"far": [9.0, 0.5, 9.0, 9.0]}))
    assert separations([one])["far"].auc.value == separations([one, one])["far"].auc.value == 14 / 16
    assert separations([one, other])["far"].auc.value == 1
    assert [*separations([one, other])] == ["far"]
    with pytest.raises(InputError, match="not of the same images"):
        separations([one, rows_of(write_detected(tmp_path / "less", usual | {"far": [1.0, 2.0]}))])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--near=[shear]"], "--near: no set 'shear'; choose from noise, crop, flip_x, flip_y, missing_slices"),
        (["--near=[]"], "--near: [] without --others leaves no set; choose from noise, crop"),
        (["--num=1"], "1 validation people; give at least 2"),
    ],
)
def test_words_that_are_refused(
    vdm: TinyRun, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vdm.on_checkpoint("detect", f"--out={tmp_path}", *words) == 2
    assert message in one_line(capsys)


def test_a_model_of_another_kind_is_refused_in_one_line(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CDPM, "why_no_surprise", lambda self: "has no measure")
    assert trained.on_checkpoint("detect", f"--out={tmp_path}") == 2
    assert "CDPM has no measure" in one_line(capsys)
