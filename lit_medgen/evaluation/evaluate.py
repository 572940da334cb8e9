"""`evaluate`: samples against real people, with floors, intervals and nulls, as a report.

Every score stands beside its real-vs-real value (as many training people as samples against the test people: what a
perfect model would get), a jackknife interval, and the same score of the nulls (`lit_medgen.evaluation.nulls`),
which any model must beat.

Scores share what they are made of (`lit_medgen.metrics.known`): features of an image and likeness of a pair are
computed once, on the model's device, from images that go there in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.errors import InputError
from lit_medgen.evaluation.nulls import NUM_COMPONENTS, null_makers, nulls, principal_components
from lit_medgen.evaluation.report import NUM_SHOWN, verdict, write_report
from lit_medgen.files import Outputs
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
    PairedMetric,
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
from lit_medgen.metrics.extractors import LEARNED, AllViews, CentreSlice, extractors, perceptual, ranking
from lit_medgen.metrics.features import features_of
from lit_medgen.metrics.known import Known, products

__all__ = ["NUM_COMPONENTS", "evaluate", "floor", "measure", "metrics_for", "nulls"]

CPU = torch.device("cpu")
NONE = "none"
RANGE_TOLERANCE = 1e-3
"""By which samples may lie outside [-1, 1]."""
BRAIN = "brain"
MIN_FOR_FEATURES = 8
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

    def images(self, split: Literal["train", "test"], one_per_person: bool = ..., limit: int | None = ...) -> Images:
        """Of a split."""
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
        raise InputError(
            f"evaluate: {numbers}, {per_person} image(s) each; give at least 2 of each: --num says how many "
            "samples are drawn, data.init_args.fractions and seed who is tested."
        )
    return least, numbers


def metrics_for(
    modes: Tensor, seams: tuple[int, list[int]] | None, views: Mapping[str, CentreSlice], brains: bool
) -> dict[str, Callable[[], TwoSampleMetric]]:
    """Name -> maker of every score; `seams` as a generator gives it, views by `extractors`, modes: k d."""
    metrics: dict[str, Callable[[], TwoSampleMetric]] = {
        "ms_ssim": PairwiseMSSSIM,
        "ms_ssim_gap": MSSSIMGap,
        "ssim": PairwiseSSIM,
        "mmd_linear_biased": LinearMMD,
        "mmd_rbf_unbiased": RBFMMD,
        "sharpness": Sharpness,
        "mode_spread": partial(ModeSpread, modes),
        "nearest_training": NearestTraining,
    }
    if brains:
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
    prior: Callable[[], Tensor] | None = None,
    device: torch.device = CPU,
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
        prior: makes as many images of the model's prior, if it has one: a null of its own.
        device: where scores are computed; on the CPU what needs float64 and a device that has none (MPS).
    """
    outputs = report_files(out)
    outputs.check()
    _refuse_other_range(samples)
    real = data.images("test", one_per_person=True).all()
    train = data.images("train", one_per_person=True, limit=MAX_TRAIN).all()
    per_person = data.images_per_person
    people = len(real) // per_person, len(train) // per_person
    least, numbers = fewest(len(samples), *people, per_person, reconstructed)
    views: Mapping[str, CentreSlice] = {}
    if features != NONE and least >= MIN_FOR_FEATURES:
        views = extractors(features, train, len(real), cache, device)
    known, pca = Known(device), principal_components(train)
    modes = torch.from_numpy(pca.components_).double()
    metrics = metrics_for(modes, seams, views, brains=data.anatomy == BRAIN and train.ndim == 5)
    own = {name: measure(make, samples, train, real, known) for name, make in metrics.items()}
    for metric in own.values():
        metric.per_person, metric.tied = per_person, reconstructed
    rivals = null_makers(train, len(samples), pca) | ({"prior": prior} if prior else {})
    null_scores, shown = _of_nulls(rivals, metrics, train, real, known)
    report: dict[str, Any] = {
        "source": source,
        "images_per_person": per_person,
        "seconds_per_image": seconds_per_image,
        "metrics": {name: _row(own[name], make, train, real) for name, make in metrics.items()},
        "floors": {name: _of_floor(metric, train, real) for name, metric in own.items()},
        "conservative": [name for name, metric in own.items() if metric.conservative],
        "nulls": null_scores,
        "ranking": ranking(views, real),
    }
    notes: list[str] = []
    if reconstructed:
        report["reconstruction"], missing = _of_reconstructions(samples, real, train, per_person, features)
        notes += missing
    if features != NONE and not views:
        notes.append(f"No scores of features: {numbers}; they need {MIN_FOR_FEATURES} of each.")
    if notes:
        report["note"] = " ".join(notes)
    nearest = own["nearest_training"]
    assert isinstance(nearest, NearestTraining)
    pairs = zip(nearest.places.tolist(), nearest.likeness.tolist(), strict=True)
    report["nearest"] = [
        {"sample": i, "training_image": index, "ms_ssim": value} for i, (index, value) in enumerate(pairs)
    ]
    report["verdict"] = verdict(report)
    rows = {
        "reconstructions" if reconstructed else "samples": samples[:NUM_SHOWN],
        "training people most like them": train[nearest.places[:NUM_SHOWN]],
        "data, unseen people": real[:NUM_SHOWN],
    }
    points = _points((samples, train, real), views, known)
    points = {"samples": points["samples"], "nearest": points["train"][nearest.places], "unseen": points["unseen"]}
    outputs.claim()
    write_report(out, report, rows | {f"null: {name}": images for name, images in shown.items()}, points)
    outputs.end()
    return report


