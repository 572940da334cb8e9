"""`evaluate`: nulls are what they are called, floors are what real people get, samples and reports are read back."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from lit_medgen.batch import Batch, Condition, DataSpec, Images, Part, Request, Score
from lit_medgen.callbacks.sample_writer import SampleWriter
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.evaluation import report as report_of_samples
from lit_medgen.evaluation.floors import floor
from lit_medgen.evaluation.nulls import NUM_COMPONENTS, null_makers, principal_components
from lit_medgen.evaluation.report import Maker
from lit_medgen.evaluation.scores import PAIRS, SCORES
from lit_medgen.files import file_hash
from lit_medgen.images.dicom import read_series
from lit_medgen.images.nifti import read_nifti, write_nifti
from lit_medgen.metrics import RBFMMD, InceptionScore, LinearMMD, PairedPSNR, TwoSampleMetric
from lit_medgen.metrics.extractors import extractors
from lit_medgen.metrics.known import Known
from lit_medgen.metrics.ms_ssim import Scales
from lit_medgen.sample_files import Format, format_for
from lit_medgen.sample_reading import read_samples
from lit_medgen.sampling import without_conditions
from lit_medgen.training.generator import Generator

NULLS = {"noise", "mean+noise", "pca_gaussian"}
SIZE = (16, 16, 16)
SPEC = DataSpec(1, SIZE, (1.0, 1.0, 1.0))


def normal(num: int, seed: int, size: tuple[int, ...] = (8, 8, 8)) -> Tensor:
    """num 1 *size: independent standard normal voxels."""
    return torch.randn(num, 1, *size, generator=torch.Generator().manual_seed(seed))


def heads(num: int, seed: int) -> Tensor:
    """num 1 *SIZE in [-1, 1]: a smooth anatomy that all share, and a smooth part of everybody's own."""
    shared = functional.avg_pool3d(normal(1, 0, SIZE), 5, stride=1, padding=2)
    own = functional.avg_pool3d(normal(num, seed, SIZE), 3, stride=1, padding=1)
    return (1.5 * shared + own).clamp(-1, 1)


def skulls(num: int, seed: int) -> Tensor:
    """num 1 24 24 24: bright ellipsoids of everybody's own size with a texture of their own, on black."""
    random = torch.Generator().manual_seed(seed)
    radius = 8 + torch.randn(num, 3, 1, 1, 1, generator=random)
    place = torch.stack(torch.meshgrid(*[torch.arange(24) - 11.5] * 3, indexing="ij"))
    inside = torch.sigmoid(6 * (1 - (place / radius).square().sum(1, keepdim=True)))
    texture = functional.avg_pool3d(normal(num, seed, (24, 24, 24)), 3, stride=1, padding=1)
    return (inside * (1.4 + 0.7 * texture) - 1).clamp(-1, 1)


@dataclass
class People:
    """Real images of two splits."""

    train: Tensor
    test: Tensor
    anatomy: str = ""
    digest: str = "0123456789abcdef"
    cache: Path | None = None
    test_people: Sequence[str] = ()
    spec: DataSpec = SPEC

    def images(self, split: Literal["train", "test"], one_per_person: bool = False, limit: int | None = None) -> Images:
        """n c *s in [-1, 1]."""
        assert one_per_person  # two visits of one person are not independent
        images = {"train": self.train, "test": self.test}[split][:limit]
        names = [f"{split} {number}" for number in range(len(images))]
        people = list(self.test_people) if split == "test" and self.test_people else names
        return Images(names, people, lambda indices: images[list(indices)])


def evaluate(samples: Tensor | Images | None, people: Any, out: Path, **options: Any) -> dict[str, Any]:
    """A report of samples in memory; what is derived from the data is kept beside it, unless the data says where."""
    people.cache = people.cache or out.parent / "cache"
    images = Images.of(samples) if isinstance(samples, Tensor) else samples
    return report_of_samples.evaluate(images, people, out, **options)


def nulls(train: Tensor, num: int) -> dict[str, Tensor]:
    """Name -> `num` images that know the training images only superficially."""
    images = Images.of(train)
    makers = null_makers(images, num, principal_components(images, Known(remember=False)))
    return {name: torch.cat(list(parts)) for name, parts in makers.items()}


@pytest.fixture(scope="module")
def train() -> Tensor:
    """Voxels with a mean and a spread of their own, far from -1 and 1, so that nothing is clamped."""
    place = torch.linspace(-1, 1, 8**3).view(1, 1, 8, 8, 8)
    return 0.2 * place + (0.03 + 0.02 * place) * normal(40, 1)


def test_nulls_have_the_size_of_the_samples_and_the_range_of_images(train: Tensor) -> None:
    made = nulls(train, 7)
    assert made.keys() == NULLS
    for images in nulls(20 * train, 7).values():
        assert images.shape == (7, 1, 8, 8, 8)
        assert images.dtype == torch.float32
        assert images.abs().max() <= 1
    assert all(torch.equal(images, made[name]) for name, images in nulls(train, 7).items())


def test_the_noise_null_has_one_mean_and_spread(train: Tensor) -> None:
    images = nulls(train, 400)["noise"]
    assert float(images.mean()) == pytest.approx(float(train.mean()), abs=0.002)
    assert float(images.std()) == pytest.approx(float(train.std()), rel=0.02)
    assert float(images.mean(0).std()) < 0.1 * float(train.mean(0).std())  # no anatomy


