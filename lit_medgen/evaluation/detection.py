"""`detect`: how well a trained model tells images that it was not trained for, beside controls that know no model.

Sets of images, each compared with the test people of the model's own data: near sets, made from these people
(`lit_medgen.evaluation.near_sets`), and far ones, read from files (`far_sets`). What is measured of an image, and what
becomes of it, is in `detectors`; validation people, who are in no set, say what is usual.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_medgen import __version__
from lit_medgen.batch import Images, TrainingData, sent
from lit_medgen.errors import InputError
from lit_medgen.evaluation.detection_page import as_markdown, verdict
from lit_medgen.evaluation.detectors import (
    BEYOND_PNG,
    BITS,
    Scale,
    cumulated,
    grey_values,
    histogram_distance,
    png_bits,
    separation,
    surprise,
    untypical,
    without_itself,
)
from lit_medgen.evaluation.far_sets import images_of_folder
from lit_medgen.evaluation.held import quick
from lit_medgen.evaluation.near_sets import described, near_transforms, transformed
from lit_medgen.files import Outputs, as_csv, write_atomically
from lit_medgen.images.detection_plots import save_areas, save_surprises
from lit_medgen.images.grids import save_figure
from lit_medgen.metrics.base import images_of_people
from lit_medgen.output import say
from lit_medgen.people import numbered
from lit_medgen.training.method import Method

FILES = ("report.json", "report.md", "detected.csv", "areas.png", "surprises.png", "images.png")
MIN_PEOPLE = 2
"""Validation people, who say what is usual, and test people, over whom intervals are taken, at least."""
FEW = 8
"""Validation people below which a report says that they are few."""
NUM_SHOWN = 8
VALIDATION, TEST = "validation", "test"
OTHERS = {"beyond_png": BEYOND_PNG, "histogram": "histogram_distance", "png": "png_bits"}
"""Detector, besides the model -> the one measure that it looks at."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one kind.

    Attributes:
        images: in [-1, 1], on the model's grid.
        kind: whether they are of the model's data, made from it, or others.
        of: what they are, in words.
    """

    images: Images
    kind: Literal["in", "near", "far"]
    of: str


def refuse_unable(model: Method) -> None:
    """InputError for a model that cannot say how unlike its training images an image is, of which nothing is known."""
    if why := model.why_no_surprise():
        raise InputError(f"model.class_path: {type(model).__name__} {why}.")


def output_files(out: Path) -> Outputs:
    """The files of the verb in its folder."""
    return Outputs(out, "detect", FILES)


def image_sets(
    data: TrainingData, near: Sequence[str] | None, others: Mapping[str, str], num: int | None
) -> dict[str, ImageSet]:
    """Name -> set: validation and test people, near sets and far ones; all far images are read.

    InputError for too few people, for unknown names of near sets, and for names of far ones that are taken.

    Args:
        data: set up.
        near: names of the near sets; None: all.
        others: name of a far set -> the folder of its images.
        num: people of the data, and images of a far set, at most; None: all.
    """
    known = near_transforms(len(data.spec.size))
    names = list(known) if near is None else list(dict.fromkeys(near))
    for name in names:
        if name not in known:
            raise InputError(f"--near: no set {name!r}; choose from {', '.join(known)}.")
    for name in others:
        if name in (VALIDATION, TEST, *known):
            raise InputError(f"--others.{name}: the name of a set that there is already; give another.")
    if not names and not others:
        raise InputError(f"--near: [] without --others leaves no set; choose from {', '.join(known)}, or give others.")
    sets = {}
    for name, split in ((VALIDATION, "val"), (TEST, "test")):
        images = quick(data.images(split, one_per_person=True, limit=num))  # type: ignore[arg-type]
        if (found := len(images_of_people(images.people))) < MIN_PEOPLE:
            raise InputError(
                f"detect: {found} {name} people; give at least {MIN_PEOPLE} (data.init_args.fractions and --num)."
            )
        sets[name] = ImageSet(images, "in", f"{name} people of the model's own data")
    levels = data.spec.intensity_unit == "8 bit"
    for name in names:
        images = transformed(sets[TEST].images, name, known[name])
        sets[name] = ImageSet(rounded(images) if levels else images, "near", f"test people: {described(name)}")
    for name, folder in others.items():
        images = images_of_folder(name, Path(folder), data.spec, data.brought, num)
        sets[name] = ImageSet(rounded(images) if levels else images, "far", f"files of {Path(folder).name}")
    return sets


def rounded(images: Images) -> Images:
    """The images with the grey levels of 8 bits, as those of the data have: other levels would give a set away."""

    def read(indices: Sequence[int]) -> Tensor:
        return grey_values(images.read(indices)).float() / 255 * 2 - 1

    return Images(images.keys, images.people, read)


def detect(
    model: Method, data: TrainingData, sets: Mapping[str, ImageSet], out: Path, source: str, batch_size: int, name: str
) -> dict[str, Any]:
    """Writes report.json, report.md, detected.csv and figures; returns the report.

    Args:
        model: trained, in evaluation mode, on its device.
        data: whose validation and test people are among the sets.
        sets: as `image_sets` gives them.
        out: folder of the report.
        source: where the model came from, for the report.
        batch_size: images that the model looks at together.
        name: of the model's run.
    """
    outputs = output_files(out)
    outputs.check()
    raw = measured(model, sets, batch_size)
    of_model = tuple(measure for measure in raw[VALIDATION] if measure not in OTHERS.values())
    scales = {measure: Scale.of(values) for measure, values in raw[VALIDATION].items()}
    others = {detector: (measure,) for detector, measure in OTHERS.items() if measure in scales}
    detectors = {"model": of_model, **others}
    scores = {set_name: dict(_scores(detectors, values, scales)) for set_name, values in raw.items()}
    report: dict[str, Any] = {
        "lit_medgen": __version__,
        "source": source,
        "name": name,
        "method": type(model).__name__,
        "data": data.digest,
        "measures": {measure: scale._asdict() for measure, scale in scales.items()},
        "of_model": list(of_model),
        "sets": {set_name: _facts(one) for set_name, one in sets.items()},
        "detection": _detection(sets, scores),
        "measure_auc": _detection(sets, {set_name: dict(values) for set_name, values in raw.items()}, of_model),
        "few": len(images_of_people(sets[VALIDATION].images.people)) < FEW,
    }
    report["verdict"] = verdict(report)
    outputs.clear()
    outputs.claim()
    _write(out, report, sets, raw, scores)
    outputs.end()
    return report


def measured(model: Method, sets: Mapping[str, ImageSet], batch_size: int) -> dict[str, dict[str, Tensor]]:
    """Set -> measure -> n float64 on the CPU: the raw surprises of a model, then those of the other detectors."""
    usual = torch.cat([cumulated(images) for _, images in _batches(sets[VALIDATION].images, batch_size)])
    found = {}
    for name, one in sets.items():
        parts: list[dict[str, Tensor]] = []
        for seeds, images in _batches(one.images, batch_size):
            reference = without_itself(usual)[list(seeds)] if name == VALIDATION else usual.mean(0)
            own = model.surprise(sent(images, model.device), list(seeds))
            part = {measure: values.double().cpu() for measure, values in own.items()}
            bits = png_bits(images)
            part |= {BEYOND_PNG: part[BITS] - bits} if BITS in part else {}
            part |= {OTHERS["histogram"]: histogram_distance(cumulated(images), reference), OTHERS["png"]: bits}
            parts.append(part)
        found[name] = {measure: torch.cat([part[measure] for part in parts]) for measure in parts[0]}
        _refuse_not_finite(name, found[name])
    return found


def _batches(images: Images, batch_size: int) -> Iterator[tuple[range, Tensor]]:
    """Indices of images, which are their seeds too, with the images, n c *s, some at a time."""
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        yield indices, images.read(indices)


def _refuse_not_finite(name: str, values: Mapping[str, Tensor]) -> None:
    for measure, each in values.items():
        if bad := int((~each.isfinite()).sum()):
            raise InputError(
                f"detect: {measure} of {bad} of {len(each)} images of the set {name} is NaN or infinite; leave the set "
                "out, or take another checkpoint."
            )


def _scores(
    detectors: Mapping[str, Sequence[str]], values: Mapping[str, Tensor], scales: Mapping[str, Scale]
) -> Iterator[tuple[str, Tensor]]:
    """Score -> its value for each image: of each detector its surprise, and how untypical that is."""
    for detector, measures in detectors.items():
        raw = {measure: values[measure] for measure in measures}
        yield f"{detector}_z", surprise(raw, scales)
        yield f"{detector}_abs_z", untypical(raw, scales)


def _facts(one: ImageSet) -> dict[str, Any]:
    people = len(images_of_people(one.images.people))
    return {"kind": one.kind, "of": one.of, "people": people, "images": len(one.images)}


def _detection(
    sets: Mapping[str, ImageSet], scores: Mapping[str, Mapping[str, Tensor]], names: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Set -> detector -> how well it tells the set from the test images; of some detectors, or of all."""
    inside, people = scores[TEST], sets[TEST].images.people
    found: dict[str, dict[str, Any]] = {}
    for set_name, one in sets.items():
        for detector in names or inside if one.kind != "in" else ():
            row = separation(inside[detector], scores[set_name][detector], people, one.images.people)
            found.setdefault(set_name, {})[detector] = {
                "auc": row.auc.value,
                "ci95": row.auc.ci95,
                "false_positive_rate": row.false_positives,
            }
    return found