def _refuse_other_range(samples: Tensor) -> None:
    """InputError if samples do not lie in [-1, 1], or are NaN."""
    low, high = samples.aminmax()
    if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # so NaN is refused too
        raise InputError(f"evaluate: samples lie from {low:.4g} to {high:.4g}; scale them to [-1, 1], as the data is.")


def report_files(out: Path) -> Outputs:
    """The files of a report in its folder."""
    return Outputs(out, "evaluate", FILES)


def measure(
    make: Callable[[], TwoSampleMetric], images: Tensor, train: Tensor, real: Tensor, known: Known | None = None
) -> TwoSampleMetric:
    """A metric that has seen images and the people it compares them with."""
    metric = make()
    metric.known = known or metric.known
    metric.update(images, real=False)
    metric.update(train if metric.against == "train" else real, real=True)
    return metric


def floor(
    make: Callable[[], TwoSampleMetric], train: Tensor, real: Tensor, num: int, known: Known | None = None
) -> float:
    """The score that real images get: mean over random sets of training people, as many as there are samples."""
    metric = make()
    metric.known = known or metric.known
    sets = _floor_sets(len(train), num)
    # The same tensor for every score, so that its pairs are known.
    metric.wanted = metric.known(_pairs_within, len(train), num)
    statistics, every = metric.statistics(train, real), torch.arange(len(real))
    return float(np.mean([metric.score(statistics, chosen, every) for chosen in sets]))


def _floor_sets(num_train: int, num: int) -> list[Tensor]:
    """Indices of the training images in each set of the floor; one set where it holds them all."""
    sets = [torch.from_numpy(np.random.default_rng(k).permutation(num_train)[:num]) for k in range(NUM_FLOORS)]
    return sets if num < num_train else sets[:1]


def _pairs_within(num_train: int, num: int) -> Tensor:
    """n n, bool: the pairs of training images that are together in some set of the floor."""
    wanted = torch.zeros(num_train, num_train, dtype=torch.bool)
    for chosen in _floor_sets(num_train, num):
        wanted[chosen[:, None], chosen] = True
    return wanted


def _of_floor(metric: TwoSampleMetric, train: Tensor, real: Tensor) -> dict[str, Any]:
    """What a floor is the mean of: so many sets of so many images, of which people."""
    if metric.of_one_set:
        return {"sets": 1, "images": len(real), "people": "test"}
    sets = _floor_sets(len(train), sum(map(len, metric.samples)))
    return {"sets": len(sets), "images": len(sets[0]), "people": "train"}


def _of_nulls(
    rivals: Mapping[str, Callable[[], Tensor]],
    metrics: Mapping[str, Callable[[], TwoSampleMetric]],
    train: Tensor,
    real: Tensor,
    known: Known,
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Null -> its scores, and null -> the first of its images; one null is in memory at a time."""
    scores, shown = {}, {}
    for null, make_images in rivals.items():
        images = make_images()
        scores[null] = {
            name: measure(make, images, train, real, known).compute().item() for name, make in metrics.items()
        }
        shown[null] = images[:NUM_SHOWN].clone()
        known.forget(images)
    return scores, shown


def _row(metric: TwoSampleMetric, make: Callable[[], TwoSampleMetric], train: Tensor, real: Tensor) -> dict[str, Any]:
    """The score of samples, with its interval and the value that real images have."""
    estimate = metric.estimate()
    num_samples, num_real = (sum(map(len, seen)) for seen in (metric.samples, metric.real))
    return {
        "value": estimate.value,
        "ci95": list(estimate.ci95),
        "real_vs_real": measure(make, real, train, real, metric.known).compute().item()
        if metric.of_one_set
        else floor(make, train, real, num_samples, metric.known),
        "num_samples": num_samples,
        "num_real": num_real,
        "features": metric.features,
    }


def _of_reconstructions(
    outputs: Tensor, targets: Tensor, train: Tensor, per_person: int, features: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Name -> score, interval and features of reconstructions against their originals, of whole people alone.

    With it a note if the features make no perceptual distance: they are enough for all other scores.
    """
    more: dict[str, PairedMetric] = {}
    notes: list[str] = []
    try:
        more = {} if features in (LEARNED, NONE) else {"perceptual": perceptual(features, train)}
    except InputError as error:
        notes.append(f"No perceptual distance: {error}")
    num = len(outputs) // per_person * per_person
    rows = {}
    metrics: dict[str, PairedMetric] = {"psnr": PairedPSNR(), "ssim": PairedSSIM(), "ms_ssim": PairedMSSSIM(), **more}
    for name, metric in metrics.items():
        metric.per_person = per_person
        metric.update(outputs[:num], targets[:num])
        estimate = metric.estimate()
        rows[name] = {"value": estimate.value, "ci95": list(estimate.ci95), "features": metric.features}
    return rows, notes


def _points(
    sets: tuple[Tensor, Tensor, Tensor], views: Mapping[str, CentreSlice], known: Known
) -> dict[str, np.ndarray[Any, Any]]:
    """Samples, training and real images as points, n d each: their features, or as far apart as their voxels are."""
    names = ("samples", "train", "unseen")
    if views:
        together = AllViews(tuple(views.values()))
        return {name: known(features_of, together, some).numpy() for name, some in zip(names, sets, strict=True)}
    blocks = [[known(products, a, b, known.device) for b in sets[i:]] for i, a in enumerate(sets)]
    gram = torch.cat([torch.cat([*(blocks[k][i - k].T for k in range(i)), *blocks[i]], dim=1) for i in range(3)])
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    values, directions = torch.linalg.eigh(centred)
    points = (directions * values.clamp(min=0).sqrt()).flip(1).float()
    return {name: some.numpy() for name, some in zip(names, points.split([*map(len, sets)]), strict=True)}
