"""`evaluate`: samples against real people, with floors, intervals and nulls, as a report.

Every score stands beside its real-vs-real value (as many training people as samples against the test people: what a
perfect model would get), a jackknife interval, and the same score of three nulls that any model must beat:

    noise         independent normal voxels with the training images' mean and spread
    mean+noise    the mean training image with independent noise of every voxel's own spread
    pca_gaussian  a Gaussian with the 10 leading principal components of the training images
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_medgen.errors import InputError
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.images.grids import save_figure
from lit_medgen.images.plots import save_map, save_scores
from lit_medgen.metrics import (
    RBFMMD,
    Coverage,
    Density,
    Features,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    LinearMMD,
    ModeSpread,
    MSSSIMGap,
    NearestTraining,
    PairedMSSSIM,
    PairedPSNR,
    PairedSSIM,
    PairwiseMSSSIM,
    PairwiseSSIM,
    Precision,
    Recall,
    SeamRatio,
    Sharpness,
    TwoSampleMetric,
    VentricleSpread,
)
from lit_medgen.metrics.extractors import LEARNED, AllViews, CentreSlice, extractors, ranking

NUM_COMPONENTS = 10
NONE = "none"
BRAIN = "brain"
LEAST_FOR_FEATURES = 8
"""Images of each kind: below that, neighbours and covariances mean nothing."""
OF_ALL_VIEWS: dict[str, Callable[[Features], TwoSampleMetric]] = {
    "kernel_distance": KernelDistance,
    "precision": Precision,
    "recall": Recall,
    "density": Density,
    "coverage": Coverage,
}
NUM_FLOORS = 8
"""Real-vs-real values are means over this many random sets of training people."""

FILES = ("report.json", "report.md", "scores.png", "samples.png", "map.png")
"""What a report consists of."""

MAX_TRAIN = 500
"""Training images read for floors and nulls; more add nothing but memory."""


class RealImages(Protocol):
    """What evaluation needs of a data module."""

    @property
    def anatomy(self) -> str:
        """What images show: "brain" adds scores of brains."""
        ...

    @property
    def images_per_person(self) -> int:
        """How many images of each person `volumes` gives."""
        ...

    def volumes(self, split: Literal["train", "test"], one_per_person: bool = ..., limit: int | None = ...) -> Tensor:
        """n c *s in [-1, 1]."""
        ...


def fewest(
    num_samples: int, num_test: int, num_train: int, per_person: int, reconstructed: bool = False
) -> tuple[int, str]:
    """The smallest of three numbers (samples, test people, training people), and all of them in words.

    Args:
        num_samples: samples there are, or will be.
        num_test: test people.
        num_train: training people.
        per_person: images of each person.
        reconstructed: samples are reconstructions, so many of each person.

    InputError if one is too small for any score.
    """
    numbers = f"{num_samples} samples, {num_test} test and {num_train} training people"
    least = min(num_samples // (per_person if reconstructed else 1), num_test, num_train)
    if least < 2:
        raise InputError(f"evaluate: {numbers}, {per_person} image(s) each; give at least 2 of each.")
    return least, numbers


def metrics_for(
    train: Tensor, seams: tuple[int, list[int]] | None, views: Mapping[str, CentreSlice], anatomy: str = ""
) -> dict[str, Callable[[], TwoSampleMetric]]:
    """Name -> maker of every score; a generator gives `seams`, `extractors` the views, the data `anatomy`."""
    metrics: dict[str, Callable[[], TwoSampleMetric]] = {
        "ms_ssim": PairwiseMSSSIM,
        "ms_ssim_gap": MSSSIMGap,
        "ssim": PairwiseSSIM,
        "mmd_linear_biased": LinearMMD,
        "mmd_rbf_unbiased": RBFMMD,
        "sharpness": Sharpness,
        "mode_spread": partial(ModeSpread, torch.from_numpy(principal_components(train).components_)),
        "nearest_training": NearestTraining,
    }
    if anatomy == BRAIN and train.ndim == 5:
        metrics["ventricle_spread"] = VentricleSpread
    if seams and seams[1]:
        metrics["seam_ratio"] = partial(SeamRatio, *seams)
    metrics |= {f"frechet_{view}": partial(FrechetDistance, features) for view, features in views.items()}
    if views:
        together = AllViews(tuple(views.values()))
        metrics |= {name: partial(score, together) for name, score in OF_ALL_VIEWS.items()}
    classifiers = {view: network for view, network in views.items() if network.classifier}
    metrics |= {f"inception_score_{view}": partial(InceptionScore, network) for view, network in classifiers.items()}
    return metrics


def evaluate(
    samples: Tensor,
    data: RealImages,
    out: Path,
    seams: tuple[int, list[int]] | None = None,
    source: str = "",
    features: str = LEARNED,
    cache: Path | None = None,
    reconstructed: bool = False,
    seconds_per_image: float | None = None,
) -> dict[str, Any]:
    """Writes report.json, report.md and figures; returns the report.

    Args:
        samples: n c *s in [-1, 1].
        data: real images; the test people are the reference, the training people give floors and nulls.
        out: folder of the report.
        seams: where the parts of a sample meet, as `Generator.seams` gives it.
        source: where the samples came from, for the report.
        features: what feature scores are made of: `learned` from the training people, a TorchScript file, or `none`.
        cache: folder where learned features are kept.
        reconstructed: whether sample i is the reconstruction of the i-th image of the test people.
        seconds_per_image: that samples took, over all processes together, their files included.
    """
    outputs = report_files(out)
    outputs.check()
    real = data.volumes("test", one_per_person=True)
    train = data.volumes("train", one_per_person=True, limit=MAX_TRAIN)
    per_person = data.images_per_person
    people = len(real) // per_person, len(train) // per_person
    least, numbers = fewest(len(samples), *people, per_person, reconstructed)
    views: Mapping[str, CentreSlice] = {}
    if features != NONE and least >= LEAST_FOR_FEATURES:
        views = extractors(features, train, len(real), cache)
    metrics = metrics_for(train, seams, views, data.anatomy)
    rivals = nulls(train, len(samples))
    own = {name: measure(make, samples, train, real) for name, make in metrics.items()}
    for metric in own.values():
        metric.per_person, metric.tied = per_person, reconstructed
    report: dict[str, Any] = {
        "source": source,
        "images_per_person": per_person,
        "seconds_per_image": seconds_per_image,
        "metrics": {name: _row(own[name], make, train, real) for name, make in metrics.items()},
        "nulls": {
            null: {name: measure(make, images, train, real).compute().item() for name, make in metrics.items()}
            for null, images in rivals.items()
        },
        "ranking": {view: ranking(extract, real) for view, extract in views.items()},
    }
    if reconstructed:
        report["reconstruction"] = _paired(samples, real, per_person)
    if features != NONE and not views:
        report["note"] = f"No scores of features: {numbers}; they need {LEAST_FOR_FEATURES} of each."
    nearest = own["nearest_training"]
    assert isinstance(nearest, NearestTraining)
    pairs = enumerate(zip(nearest.places.tolist(), nearest.likeness.tolist(), strict=True))
    report["nearest"] = [{"sample": i, "training_image": place, "ms_ssim": value} for i, (place, value) in pairs]
    outputs.claim()
    _write(out, report, {"samples": samples, "nearest": train[nearest.places], "unseen": real}, rivals, views)
    outputs.end()
    return report


def report_files(out: Path) -> Outputs:
    """The files of a report in its folder."""
    return Outputs(out, "evaluate", FILES)


def measure(make: Callable[[], TwoSampleMetric], images: Tensor, train: Tensor, real: Tensor) -> TwoSampleMetric:
    """A metric that has seen images and the people it compares them with."""
    metric = make()
    metric.update(images, real=False)
    metric.update(train if metric.against == "train" else real, real=True)
    return metric


def floor(make: Callable[[], TwoSampleMetric], train: Tensor, real: Tensor, num: int) -> float:
    """The score that real images get: mean over random sets of training people, as many as there are samples."""
    sets = [np.random.default_rng(k).permutation(len(train))[:num] for k in range(NUM_FLOORS)]
    return float(np.mean([measure(make, train[chosen], train, real).compute().item() for chosen in sets]))


def _row(metric: TwoSampleMetric, make: Callable[[], TwoSampleMetric], train: Tensor, real: Tensor) -> dict[str, Any]:
    """The score of samples, with its interval and the value that real images have."""
    estimate = metric.estimate()
    num_samples, num_real = (sum(map(len, seen)) for seen in (metric.samples, metric.real))
    return {
        "value": estimate.value,
        "ci95": list(estimate.ci95),
        "real_vs_real": measure(make, real, train, real).compute().item()
        if metric.of_one_set
        else floor(make, train, real, num_samples),
        "num_samples": num_samples,
        "num_real": num_real,
        "features": metric.features,
    }


def _paired(outputs: Tensor, targets: Tensor, per_person: int) -> dict[str, Any]:
    """What reconstructions are worth; of whole people alone."""
    num = len(outputs) // per_person * per_person
    rows = {}
    for name, metric in {"psnr": PairedPSNR(), "ssim": PairedSSIM(), "ms_ssim": PairedMSSSIM()}.items():
        metric.per_person = per_person
        metric.update(outputs[:num], targets[:num])
        estimate = metric.estimate()
        rows[name] = {"value": estimate.value, "ci95": list(estimate.ci95), "features": metric.features}
    return rows


def _write(
    out: Path,
    report: dict[str, Any],
    images: Mapping[str, Tensor],
    rivals: Mapping[str, Tensor],
    views: Mapping[str, CentreSlice],
) -> None:
    """report.json, report.md and the figures; `images` are samples, nearest and unseen."""
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    write_atomically(out / "report.md", as_markdown(report))
    save_scores(out / "scores.png", report)
    what = "reconstructions" if "reconstruction" in report else "samples"
    titles = (what, "training people most like them", "data, unseen people")
    rows = dict(zip(titles, images.values(), strict=True))
    save_figure(out / "samples.png", rows | {f"null: {name}": made for name, made in rivals.items()})
    seen = AllViews(tuple(views.values())) if views else _voxels
    save_map(out / "map.png", {name: seen(some).numpy() for name, some in images.items()})
    print(f"report: {out / 'report.md'}; figures: {out / 'samples.png'}, scores.png, map.png")


def nulls(train: Tensor, num: int) -> dict[str, Tensor]:
    """Name -> `num` images (n c *s in [-1, 1]) that know the training images only superficially."""
    random = torch.Generator().manual_seed(0)
    shape = (num, *train.shape[1:])
    noise = torch.randn(shape, generator=random)
    pca = principal_components(train)
    scores = pca.transform(train.flatten(1).numpy())
    drawn = np.random.default_rng(0).normal(size=(num, scores.shape[1])) * scores.std(axis=0, ddof=1)
    return {
        "noise": (train.mean() + train.std() * noise).clamp(-1, 1),
        "mean+noise": (train.mean(0) + train.std(0) * noise).clamp(-1, 1),
        "pca_gaussian": torch.from_numpy(pca.inverse_transform(drawn)).float().view(shape).clamp(-1, 1),
    }


def principal_components(train: Tensor) -> Any:
    """The fitted PCA of scikit-learn, of at most `NUM_COMPONENTS`."""
    from sklearn.decomposition import PCA

    pca = PCA(min(NUM_COMPONENTS, len(train) - 1), svd_solver="randomized", random_state=0)
    return pca.fit(train.flatten(1).numpy())


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table, a row for each score."""
    names = list(report["nulls"])
    lines = [
        f"# Evaluation of {report['source']}",
        "",
        "| score | samples | 95 % interval | real vs real | " + " | ".join(names) + " | n | from |",
        "|---|---|---|---|" + "---|" * len(names) + "---|---|",
    ]
    for name, row in report["metrics"].items():
        null_cells = " | ".join(f"{report['nulls'][null][name]:.4g}" for null in names)
        low, high = row["ci95"]
        lines.append(
            f"| {name} | {row['value']:.4g} | {low:.4g} to {high:.4g} | {row['real_vs_real']:.4g} | {null_cells} "
            f"| {row['num_samples']} vs {row['num_real']} | {row['features']} |"
        )
    for name, row in report.get("reconstruction", {}).items():
        low, high = row["ci95"]
        lines.append(
            f"| reconstruction {name} | {row['value']:.4g} | {low:.4g} to {high:.4g} | | | | | | {row['features']} |"
        )
    if report["seconds_per_image"] is not None:
        lines += ["", f"A sample took {report['seconds_per_image']:.3g} s, its file included."]
    if "note" in report:
        lines += ["", report["note"]]
    if report["ranking"]:
        lines += [
            "",
            "Fréchet distance of unseen people from themselves, distorted a little, more and much:",
            "",
            "| features | distortion | a little | more | much | ranked |",
            "|---|---|---|---|---|---|",
        ]
        for view, distortions in report["ranking"].items():
            for name, distances in distortions.items():
                cells = " | ".join(f"{distance:.4g}" for distance in distances)
                ranked = "yes" if 0 < distances[0] < distances[1] < distances[2] else "NO"
                lines.append(f"| {view} | {name} | {cells} | {ranked} |")
    lines += [
        "",
        f"Real people: the test split, {report['images_per_person']} image(s) each. Intervals: jackknife over people. "
        "Audit: none.",
        "",
        "Best is a score as near to real vs real as possible. A linear null may match the mean image, and so the MMDs, "
        "better than a model that makes sharp images. nearest_training compares with training people: above real vs "
        "real, samples are nearer to them than unseen people are.",
        "",
        "samples.png shows real people beside the samples: it is as private as the scans.",
        "",
        "![samples](samples.png)",
        "![scores](scores.png)",
        "![map](map.png)",
        "",
    ]
    return "\n".join(lines)


def _voxels(images: Tensor) -> Tensor:
    return images.flatten(1)