def test_the_mean_noise_null_has_those_of_every_voxel(train: Tensor) -> None:
    images = nulls(train, 400)["mean+noise"]
    error = train.std(0) / math.sqrt(400)
    assert ((images.mean(0) - train.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(images.std(0), train.std(0), rtol=0.2, atol=0)


@pytest.mark.parametrize("num_people", [40, 6])
def test_the_pca_null_lies_in_the_leading_components(num_people: int, train: Tensor) -> None:
    known = train[:num_people].flatten(1).double()
    drawn = nulls(train[:num_people], 400)["pca_gaussian"].flatten(1).double() - known.mean(0)
    rank = min(NUM_COMPONENTS, num_people - 1)
    assert torch.linalg.matrix_rank(drawn, rtol=1e-4) == rank
    _, spread, directions = torch.linalg.svd(known - known.mean(0), full_matrices=False)
    inside = drawn @ directions[: num_people - 1].T @ directions[: num_people - 1]
    torch.testing.assert_close(inside, drawn, atol=1e-5, rtol=0)
    variance = spread[:rank].square().sum() / (num_people - 1)
    assert float(drawn.square().sum(1).mean()) == pytest.approx(float(variance), rel=0.1)


def test_the_floor_of_the_unbiased_mmd_is_zero() -> None:
    floors = [floor(RBFMMD, normal(60, seed), normal(30, seed + 100), 30) for seed in range(6)]
    # Kernel values of independent people are about exp(-1).
    assert abs(sum(floors) / len(floors)) < 0.003
    moved = floor(RBFMMD, normal(60, 0) + 0.3, normal(30, 1), 30)
    assert moved > 10 * max(map(abs, floors))


def test_the_floor_of_the_biased_mmd_is_that_of_the_numbers() -> None:
    floors = [floor(LinearMMD, normal(60, seed), normal(30, seed + 100), 20) for seed in range(6)]
    expected = 8**3 / 4 * (1 / 20 + 1 / 30)  # voxels are halved, so their variance is 1/4
    assert sum(floors) / len(floors) == pytest.approx(expected, rel=0.05)


def test_a_perfect_model_is_at_the_floor_and_every_null_is_not(tmp_path: Path) -> None:
    people = People(heads(24, 1), heads(12, 2))
    report = evaluate(heads(12, 3), people, tmp_path)

    def away(null: str | None, name: str) -> float:
        """How far a score is from that of real people."""
        score = report["metrics"][name]
        return abs((report["nulls"][null][name] if null else score["value"]) - score["real_vs_real"])

    for null in NULLS:
        assert any(away(null, name) > 5 * away(None, name) for name in ("ms_ssim_gap", "sharpness")), null
    score = report["metrics"]["sharpness"]
    assert score["value"] == pytest.approx(1, abs=0.05)
    assert score["ci95"][0] - 0.02 < 1 < score["ci95"][1] + 0.02
    assert report["metrics"]["mmd_rbf_unbiased"]["value"] == pytest.approx(0, abs=0.02)
    for name in ("noise", "mean+noise"):
        assert report["nulls"][name]["sharpness"] > 1.5
    assert report["nulls"]["pca_gaussian"]["sharpness"] < 0.95  # too smooth


def test_copies_of_training_people_are_seen(tmp_path: Path) -> None:
    people = People(heads(24, 1), heads(12, 2))
    fair = evaluate(heads(12, 3), people, tmp_path)["metrics"]["nearest_training"]
    assert fair["value"] == pytest.approx(fair["real_vs_real"], abs=0.02)
    copied = evaluate(people.train[:12], people, tmp_path)["metrics"]["nearest_training"]
    assert copied["value"] == pytest.approx(1, abs=1e-5)
    assert copied["real_vs_real"] < 0.9


@pytest.mark.usefixtures("fine_figures")
@pytest.mark.parametrize("seams", [None, (2, []), (2, [3, 7])], ids=["none", "one stage", "two step boundaries"])
def test_the_report_holds_every_score(seams: tuple[int, list[int]] | None, tmp_path: Path) -> None:
    report = evaluate(
        heads(3, 3),
        People(heads(8, 1), heads(4, 2)),
        tmp_path / "new" / "folder",
        maker=Maker(seams=seams),
        source="me.ckpt",
    )
    names = {"ms_ssim", "ms_ssim_gap", "mmd_linear_biased", "mmd_rbf_unbiased", "sharpness", "ssim"}
    names |= {"mode_spread", "nearest_training"}
    assert "No scores of features: 3 samples, 4 test and 8 training people" in report["note"]
    assert report["metrics"].keys() == names | ({"seam_ratio"} if seams and seams[1] else set())
    assert report["nulls"].keys() == NULLS
    for name, score in report["metrics"].items():
        assert score.keys() == {"value", "ci95", "real_vs_real", "num_samples", "num_real", "features", "best"}
        low, high = score["ci95"]
        assert low <= score["value"] <= high
        assert all(math.isfinite(report["nulls"][null][name]) for null in NULLS)
        assert (score["num_samples"], score["num_real"]) == (3, 8 if name == "nearest_training" else 4)
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text()) == report
    text = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert "me.ckpt" in text
    assert "Audit: none" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(report["metrics"])
    assert len({line.count("|") for line in table}) == 1
    for figure in ("samples", "scores", "map"):
        assert (tmp_path / "new" / "folder" / f"{figure}.png").stat().st_size > 1000


def test_a_report_looks_at_each_pair_of_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likeness of two images is what takes days: six sets of six and one of eight have so many pairs, of two kinds."""
    looked, term = [0], Scales.term

    def counted(self: Scales, i: int, chosen: Tensor, scale: int) -> Tensor:
        looked[0] += len(chosen) if scale == 0 else 0
        return term(self, i, chosen, scale)

    monkeypatch.setattr(Scales, "term", counted)
    evaluate(heads(6, 3), People(heads(8, 1), heads(6, 2)), tmp_path, features="none")
    of_six, of_eight, nearest = 6 * 7 // 2, 8 * 9 // 2, 6 * 8
    assert looked[0] <= (2 + 3) * 2 * of_six + of_eight + (2 + 3) * nearest


def test_intervals_end_where_scores_do_and_floors_say_of_how_many_images(tmp_path: Path) -> None:
    report = evaluate(skulls(16, 3), People(skulls(24, 1), skulls(16, 2)), tmp_path, features="none")
    for name in ("mmd_linear_biased", "sharpness", "mode_spread", "ms_ssim", "ms_ssim_gap", "nearest_training"):
        assert report["metrics"][name]["ci95"][0] >= 0, name
    assert report["metrics"]["mmd_rbf_unbiased"]["ci95"][0] < 0  # an unbiased estimator may be negative
    assert report["floors"]["ms_ssim_gap"] == {"sets": 8, "images": 16, "people": "train"}
    assert report["floors"]["ms_ssim"] == {"sets": 1, "images": 16, "people": "test"}
    text = (tmp_path / "report.md").read_text()
    assert report["conservative"] == ["ms_ssim_gap", "mmd_linear_biased", "mmd_rbf_unbiased"]
    assert "Conservative, with an error 1.4 to 1.9 times" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| ms_ssim_gap"))
    assert "| 8 x 16 train |" in row


def test_the_prior_of_a_model_is_a_null_and_the_verdict_says_who_is_beaten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = People(heads(12, 1), heads(12, 2))
    prior = Maker(prior=lambda seeds: heads(12, 5)[list(seeds)])
    report = evaluate(normal(12, 0, SIZE).clamp(-1, 1), people, tmp_path, features="none", maker=prior)
    assert report["nulls"].keys() == NULLS | {"prior"}
    text = (tmp_path / "report.md").read_text()
    assert all(f"* {null}: " in text for null in report["nulls"])
    assert text.rstrip().endswith(report["verdict"])
    assert report["verdict"] in capsys.readouterr().out
    assert re.search(r"^By half or fewer of \d+ scores .* than noise \(.*prior \(", report["verdict"])
    good = evaluate(heads(12, 3), people, tmp_path, features="none")["verdict"]
    assert re.search(
        r"By most of 7 scores .* than noise \(\d, \d with the whole interval\), mean\+noise .* and pca_gaussian", good
    )
    assert "No sign of copies" in good
    assert "look for copies" in evaluate(people.train, people, tmp_path, features="none")["verdict"]


@pytest.mark.parametrize(("samples", "train", "test"), [(1, 4, 4), (4, 1, 4), (4, 4, 1), (4, 4, 0)])
def test_too_few_images_are_an_input_error(samples: int, train: int, test: int, tmp_path: Path) -> None:
    people = People(heads(5, 1)[:train], heads(5, 2)[:test])
    with pytest.raises(InputError, match=f"{samples} samples, {test} test and {train} training people"):
        evaluate(heads(5, 3)[:samples], people, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_features_are_learned_and_see_what_is_wrong(tmp_path: Path) -> None:
    people = People(skulls(40, 1), skulls(24, 2), cache=tmp_path / "cache")
    report = evaluate(skulls(24, 3), people, tmp_path)
    scores = {name: row for name, row in report["metrics"].items() if "contrastive" in row["features"]}
    views = {"frechet_axial", "frechet_coronal", "frechet_sagittal"}
    assert scores.keys() == views | {"kernel_distance", "precision", "recall", "density", "coverage"}
    for name in views:
        row = scores[name]
        assert "40 training images (6 features" in row["features"]
        assert "rank-deficient" not in row["features"]
        for null in ("noise", "mean+noise"):
            assert report["nulls"][null][name] > 2 * row["value"], (null, name)
    assert scores["coverage"]["value"] > 0.7
    assert report["nulls"]["noise"]["coverage"] < 0.3
    for view in report["ranking"].values():
        for little, more, much in (view["blur"], view["noise"]):
            assert 0 < little < more < much
        assert 0 < view["shift"][0] < view["shift"][1]  # by 4 of 24 voxels there is little head left to compare
    ranked = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.endswith("| yes |")]
    assert len(ranked) >= 6
    (kept,) = (tmp_path / "cache" / "features").iterdir()
    before = kept.stat().st_mtime_ns
    assert evaluate(skulls(24, 3), people, tmp_path) == report
    assert kept.stat().st_mtime_ns == before


class Detector(torch.nn.Module):
    """Called as StyleGAN's Inception is."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        if return_features:
            return torch.stack([x.mean(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))], dim=1)
        return x.flatten(1)


