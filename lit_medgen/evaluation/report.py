"""`evaluate`: samples against real people, with floors, intervals and nulls, as a report.

Every score stands beside its real-vs-real value (`lit_medgen.evaluation.floors`), a jackknife interval over people, and
the same score of the nulls (`lit_medgen.evaluation.nulls`), which any model must beat. `lit_medgen.evaluation.scores`
lists the scores by what they are of.

Images stream, statistics stay: images are read in blocks, as often as they are needed, and what scores are made of
(features, likeness of pairs) is computed once and kept (`lit_medgen.metrics.known`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen import __version__
from lit_medgen.batch import Images, Requests, Score, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.evaluation.agreement import agreements
from lit_medgen.evaluation.checks import NONE, report_files, smallest_set, within_range
from lit_medgen.evaluation.control import controls
from lit_medgen.evaluation.figures import (
    NUM_SHOWN,
    UNSEEN,
    Figures,
    points_of,
    rows_of,
    write_predictions,
    write_report,
)
from lit_medgen.evaluation.floors import measure, real_vs_real
from lit_medgen.evaluation.held import Scratch, Sets, quick
from lit_medgen.evaluation.judges import Judging
from lit_medgen.evaluation.markdown import verdict
from lit_medgen.evaluation.nodule_scores import Part, nodule_scores
from lit_medgen.evaluation.nulls import null_makers, principal_components
from lit_medgen.evaluation.pair_nulls import PairNulls
from lit_medgen.evaluation.pictures import pictures_of
from lit_medgen.evaluation.quartets import FOLDER as STUDY
from lit_medgen.evaluation.quartets import Shown, chosen, write_study
from lit_medgen.evaluation.reference import reference_of
from lit_medgen.evaluation.scores import Given, metrics_for, of_pairs, row_of
from lit_medgen.evaluation.strips import strips
from lit_medgen.metrics import TwoSampleMetric, nearest_by_ms_ssim
from lit_medgen.metrics.base import images_of_people
from lit_medgen.metrics.extractors import LEARNED, CentreSlice, extractors, ranking
from lit_medgen.metrics.known import Known
from lit_medgen.networks.conditioning import Covariates

CPU = torch.device("cpu")
MIN_FOR_FEATURES = 8
"""Samples, test and training people: below that, neighbours and covariances mean nothing."""
MAX_TRAIN = 500
"""Training people that floors and nulls are made of; more add nothing but time."""

Makers = Mapping[str, Callable[[], TwoSampleMetric]]


@dataclass(frozen=True)
class Maker:
    """What made the samples, as far as a report says it.

    Attributes:
        method: its class.
        name: of its run.
        parameters: of its networks, without those that only training needs; None: not counted.
        network_evaluations: calls of its networks for an image; None: not counted.
        seconds_per_image: over all processes together, files included; None: not measured.
        seams: where the parts of a sample meet, as `Generator.seams` gives it.
        prior: seeds -> what it makes of its prior alone, or None, as `Generator.prior_samples` gives it.
        scores: scores of its own, as `Method.scores` gives them.
        plots: what it plots of these, as `Method.plots` gives it.
        predictions: what it predicted for these, as `Method.predictions` gives it.
        trajectory: makes one sample at steps of its making, k c *s, or None, as `Generator.trajectory` gives it.
        show: makes the images of requests, a batch at a time, for pictures of what each attribute does; None: there
            are none.
        attributes: those that images can be asked to show.
        covariates: which of them are categories and labels.
        source_of: what samples are made from, of true images, as `Generator.source_of` gives it; None: not that.
        baselines: what can be made of it without a model, as `Generator.baselines` gives it.
        source: index of a test image -> its source, as `PairNulls` takes it.
        like: requests like the test people, with all that its images must be made from; None: nothing must be given.
    """

    method: str = ""
    name: str = ""
    parameters: int | None = None
    network_evaluations: float | None = None
    seconds_per_image: float | None = None
    seams: tuple[int, list[int]] | None = None
    prior: Callable[[Sequence[int]], Tensor | None] | None = None
    scores: Callable[[TrainingData], Mapping[str, Score]] | None = None
    plots: Callable[[], Mapping[str, Callable[[Path], None]]] | None = None
    predictions: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    trajectory: Callable[[], Tensor | None] | None = None
    show: Callable[[Requests], Iterable[Tensor]] | None = None
    attributes: Sequence[str] = ()
    covariates: Covariates = field(default_factory=Covariates)
    source_of: Callable[[Tensor], Tensor] | None = None
    baselines: Callable[[Tensor], Mapping[str, Tensor]] = lambda images: {}
    source: Callable[[int], Tensor | None] | None = None
    like: Requests | None = None


def evaluate(
    samples: Images | None,
    data: TrainingData,
    out: Path,
    maker: Maker | None = None,
    source: str = "",
    features: str = LEARNED,
    targets: Sequence[int | None] | None = None,
    device: torch.device = CPU,
    made_from: Sequence[Mapping[str, Any]] = (),
    judging: Judging | None = None,
    quartets: int = 0,
) -> dict[str, Any]:
    """Writes report.json, report.md, figures and predictions.csv, where predictions are made; returns the report.

    Args:
        samples: images in [-1, 1], read in blocks; their people are those whose images they were made from. None: the
            method makes no images, and its own scores are all there is.
        data: real images; the test people are the reference, the training people give floors and nulls.
        out: folder of the report.
        maker: what made the samples.
        source: where the samples came from, for the report.
        features: what feature scores are made of: `learned` from the training people, a TorchScript file, or `none`.
        targets: for each sample the index of the image that it should be, among `data.images("test",
            one_per_person=True)`, or None; None: none has such.
        device: where scores are computed; on the CPU what needs float64 and a device that has none (MPS).
        made_from: for each sample what it was made from, as `Requests.made_from` says it; empty: nothing is known.
        judging: a judge of what images show, and what makes images for it; None: there is none.
        quartets: how many of a reader study are written beside.
    """
    outputs, maker = report_files(out), maker or Maker()
    outputs.check()
    four_each: list[list[Shown]] = []
    if quartets and samples is not None:  # refused before any score is computed
        four_each = chosen(quartets, len(data.images("test", one_per_person=True)), len(samples))
    own = maker.scores(data) if maker.scores else {}
    plots, predictions = maker.plots() if maker.plots else {}, maker.predictions() if maker.predictions else ()
    if samples is None and not own:
        raise InputError(f"evaluate: {maker.method} makes no images and has no scores of its own: nothing to report.")
    report: dict[str, Any] = {
        "lit_medgen": __version__,
        "source": source,
        "name": maker.name,
        "method": maker.method,
        "data": data.digest,
        "parameters": maker.parameters,
        "network_evaluations": maker.network_evaluations,
        "seconds_per_image": maker.seconds_per_image,
        "own": {
            name: {"value": row.value, "of": row.of, "ci95": row.ci95, "num": row.num} for name, row in own.items()
        },
        "warnings": [row.warning for row in own.values() if row.warning],
        "plots": list(plots),
    }
    figures: Figures | None = None
    with Scratch(data.cache) as scratch:
        if samples is not None:
            controlled = controls(judging, data, len(samples)) if judging else {}
            more, figures = _of_images(samples, data, maker, features, targets, device, made_from, scratch)
            figures = figures._replace(controlled=controlled)
            report |= more | {"control": {name: row for of in controlled.values() for name, row in of.rows.items()}}
            report["warnings"] += [of.warning for of in controlled.values() if of.warning]
        report["verdict"] = verdict(report)
        outputs.clear()  # pictures of an earlier report need not be replaced by others
        outputs.claim()
        write_report(out, report, figures, plots)
        if four_each and samples is not None:
            real = data.images("test", one_per_person=True)
            write_study(out / STUDY, four_each, samples, real, data.spec.is_colour)
        if predictions:
            fold = getattr(data, "fold", None) or ""
            write_predictions(out, [{"fold": fold, **row} for row in predictions])
    outputs.end()
    return report


def _of_images(
    samples: Images,
    data: TrainingData,
    maker: Maker,
    features: str,
    targets: Sequence[int | None] | None,
    device: torch.device,
    made_from: Sequence[Mapping[str, Any]],
    scratch: Scratch,
) -> tuple[dict[str, Any], Figures]:
    """What a report says of samples, and what its figures show."""
    sets, smallest, numbers = _sets(samples, data, scratch)
    known, notes = Known(device), []
    views: Mapping[str, CentreSlice] = {}
    if features != NONE and smallest >= MIN_FOR_FEATURES:
        views = extractors(features, sets.train, len(sets.real), data.cache / "features", device)
    elif features != NONE:
        notes.append(f"No scores of features: {numbers}; they need {MIN_FOR_FEATURES} of each.")
    components = principal_components(sets.train, known)
    cache = data.cache / "features" if views else None
    others = data.anatomy, maker.seams, features, views, cache, len(sets.real)
    pair_nulls = PairNulls(sets.train, maker.baselines, maker.source)
    given = Given(known, sets.train, components.directions, *others, source_of=maker.source_of, nulls=pair_nulls)
    nodules = nodule_scores(sets, data, targets, features, device, MIN_FOR_FEATURES)
    notes += nodules.notes
    parts = [Part(metrics_for(given), sets, lambda images: images), *([nodules.part] if nodules.part else [])]
    nulls = null_makers(sets.train, len(sets.samples), components, maker.prior)
    null_scores, null_images = _of_nulls(nulls, parts, len(sets.samples), known, scratch.folder)
    report = {
        "reference": reference_of(data, sets.real, sets.train),
        "num_samples": len(sets.samples),
        "features": ", ".join(dict.fromkeys(view.source for view in views.values())) or NONE,
        "people": {name: [_num_people(some), len(some)] for name, some in (("test", sets.real), ("train", sets.train))},
        **_rows(parts),
        "nulls": null_scores,
        "ranking": ranking(views, sets.real),
    }
    if targets is not None:
        pairs, missing = of_pairs(sets.samples, sets.real, targets, given)
        report["pairs"] = {**pairs, **nodules.pairs}
        notes += missing
    agreed = agreements(sets.samples, sets.real, made_from, data, known)
    report["agreement"] = {name: row for of in agreed.values() for name, row in of.rows.items()}
    if notes:
        report["note"] = " ".join(notes)
    nearest, likeness = (part.tolist() for part in known(nearest_by_ms_ssim, sets.samples, sets.train, device))
    report["nearest"] = [
        {"sample": i, "training_image": index, "ms_ssim": value}
        for i, (index, value) in enumerate(zip(nearest, likeness, strict=True))
    ]
    swept = strips(maker.show, maker.attributes, data.spec, maker.covariates, maker.like) if maker.show else {}
    report["strips"] = list(swept)
    rows, points = rows_of(sets, nearest, targets, null_images, pair_nulls), points_of(sets, nearest, views, known)
    trajectory = maker.trajectory() if maker.trajectory else None
    pictures = pictures_of(rows["samples"], rows[UNSEEN], trajectory, points, data.spec.is_colour)
    return report, Figures(rows, points, agreed, swept, pictures, colour=data.spec.is_colour)


def _sets(samples: Images, data: TrainingData, scratch: Scratch) -> tuple[Sets, int, str]:
    """The images, each set quick to read again; the smallest number of people or samples, and all numbers in words."""
    real = quick(data.images("test", one_per_person=True))
    train = quick(data.images("train", one_per_person=True, limit=MAX_TRAIN))
    smallest, numbers = smallest_set(len(samples), *map(_num_people, (samples, real, train)))
    return Sets(scratch.hold(within_range(samples), len(samples), samples.people), train, real), smallest, numbers


def _num_people(images: Images) -> int:
    """An image that is nobody's counts by itself."""
    return len(images_of_people(images.people))


