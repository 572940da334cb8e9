"""The scores of a report, by what they are of: a score is added by one entry in `SCORES` or `PAIRS`.

images    whole images, samples against real ones
brains    volumes of brains
slices    neighbouring slices, where a method makes images in stages
view      features of one view; the view is added to the score's name
views     features of all views together
classes   classes that a network of features knows, of one view
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen import metrics
from lit_medgen.batch import Images
from lit_medgen.errors import InputError
from lit_medgen.evaluation.checks import NONE
from lit_medgen.evaluation.pair_nulls import PairNulls
from lit_medgen.metrics import PairedMetric, TwoSampleMetric
from lit_medgen.metrics.base import IntervalMetric, mean_over_people
from lit_medgen.metrics.extractors import LEARNED, AllViews, CentreSlice, num_dimensions, perceptual
from lit_medgen.metrics.known import Known

PAIRS_AT_ONCE = 8


@dataclass(frozen=True)
class Given:
    """What a score may be made from.

    Attributes:
        known: results that scores share, and the device.
        train: images of the training people.
        modes: k d, leading principal components of flattened training images.
        anatomy: what the images show, as `TrainingData.anatomy` says it.
        seams: where the parts of a sample meet, as `Generator.seams` gives it.
        source: of features, as `evaluate --features`.
        views: view -> features, as `extractors` gives them; empty where there are none.
        cache: folder where learned networks are kept.
        num_real: people that learned features are asked about.
        features: those of this very score, where it is of features.
        source_of: what samples were made from, of true images, as `Generator.source_of` gives it; None: not that.
        nulls: what stands in the place of samples of pairs without a model; None: the mean training image alone.
    """

    known: Known
    train: Images
    modes: Tensor
    anatomy: str = ""
    seams: tuple[int, list[int]] | None = None
    source: str = NONE
    views: Mapping[str, CentreSlice] = field(default_factory=dict)
    cache: Path | None = None
    num_real: int = 0
    features: Any = None
    source_of: Callable[[Tensor], Tensor] | None = None
    nulls: PairNulls | None = None


def _of_each_view(given: Given) -> dict[str, Given]:
    return {f"_{view}": replace(given, features=features) for view, features in given.views.items()}


KINDS: dict[str, Callable[[Given], dict[str, Given]]] = {
    "images": lambda given: {"": given},
    "brains": lambda given: {"": given} if given.anatomy == "brain" and given.train.read(range(1)).ndim == 5 else {},
    "slices": lambda given: {"": given} if given.seams and given.seams[1] else {},
    "view": _of_each_view,
    "views": lambda given: {"": replace(given, features=AllViews(tuple(given.views.values())))} if given.views else {},
    "classes": lambda given: {name: some for name, some in _of_each_view(given).items() if some.features.classifier},
}
"""What scores are of -> what is added to their names -> what each is made from; empty where there is nothing to score.
"""

SCORES: dict[str, dict[str, Callable[[Given], TwoSampleMetric]]] = {
    "images": {
        "ms_ssim": lambda given: metrics.PairwiseMSSSIM(given.known),
        "ms_ssim_gap": lambda given: metrics.MSSSIMGap(given.known),
        "ssim": lambda given: metrics.PairwiseSSIM(given.known),
        "mmd_linear_biased": lambda given: metrics.LinearMMD(given.known),
        "mmd_rbf_unbiased": lambda given: metrics.RBFMMD(given.known),
        "sharpness": lambda given: metrics.Sharpness(given.known),
        "mode_spread": lambda given: metrics.ModeSpread(given.modes, given.known),
        "nearest_training": lambda given: metrics.NearestTraining(given.known),
    },
    "brains": {"ventricle_spread": lambda given: metrics.VentricleSpread(given.known)},
    "slices": {"seam_ratio": lambda given: metrics.SeamRatio(*(given.seams or (0, [])), known=given.known)},
    "view": {"frechet": lambda given: metrics.FrechetDistance(given.features, given.known)},
    "views": {
        "kernel_distance": lambda given: metrics.KernelDistance(given.features, given.known),
        "precision": lambda given: metrics.Precision(given.features, known=given.known),
        "recall": lambda given: metrics.Recall(given.features, known=given.known),
        "density": lambda given: metrics.Density(given.features, known=given.known),
        "coverage": lambda given: metrics.Coverage(given.features, known=given.known),
    },
    "classes": {"inception_score": lambda given: metrics.InceptionScore(given.features, given.known)},
}
"""What scores are of -> name -> what makes a score of samples against real images."""


NODULES: dict[str, Callable[[Given], TwoSampleMetric]] = {
    "nodule_frechet": lambda given: metrics.FrechetDistance(given.features, given.known),
    "nodule_kernel_distance": lambda given: metrics.KernelDistance(given.features, given.known),
}
"""Name -> what makes a score of crops around nodules, from features of a view; that is added to its name in 3D."""


PAIRS: dict[str, Callable[[Given], PairedMetric | None]] = {
    "psnr": lambda given: metrics.PairedPSNR(),
    "mae": lambda given: metrics.PairedMAE(),
    "ssim": lambda given: metrics.PairedSSIM(),
    "ms_ssim": lambda given: metrics.PairedMSSSIM(),
    "consistency": lambda given: metrics.Consistency(given.source_of) if given.source_of else None,
    "perceptual": lambda given: None if given.source in (LEARNED, NONE) else perceptual(given.source, given.train),
    "perceptual_learned": lambda given: _perceptual_learned(given),
}
"""Name -> what makes a score of samples and their targets; None where there is none."""


def metrics_for(given: Given) -> dict[str, Callable[[], TwoSampleMetric]]:
    """Name -> maker of every score of samples against real images that there is something for."""
    return {
        f"{name}{added}": partial(make, some)
        for kind, makers in SCORES.items()
        for added, some in KINDS[kind](given).items()
        for name, make in makers.items()
    }


def nodule_metrics_for(given: Given) -> dict[str, Callable[[], TwoSampleMetric]]:
    """The same of crops around nodules, from what is made of the crops."""
    return {
        name + (added if len(given.views) > 1 else ""): partial(make, some)
        for added, some in _of_each_view(given).items()
        for name, make in NODULES.items()
    }


def _perceptual_learned(given: Given) -> PairedMetric | None:
    """The distance of activations of the network that learned features are made of, for 2D images."""
    if given.source != LEARNED or "image" not in given.views:
        return None
    return perceptual(LEARNED, given.train, given.cache, num_dimensions(given.num_real))


def of_pairs(
    samples: Images, real: Images, targets: Sequence[int | None], given: Given, kinds: Mapping[int, int] | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Name -> score, interval and features of samples that have targets, and notes of scores that could not be made.

    Beside each stands the same of the real images of other people in the place of the samples, and of the nulls of
    pairs ("baselines"), with intervals of their own.

    Args:
        samples: n c *s in [-1, 1].
        real: images of the test people.
        targets: for each sample the index of its target among them; None: it has none.
        given: what scores are made from.
        kinds: index of a real image -> what it shows; the other person's image shows the same, if there is one.
    """
    made: dict[str, PairedMetric] = {}
    notes: list[str] = []
    for name, make in PAIRS.items():
        try:
            if metric := make(given):
                made[name] = metric
        except InputError as error:  # the features of a file may be enough for all other scores
            notes.append(f"No {name} distance: {error}")
    pairs = [(i, target) for i, target in enumerate(targets) if target is not None]
    others = _of_others(sorted({target for _, target in pairs}), real.people, kinds or {})
    floors: dict[str, list[Tensor]] = {name: [] for name in made}
    nulls = given.nulls or PairNulls(given.train)
    beside: dict[str, dict[str, _Scored]] = {name: defaultdict(_Scored) for name in made}
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        sources, aims = (list(part) for part in zip(*pairs[start : start + PAIRS_AT_ONCE], strict=True))
        outputs, images = samples.read(sources), real.read(aims)
        for metric in made.values():
            metric.update(outputs, images, [real.people[aim] for aim in aims])
        for null, (there, simple) in nulls(images, aims).items():
            for name, metric in made.items():
                values = metric.values(simple, images[there]).double().cpu()
                beside[name][null].add(values, [real.people[aims[row]] for row in there])
    for start in range(0, len(others), PAIRS_AT_ONCE):
        strangers, aims = (list(part) for part in zip(*others[start : start + PAIRS_AT_ONCE], strict=True))
        outputs, images = real.read(strangers), real.read(aims)
        for name, metric in made.items():
            floors[name].append(metric.values(outputs, images).double().cpu())
    rows = {}
    for name, metric in made.items():
        value = float(torch.cat(floors[name]).mean()) if others else None
        rows[name] = row_of(metric, num_pairs=len(pairs)) | {"real_vs_real": value, "num_others": len(others)}
        rows[name]["baselines"] = {null: of.row() for null, of in beside[name].items()}
    return rows, notes