def test_features_from_a_torchscript_file(tmp_path: Path) -> None:
    file = tmp_path / "detector.pt"
    torch.jit.script(Detector()).save(str(file))
    views = extractors(str(file), heads(9, 0), 9)
    images = heads(5, 1)
    found = views["coronal"](images)
    middle = (images[:, 0, :, 8] + 1) * 127.5
    torch.testing.assert_close(found, torch.stack([middle.mean(dim=(1, 2)), middle.amax(dim=(1, 2))], dim=1))
    assert views["coronal"].name == f"detector.pt (SHA-256 {file_hash(file)[:12]}), middle coronal slice"


class Classifier(torch.nn.Module):
    """Called as StyleGAN's Inception is: dark images are of the first class, bright ones of the second."""

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        brightness = x.mean(dim=(1, 2, 3))
        if return_features:
            return brightness[:, None]
        bias = 0.0 if no_output_bias else 100.0
        return torch.softmax(torch.stack([128 - brightness + bias, brightness - 128], dim=1), dim=1)


class Edges(torch.nn.Module):
    """Activations with places."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1, 1:, 1:] - x[:, :1, :-1, 1:], x[:, :1, 1:, 1:]], dim=1)


def test_a_classifier_gives_the_inception_score(tmp_path: Path) -> None:
    file = tmp_path / "classifier.pt"
    torch.jit.script(Classifier()).save(str(file))
    dark, bright = torch.full((4, 1, 16, 16, 16), -0.9), torch.full((4, 1, 16, 16, 16), 0.9)
    classifier = extractors(str(file), heads(9, 0), 9)["axial"]

    def score(images: Tensor) -> float:
        metric = InceptionScore(classifier)
        metric.update(images, real=False)
        metric.update(images, real=True)
        return float(metric.compute())

    assert score(torch.cat([dark, bright])) == pytest.approx(2)  # sure of two classes
    assert score(dark) == pytest.approx(1)
    report = evaluate(heads(8, 3), People(heads(24, 1), heads(8, 2)), tmp_path, features=str(file))
    assert 1 <= report["metrics"]["inception_score_axial"]["value"] <= 2


def test_pairs_have_the_perceptual_distance_of_a_file_or_a_note(tmp_path: Path) -> None:
    people = People(heads(4, 1), heads(4, 2))
    torch.jit.script(Classifier()).save(str(tmp_path / "classifier.pt"))
    torch.jit.script(Edges()).save(str(tmp_path / "edges.pt"))
    reconstructions = Images.of(people.test * 0.9, people.images("test", one_per_person=True).people)
    found = {
        name: evaluate(
            reconstructions, people, tmp_path / f"of_{name}", features=str(tmp_path / name), targets=range(4)
        )
        for name in ("classifier.pt", "edges.pt")
    }
    assert "No perceptual distance: features" in found["classifier.pt"]["note"]
    assert found["classifier.pt"]["pairs"].keys() == {"psnr", "mae", "ssim", "ms_ssim"}
    assert found["edges.pt"]["pairs"]["perceptual"]["value"] > 0
    assert "unseen people as targets, so they should be no copies" in found["edges.pt"]["verdict"]
    table = [line for line in (tmp_path / "of_edges.pt" / "report.md").read_text().splitlines() if line[:1] == "|"]
    assert len({line.count("|") for line in table}) == 1
    assert sum(", of pairs | " in line for line in table) == 5


def test_samples_and_targets_come_in_any_order_and_some_have_none(tmp_path: Path) -> None:
    people = People(heads(4, 1), heads(4, 2))
    order = [2, 0, 3, 1, 2]
    report = evaluate(0.9 * people.test[order], people, tmp_path, features="none", targets=[2, 0, None, 1, None])
    psnr = PairedPSNR().values(0.9 * people.test[[2, 0, 1]], people.test[[2, 0, 1]])
    assert report["pairs"]["psnr"]["value"] == pytest.approx(float(psnr.mean()))
    assert report["pairs"]["psnr"]["num_pairs"] == 3


def test_people_have_any_number_of_images_and_an_interval_is_over_people(tmp_path: Path) -> None:
    """The values are those of all images, whosever they are; intervals widen where images are of fewer people."""
    samples, train, test = heads(8, 3), heads(12, 1), heads(9, 2)
    each = evaluate(samples, People(train, test), tmp_path, features="none")
    whose = ["a", "b", "a", "c", "a", "d", "b", "e", "a"]
    few = evaluate(samples, People(train, test, test_people=whose), tmp_path, features="none")
    assert few["people"] == {"test": [5, 9], "train": [12, 12]}
    assert "5 people with 9 images" in (tmp_path / "report.md").read_text()
    for name, row in few["metrics"].items():
        assert row["value"] == each["metrics"][name]["value"]
    assert few["metrics"]["sharpness"]["ci95"] != each["metrics"]["sharpness"]["ci95"]


def test_images_that_stream_have_the_scores_of_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_medgen.metrics.extractors.NUM_STEPS", 20)
    people = People(skulls(24, 1), skulls(16, 2), anatomy="brain", cache=tmp_path)
    options = {"maker": Maker(seams=(2, [7, 15]), prior=lambda seeds: skulls(16, 5)[list(seeds)])}
    whole = evaluate(skulls(16, 3), people, tmp_path / "whole", **options)
    num_bytes, most = 4 * 24**3, [0]
    monkeypatch.setattr("lit_medgen.metrics.known.BLOCK_BYTES", 8 * num_bytes)
    monkeypatch.setattr("lit_medgen.metrics.ms_ssim.BLOCK_VOXELS", 3 * 24**3)
    monkeypatch.setattr("lit_medgen.metrics.extractors.DISTORTED_BYTES", 3 * num_bytes)
    monkeypatch.setattr("lit_medgen.evaluation.held.IN_MEMORY_BYTES", 2 * num_bytes)

    def counted(images: Images) -> Images:
        def read(indices: Sequence[int]) -> Tensor:
            most[0] = max(most[0], len(indices))
            return images.read(indices)

        return replace(images, read=read)

    real = people.images
    monkeypatch.setattr(people, "images", lambda *args, **kwargs: counted(real(*args, **kwargs)))
    streamed = evaluate(counted(Images.of(skulls(16, 3))), people, tmp_path / "streamed", **options)
    assert 0 < most[0] <= 8
    assert not [path for path in tmp_path.iterdir() if path.is_file()]  # temporary files are gone
    assert streamed["nearest"] == [
        {**row, "ms_ssim": pytest.approx(row["ms_ssim"], abs=1e-6)} for row in whole["nearest"]
    ]
    for name, row in whole["metrics"].items():
        expected = [
            row["value"],
            *row["ci95"],
            row["real_vs_real"],
            *(whole["nulls"][null][name] for null in whole["nulls"]),
        ]
        row = streamed["metrics"][name]
        found = [
            row["value"],
            *row["ci95"],
            row["real_vs_real"],
            *(streamed["nulls"][null][name] for null in streamed["nulls"]),
        ]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    for view, distortions in whole["ranking"].items():
        for name, distances in distortions.items():
            assert streamed["ranking"][view][name] == pytest.approx(distances, rel=1e-4)


class Brightness(TwoSampleMetric):
    """Mean of samples less mean of real images."""

    features = "voxels"

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        return {name: images.all().flatten(1).mean(1).double() for name, images in (("x", samples), ("y", real))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        return float(statistics["x"][x].mean() - statistics["y"][y].mean())


def test_a_score_is_added_by_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a value, an interval, a floor and nulls as every other has, and what does not apply is left out."""
    monkeypatch.setitem(SCORES["images"], "brightness", lambda given: Brightness(given.known))
    monkeypatch.setitem(SCORES["brains"], "brightness_of_brains", lambda given: Brightness(given.known))
    monkeypatch.setitem(PAIRS, "psnr_again", lambda given: PairedPSNR())
    people = People(heads(6, 1), heads(6, 2))
    report = evaluate(0.9 * people.test, people, tmp_path, features="none", targets=range(6))
    row = report["metrics"]["brightness"]
    assert row["value"] == pytest.approx(-0.1 * float(people.test.mean()), abs=1e-6)
    assert row["ci95"][0] < row["value"] < row["ci95"][1]
    assert all("brightness" in scores for scores in report["nulls"].values())
    assert "brightness_of_brains" not in report["metrics"]
    assert report["pairs"]["psnr_again"]["value"] == report["pairs"]["psnr"]["value"]


