"""Scores of the surroundings of nodules, where images are made from label maps that have some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_medgen.batch import Images, TrainingData
from lit_medgen.evaluation.checks import NONE
from lit_medgen.evaluation.held import Sets, quick
from lit_medgen.evaluation.nodules import Nodules
from lit_medgen.evaluation.scores import Given, nodule_metrics_for, of_pairs
from lit_medgen.images.nodules import nodule_classes
from lit_medgen.metrics import TwoSampleMetric
from lit_medgen.metrics.base import images_of_people
from lit_medgen.metrics.extractors import extractors
from lit_medgen.metrics.known import Known


@dataclass(frozen=True)
class Part:
    """Scores of a part of the images.

    Attributes:
        metrics: name -> what makes a score of samples against real images.
        sets: that part of the images of the report.
        of: takes the part of other images that stand in the place of the samples.
    """

    metrics: Mapping[str, Callable[[], TwoSampleMetric]]
    sets: Sets
    of: Callable[[Images], Images]


@dataclass(frozen=True)
class NoduleScores:
    """Scores of crops around nodules.

    Attributes:
        part: those against real nodules; None where there are too few.
        pairs: name -> row of a score of samples and their targets.
        notes: what could not be scored.
    """

    part: Part | None
    pairs: Mapping[str, Mapping[str, Any]]
    notes: list[str]


def nodule_scores(
    sets: Sets,
    data: TrainingData,
    targets: Sequence[int | None] | None,
    features: str,
    device: torch.device,
    enough: int,
) -> NoduleScores:
    """The scores of samples that were made from label maps with nodules; none where there are no such.

    Args:
        sets: the images of the report.
        data: whose label maps they were made from.
        targets: as `evaluate` takes them.
        features: as `evaluate` takes them.
        device: where scores are computed.
        enough: nodules, of so many people, that scores of features need.
    """
    if targets is None or not nodule_classes(data.spec.classes):
        return NoduleScores(None, {}, [])
    of_test = Nodules.of(data.requests("test"), data.spec, limit=len(sets.real))
    of_train = Nodules.of(data.requests("train"), data.spec, limit=len(sets.train))

    def of(images: Images) -> Images:
        return quick(of_test.cropped(images, targets))

    crops = Sets(of(sets.samples), quick(of_train.cropped(sets.train, range(len(sets.train)))), _real(of_test, sets))
    numbers = {
        name: len(images_of_people(some.people))
        for name, some in (("samples", crops.samples), ("test people", crops.real), ("training people", crops.train))
    }
    words = ", ".join(f"{number} {name}" for name, number in numbers.items())
    if min(numbers.values()) < 2:
        return NoduleScores(None, {}, [f"No scores of nodules: {words} have one; they need 2 of each."])
    known, notes, views = Known(device), [], {}
    if features != NONE and min(numbers.values()) >= enough:
        views = extractors(features, crops.train, len(crops.real), _cache(data), device)
    elif features != NONE:
        notes.append(f"No scores of features of nodules: {words} have one; they need {enough} of each.")
    given = Given(known, crops.train, torch.empty(0), "", None, features, views, _cache(data), len(crops.real))
    metrics = nodule_metrics_for(given)
    place = {index: k for k, index in enumerate(of_test.middles)}
    aims = [place[target] for target in targets if target in place]
    kinds = {k: of_test.classes[index] for index, k in place.items()}
    pairs, missing = of_pairs(crops.samples, crops.real, aims, given, kinds)
    named = {f"nodule_{name}": row for name, row in pairs.items()}
    return NoduleScores(Part(metrics, crops, of) if metrics else None, named, [*notes, *missing])


def _real(nodules: Nodules, sets: Sets) -> Images:
    """The crops of real test images."""
    return quick(nodules.cropped(sets.real, range(len(sets.real))))


def _cache(data: TrainingData) -> Path:
    return data.cache / "features"