@dataclass
class _Scored:
    """The scores of pairs of a null, n in parts, and whose each is."""

    values: list[Tensor] = field(default_factory=list)
    people: list[str] = field(default_factory=list)

    def add(self, values: Tensor, people: Sequence[str]) -> None:
        self.values.append(values)
        self.people.extend(people)

    def row(self) -> dict[str, Any]:
        found = mean_over_people(torch.cat(self.values), self.people)
        return {"value": found.value, "ci95": list(found.ci95), "num_pairs": len(self.people)}


def _of_others(targets: Sequence[int], people: Sequence[str], kinds: Mapping[int, int]) -> list[tuple[int, int]]:
    """For each target the index of the next image of another person, of the same kind if there is one, and its own."""
    pairs = []
    for k, target in enumerate(targets):
        strangers = [i for i in [*targets[k + 1 :], *targets[:k]] if not people[i] or people[i] != people[target]]
        alike = [i for i in strangers if kinds.get(i) == kinds.get(target)]
        pairs += [((alike or strangers)[0], target)] if strangers else []
    return pairs


def row_of(metric: IntervalMetric, **numbers: float) -> dict[str, Any]:
    """What a report says of a score: value and interval, numbers that belong to it, what it is of, what is best."""
    estimate = metric.estimate()
    row = {"value": estimate.value, "ci95": list(estimate.ci95), **numbers, "features": metric.features}
    return row | {"best": metric.best}