def test_a_report_says_what_it_is_of_and_what_a_sample_cost(tmp_path: Path) -> None:
    own = {"bits": Score(3.25, "log-likelihood of the test images, bits per dimension", (3.0, 3.5), 4)}
    maker = Maker("VDM", network_evaluations=250.0, seconds_per_image=1.5, scores=lambda data: own)
    report = evaluate(heads(4, 3), People(heads(4, 1), heads(4, 2)), tmp_path, maker=maker, features="none")
    assert (report["method"], report["data"], report["num_samples"]) == ("VDM", "0123456789abcdef", 4)
    assert (report["network_evaluations"], report["seconds_per_image"]) == (250, 1.5)
    text = (tmp_path / "report.md").read_text()
    for said in (
        "Method: VDM",
        "Data: 0123456789ab",
        "4 samples",
        "250 evaluations",
        "1.5 s",
        "| bits | 3.25 | 3 to 3.5",
    ):
        assert said in text


def test_a_method_that_makes_no_images_has_a_report_of_its_own_scores(tmp_path: Path) -> None:
    people = People(heads(1, 1), heads(1, 2))
    maker = Maker("Classifier", scores=lambda data: {"auc": Score(0.8, f"{len(data.images('test', True))} crops")})
    report = evaluate(None, people, tmp_path / "out", maker=maker)
    assert report["own"]["auc"] == {"value": 0.8, "of": "1 crops", "ci95": None, "num": None}
    assert "Classifier makes no images" in report["verdict"]
    assert "| auc | 0.8 |" in (tmp_path / "out" / "report.md").read_text()
    assert {path.name for path in (tmp_path / "out").glob("*.*") if path.name[0] != "."} == {"report.json", "report.md"}
    with pytest.raises(InputError, match=r"Classifier makes no images and has no scores of its own"):
        evaluate(None, people, tmp_path / "out", maker=Maker("Classifier", scores=lambda data: {}))