def _write(
    out: Path,
    report: Mapping[str, Any],
    sets: Mapping[str, ImageSet],
    raw: Mapping[str, Mapping[str, Tensor]],
    scores: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """All files of a report."""
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    write_atomically(out / "report.md", as_markdown(report))
    rows = list(_rows(sets, raw, scores))
    write_atomically(out / "detected.csv", as_csv(rows, list(rows[0])))
    if report["detection"]:
        save_areas(out / "areas.png", report["detection"])
    shown = {name: each["model_z"].numpy() for name, each in scores.items() if name != VALIDATION}
    save_surprises(out / "surprises.png", shown, TEST)
    some = {name: one.images.read(range(min(NUM_SHOWN, len(one.images)))) for name, one in sets.items()}
    save_figure(out / "images.png", {name: images for name, images in some.items() if name != VALIDATION}, NUM_SHOWN)
    say(f"report: {out / 'report.md'}; images one by one: detected.csv; figures: {', '.join(FILES[3:])}")
    say(str(report["verdict"]))


def _rows(
    sets: Mapping[str, ImageSet],
    raw: Mapping[str, Mapping[str, Tensor]],
    scores: Mapping[str, Mapping[str, Tensor]],
) -> Iterator[dict[str, Any]]:
    """A row for each image: its set, its key, the number of its person, all that is measured, and all scores."""
    whose = {name: _whose(one.images) for name, one in sets.items()}
    everybody = [who for some in whose.values() for who in some]
    number_of = dict(zip(everybody, numbered(everybody), strict=True))
    for name, one in sets.items():
        columns = {**raw[name], **scores[name]}
        for i, (key, who) in enumerate(zip(one.images.keys, whose[name], strict=True)):
            values = {column: repr(each[i].item()) for column, each in columns.items()}
            yield {"set": name, "key": key, "person": number_of[who], **values}


def _whose(images: Images) -> list[str]:
    """For each image its person, or a name of its own where it is nobody's."""
    found = [""] * len(images)
    for who, some in images_of_people(images.people).items():
        for i in some.tolist():
            found[i] = who
    return found