def _of_nulls(
    nulls: Mapping[str, Iterator[Tensor]], parts: Sequence[Part], num: int, known: Known, folder: Path
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Null -> its scores, and null -> the first of its images; one null is held at a time."""
    scores: dict[str, dict[str, float]] = {}
    shown = {}
    for null, made in nulls.items():
        with Scratch(folder) as scratch:
            images = scratch.hold(made, num)
            scores[null] = {}
            for part in parts:
                taken, sets = part.of(images), part.sets
                for name, make in part.metrics.items():
                    scores[null][name] = measure(make, taken, sets.train, sets.real).compute().item()
            shown[null] = images.read(range(min(NUM_SHOWN, len(images)))).clone()
            known.forget(images)
    return scores, shown


def _rows(parts: Sequence[Part]) -> dict[str, Any]:
    """Every score of the samples, with its interval and the value that real images have, and what that is of."""
    rows, floors, conservative = {}, {}, []
    for part in parts:
        for name, make in part.metrics.items():
            sets = part.sets
            metric = measure(make, sets.samples, sets.train, sets.real)
            value, floors[name] = real_vs_real(make, sets)
            num_real = len(sets.train if metric.against == "train" else sets.real)
            rows[name] = row_of(metric, real_vs_real=value, num_samples=len(sets.samples), num_real=num_real)
            conservative += [name] if metric.conservative else []
    return {"metrics": rows, "floors": floors, "conservative": conservative}