def test_what_a_method_plots_and_predicts_stands_in_the_folder_of_the_report(tmp_path: Path) -> None:
    """After the scores, and replaced by that of the next report; a file of the user's is not touched."""
    people, called = People(heads(1, 1), heads(1, 2)), list[str]()

    def scores(data: Any) -> dict[str, Score]:
        called.append("scores")
        return {"auc": Score(0.8, "crops")}

    def plots() -> dict[str, Any]:
        called.append("plots")
        return {"skill": lambda path: path.write_bytes(b"png")}

    maker = Maker("Classifier", scores=scores, plots=plots, predictions=lambda: [{"key": "a", "sex": 1}, {"key": "b"}])
    evaluate(None, people, tmp_path, maker=maker)
    assert called == ["scores", "plots"]
    assert "![skill](plots/skill.png)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "plots" / "skill.png").read_bytes() == b"png"
    assert (tmp_path / "predictions.csv").read_text().splitlines() == ["fold,key,sex", ",a,1", ",b,"]
    evaluate(None, people, tmp_path, maker=Maker("Classifier", scores=scores))
    assert not (tmp_path / "plots").exists()
    assert not (tmp_path / "predictions.csv").exists()
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mine.png").touch()
    with pytest.raises(InputError, match=r"mine.png: not written by this verb"):
        evaluate(None, people, tmp_path, maker=maker)


def test_brains_have_scores_of_their_own(tmp_path: Path) -> None:
    people = People(heads(8, 1), heads(8, 2))
    assert "ventricle_spread" not in evaluate(heads(8, 3), people, tmp_path, features="none")["metrics"]
    people.anatomy = "brain"
    assert evaluate(heads(8, 3), people, tmp_path, features="none")["metrics"]["ventricle_spread"]["value"] > 0


@pytest.mark.parametrize("content", [None, b"", b"not a network"])
def test_a_bad_feature_file_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "detector.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"--features .*detector\.pt: not a TorchScript file.*learned.*none"):
        evaluate(heads(8, 3), People(heads(8, 1), heads(8, 2)), tmp_path / "report", features=str(file))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("plane", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_learned_features_are_the_same_on_one_thread_and_on_two(plane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 they were others, and with them the scores (Fréchet distance 1.1 on one thread and 2.3 on two)."""
    monkeypatch.setattr("lit_medgen.metrics.extractors.PEOPLE_A_STEP", 8)
    people, threads = skulls(40, 1)[:, :, 12] if plane else skulls(40, 1), torch.get_num_threads()
    found = []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            (view, *_) = extractors("learned", people, 8).values()
            found.append(view(people))
    finally:
        torch.set_num_threads(threads)
    assert_close(*found, rtol=0, atol=1e-4)  # of a standard deviation


def test_two_dimensional_images_have_one_view() -> None:
    pictures = torch.rand(12, 1, 24, 24) * 2 - 1
    (view,) = extractors("learned", pictures, 6).items()
    assert view[0] == "image"
    assert view[1](pictures).shape == (12, 2)


# Samples on disk.


class Still(Generator):
    """Makes the same images whatever it is asked."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, {"model": {"class_path": "lit_medgen.methods.Still"}}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing to learn."""
        raise NotImplementedError

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """b c *size in [-1, 1]."""
        return torch.stack([normal(1, seed, self.needed_spec().size)[0] for seed in seeds]).clamp(-1, 1)


VOLUME = DataSpec(1, (4, 5, 6), (1.0, 2.0, 3.0), intensity_window=(-1000.0, 400.0))
PICTURE = DataSpec(1, (7, 5), (1.0, 1.0), orientation="")
CT = replace(VOLUME, intensity_unit="HU")
HEAD = replace(VOLUME, intensity_window=(0.0, 1.0))


def write(
    folder: Path, spec: DataSpec, format: Format | None, seeds: list[int], parts: frozenset[Part] = frozenset()
) -> Tensor:
    """Writes samples as the command does, in batches of two; returns them."""
    checkpoint = folder.parent / "model.ckpt"
    checkpoint.write_bytes(b"weights")
    model, trainer = Still(spec), SimpleNamespace(is_global_zero=True, global_rank=0, world_size=1)
    writer = SampleWriter(folder, format, replace(without_conditions(seeds), parts=parts), checkpoint)
    writer.format = format_for(spec, format)
    for first in range(0, len(seeds), 2):
        batch = Request(seeds[first : first + 2])
        images = model.sample(Condition(), batch.seeds)
        writer.write_on_batch_end(trainer, model, images, None, batch, first // 2, 0)  # type: ignore[arg-type]
    writer.on_predict_end(trainer, model)  # type: ignore[arg-type]
    return model.sample(Condition(), seeds)


def start(folder: Path, spec: DataSpec, format: Format | None) -> None:
    """What the command does before its first sample."""
    trainer: Any = SimpleNamespace(is_global_zero=True)
    SampleWriter(folder, format, without_conditions([0]), folder.parent / "model.ckpt").on_predict_start(
        trainer, Still(spec)
    )


@pytest.mark.parametrize(
    ("spec", "format", "precision"),
    [
        (VOLUME, "nifti", 1e-5),
        (PICTURE, "png", 1 / 255 + 1e-6),
        (VOLUME, "dicom", 1 / 4095 + 1e-6),
        (CT, "dicom", 1 / 1400 + 1e-6),  # half a HU
    ],
    ids=["nifti", "png", "dicom", "dicom CT"],
)
def test_samples_come_back(spec: DataSpec, format: Format, precision: float, tmp_path: Path) -> None:
    images = write(tmp_path / "s", spec, format, [4, 0, 9])
    torch.testing.assert_close(read_samples(tmp_path / "s", spec).images.all(), images, atol=precision, rtol=0)
    assert DataSpec.from_plain(json.loads((tmp_path / "s" / "spec.json").read_text())) == spec
    with (tmp_path / "s" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["4", "0", "9"]
    assert {row["audit"] for row in rows} == {"none"}


@pytest.mark.parametrize(("spec", "modality"), [(VOLUME, "OT"), (CT, "CT")], ids=["no unit", "HU"])
def test_a_sample_in_dicom_is_a_folder_of_slices_where_the_spec_puts_them(
    spec: DataSpec, modality: str, tmp_path: Path
) -> None:
    write(tmp_path / "s", spec, "dicom", [3, 12])
    with (tmp_path / "s" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["sample_00000003", "sample_00000012"]
    series = set()
    for row in rows:
        files = sorted((tmp_path / "s" / row["file"]).iterdir())
        assert [path.name for path in files] == [f"1-{k:03}.dcm" for k in range(1, 7)]
        np.testing.assert_allclose(read_series(files)[1], spec.affine().numpy(), atol=1e-4)
        for data in map(pydicom.dcmread, files):
            assert (data.Modality, data.SyntheticData, data.RescaleSlope) == (modality, "YES", 1)
            assert data.PatientID == f"SYN-{row['checkpoint_sha256'][:12]}-{row['seed']}"
            assert data.SoftwareVersions[1] == f"model {row['checkpoint_sha256'][:32]}"
            low, high = spec.intensity_window if modality == "CT" else (0, 4095)
            assert low <= data.pixel_array.min() < data.pixel_array.max() <= high
            series.add(data.SeriesInstanceUID)
    assert len(series) == 2


@pytest.mark.parametrize(("spec", "format"), [(VOLUME, "nifti"), (PICTURE, "png"), (VOLUME, "dicom"), (CT, "dicom")])
def test_what_is_made_from_a_patients_image_says_so_in_every_format(
    spec: DataSpec, format: Format, tmp_path: Path
) -> None:
    images = write(tmp_path / "s", spec, format, [7], frozenset({"source"}))
    torch.testing.assert_close(read_samples(tmp_path / "s", spec).images.all(), images, atol=0.01, rtol=0)
    with (tmp_path / "s" / "manifest.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["kind"] == "reconstruction"
    path = tmp_path / "s" / row["file"]
    assert path.name.partition(".")[0] == "reconstruction_00000007"
    if format == "nifti":
        said = bytes(nib.load(path).header["descrip"]).decode().strip("\0")
    elif format == "png":
        said = Image.open(path).text["Description"]
    for data in map(pydicom.dcmread, path.glob("*.dcm")):
        assert data.get("SyntheticData") != "YES"
        assert data.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert data.PatientID.startswith("REC-")
        said = f"{data.PatientName} {data.SeriesDescription} {data.ImageComments} {data.DerivationDescription}"
        assert "ReferencedImageSequence" not in data
        assert "SourceImageSequence" not in data
    assert "SYN" not in said.upper()
    assert "RECONSTRUCTION" in said
    assert "derived from a patient's image" in said
    assert "not acquired" not in said


def test_a_picture_in_dicom_is_one_file_in_its_folder(tmp_path: Path) -> None:
    images = write(tmp_path / "s", PICTURE, "dicom", [0])
    (path,) = (tmp_path / "s" / "sample_00000000").iterdir()
    stored = torch.from_numpy(pydicom.dcmread(path).pixel_array.T / 4095 * 2 - 1).float()
    torch.testing.assert_close(stored, images[0, 0], atol=1 / 4095 + 1e-6, rtol=0)
    torch.testing.assert_close(read_samples(tmp_path / "s", PICTURE).images.all(), images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fault", ["cut", "slice missing", "all missing"])
def test_a_damaged_sample_in_dicom_is_named(fault: str, tmp_path: Path) -> None:
    write(tmp_path / "s", VOLUME, "dicom", [0, 1])
    victims = sorted((tmp_path / "s" / "sample_00000001").iterdir())
    if fault == "cut":
        victims[2].write_bytes(victims[2].read_bytes()[:-20])
    for path in {"cut": [], "slice missing": victims[-1:], "all missing": victims}[fault]:
        path.unlink()
    with pytest.raises(InputError, match="sample_00000001"):
        read_samples(tmp_path / "s", VOLUME).images.all()


def test_samples_in_dicom_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, VOLUME, "dicom", [0, 1])
    (folder / "sample_00000001" / "notes.txt").write_text("mine")
    start(folder, VOLUME, None)  # removes what was written, and nothing else
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {".lit_medgen-sample.json", "notes.txt"}
    write(folder, VOLUME, "dicom", [0])
    write(folder, replace(VOLUME, size=(4, 5, 3)), "dicom", [0])  # no manifest is read here, as after a kill
    assert len(list((folder / "sample_00000000").iterdir())) == 3


def test_a_format_that_does_not_fit_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--format png: .*use nifti or dicom"):
        start(tmp_path / "s", VOLUME, "png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file\na.nii\na.nii\n", "a.nii is listed twice"),
        ("name\na.nii\n", "no column 'file'"),
        ("file,condition\na.nii,[1]\n", "column condition says"),
        ('file,condition\na.nii,"{""key"": [1]}"\n', "column condition says"),
    ],
)
def test_a_manifest_that_was_edited_by_hand(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.csv") as error:
        read_samples(tmp_path, VOLUME)
    assert words in str(error.value)
    (tmp_path / "manifest.csv").write_text("\ufefffile\na.nii\n", encoding="utf-8")  # as spreadsheets save it
    assert read_samples(tmp_path, VOLUME).images.keys == ["a.nii"]


def test_without_a_manifest_no_samples(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"--samples.*manifest\.csv"):
        read_samples(tmp_path, VOLUME).images.all()


def test_a_listed_sample_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file\nsample_00000003.nii.gz\n")
    with pytest.raises(MissingDataError, match=r"sample_00000003\.nii\.gz: listed in manifest\.csv, but not there"):
        read_samples(tmp_path, DataSpec(1, (4, 4, 4), (1.0, 1.0, 1.0)))


def test_samples_of_another_size_are_an_input_error(tmp_path: Path) -> None:
    write(tmp_path / "s", VOLUME, "nifti", [0])
    other = DataSpec(1, (4, 5, 7), (1.0, 2.0, 3.0))
    with pytest.raises(InputError, match=r"sample_00000000\.nii\.gz: size \(4, 5, 6\), but the data has \(4, 5, 7\)"):
        read_samples(tmp_path / "s", other).images.all()


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (
            HEAD,
            lambda values: 255 * values,
            r"values from 0 to 255, but .* from 0 to 1 \(normalised\).*0\.01; scale them",
        ),
        (HEAD, lambda values: (values * 9).astype(np.uint8), r"stored as uint8, whole numbers from 0 to 9.*float32"),
        (HEAD, lambda values: values - 0.02, r"values from -0\.02 to 0\.98"),
        (VOLUME, lambda values: values + 1024, r"values from 24 to 1424, but .* from -1000 to 400"),
        (
            VOLUME,
            lambda values: np.where(values > 0, np.nan, values),
            r"\d+ of 120 voxels are NaN or infinite; .*again",
        ),
    ],
    ids=["8 bit", "whole numbers", "a little below", "HU + 1024", "NaN"],
)
def test_samples_with_values_of_another_kind_are_refused_by_name(
    spec: DataSpec, change: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "s", spec, "nifti", [0, 1])
    path = tmp_path / "s" / "sample_00000001.nii.gz"
    low, high = spec.intensity_window
    values, affine = read_nifti(path)
    ends = np.linspace(low, high, values.size).reshape(values.shape)  # the whole window
    changed = change(ends)
    write_nifti(path, changed.astype(np.float32) if changed.dtype == np.float64 else changed, affine)
    with pytest.raises(InputError, match=rf"sample_00000001\.nii\.gz: {message}"):
        read_samples(tmp_path / "s", spec).images.all()


def test_a_sixteen_bit_png_is_not_taken_for_white(tmp_path: Path) -> None:
    write(tmp_path / "s", PICTURE, "png", [0])
    Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000).save(tmp_path / "s" / "sample_00000000.png")
    with pytest.raises(InputError, match=r"sample_00000000\.png: values from 0 to 34000, but .* from 0 to 255"):
        read_samples(tmp_path / "s", PICTURE).images.all()


def test_samples_on_another_grid_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", VOLUME, "nifti", [0])
    path = tmp_path / "s" / "sample_00000000.nii.gz"
    write_nifti(path, read_nifti(path)[0], np.eye(4))
    message = r"sample_00000000\.nii\.gz: its affine has axes \[1\.0, 0\.0, 0\.0\].* voxels of \(1\.0, 2\.0, 3\.0\) mm"
    with pytest.raises(InputError, match=message):
        read_samples(tmp_path / "s", VOLUME).images.all()


@pytest.mark.parametrize("worth", [127.5, torch.nan])
def test_samples_outside_the_range_of_images_are_refused_from_python_too(worth: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"samples lie from .*; scale them to \[-1, 1\]"):
        evaluate(heads(4, 3) * worth, People(heads(5, 1), heads(4, 2)), tmp_path)


@pytest.mark.parametrize("fault", ["cut", "missing"])
@pytest.mark.parametrize(("spec", "format"), [(VOLUME, "nifti"), (PICTURE, "png")], ids=["nifti", "png"])
def test_a_damaged_sample_is_named(fault: str, spec: DataSpec, format: Format, tmp_path: Path) -> None:
    write(tmp_path / "s", spec, format, [0, 1])
    victim = next((tmp_path / "s").glob("sample_00000001.*"))
    content = victim.read_bytes()
    victim.unlink()
    if fault == "cut":
        victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="sample_00000001"):
        read_samples(tmp_path / "s", spec).images.all()
