"""Whether images show what was asked for, by a judge: a classifier of clean crops that took no part in their making.

For every label that the judge tells and images can be asked to show, images are made twice from the same label maps of
test people and the same seeds, asked for the lowest and for the highest value, all other attributes unknown. What the
judge says of the two is compared map by map. It is worth as much as the judge is, whose own skill on real images of the
test people stands beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec, Part, Request, Requests, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.evaluation.judges import Judging
from lit_medgen.evaluation.nodules import Nodules
from lit_medgen.evaluation.scores import row_of
from lit_medgen.evaluation.strips import beside, values_of
from lit_medgen.metrics.agreement import AgreementMetric, MeanDifference, ShareAbove
from lit_medgen.metrics.base import images_of_people
from lit_medgen.metrics.skill import AreaUnderROC, ExplainedVariance

ENOUGH = 0.75
"""Area under the ROC curve, or R^2, below which what a judge says proves nothing."""
AT_ONCE = 32
"""Crops that are judged together."""
SKILLS: dict[str, tuple[type[AgreementMetric], str]] = {
    "binary": (AreaUnderROC, "AUC"),
    "number": (ExplainedVariance, "R^2"),
}
"""Kind of a label -> the skill that a judge has of it, and its name."""


@dataclass(frozen=True)
class Control:
    """What is said of an attribute.

    Attributes:
        asked: the two values that were asked for.
        judged: n 2, what the judge says of the images of each map.
        people: n, whose each map is.
        real: what the judge says of real images labelled with the one and with the other value; None of numbers.
        rows: name of a score -> what the report says of it.
        warning: what readers must be told; "" for nothing.
    """

    asked: tuple[float, float]
    judged: Tensor
    people: list[str]
    real: tuple[float, float] | None
    rows: Mapping[str, Mapping[str, Any]]
    warning: str


def controls(judging: Judging, data: TrainingData, num: int) -> dict[str, Control]:
    """Attribute -> what a judge says of images that were asked for its lowest and for its highest value.

    Args:
        judging: the judge, and what makes the images.
        data: whose test people's maps images are made from, and whose real images say what the judge can.
        num: so many of the test people's maps are looked at.

    InputError if fewer than two people's maps have a nodule to judge.
    """
    cropping = _Cropping(judging.judge.crop_size, data.spec)
    chosen = cropping.known(judging.like, min(num, len(judging.like)))
    named = data.images("test", one_per_person=True)
    of_key = dict(zip(named.keys, named.people, strict=True))
    people = [of_key.get(str(judging.like.made_from[i].get("key", "")), "") for i in chosen]
    if len(images_of_people(people)) < 2:
        raise InputError(
            f"--judge: {len(chosen)} of {num} label maps of test people have a nodule to judge, of fewer than 2 "
            "people; raise --num, or take data with more test people who have nodules."
        )
    labels, found, owners = _of_real(judging, cropping, data)
    unseen = judging.judge.needed_spec().people in ({}, data.spec.people)
    controls = {}
    for name in judging.names:
        values = values_of(name, data.spec, judging.covariates)
        asked = values[0], values[-1]
        judged = torch.stack([_judged(judging, cropping, chosen, name, value) for value in asked], dim=1)
        known = ~labels[name].isnan()
        whose = [owner for owner, there in zip(owners, known.tolist(), strict=True) if there]
        real = labels[name][known], found[name][known], whose
        controls[name] = _control(judging, name, asked, (judged, people), real, unseen)
    return controls


class _Cropping:
    """Crops of a judge's size around nodules; of images that are as large as a crop, all of each image."""

    def __init__(self, size: tuple[int, ...], spec: DataSpec) -> None:
        self.size, self.spec, self.whole = size, spec, size == tuple(spec.size)
        self.nodules = Nodules({}, {}, size)

    def known(self, like: Requests, num: int) -> list[int]:
        """Numbers of the requests, among the first `num`, whose images have something to judge."""
        if self.whole and "label_map" not in like.parts:
            return list(range(num))
        self.nodules = Nodules.of(like, self.spec, self.size, num)
        return list(self.nodules.middles)

    def of_made(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        """Crops of images that were made from requests with these numbers."""
        return images if self.whole else self.nodules.around(images, numbers)

    def of_real(self, image: Tensor, condition: Condition) -> Tensor | None:
        """The crop 1 c *size of a real image 1 c *s; None where it has no nodule."""
        if self.whole and condition.label_map is None:
            return image
        one = Requests([0], [{}], frozenset({"label_map"}), lambda _: Request([0], condition))
        nodules = Nodules.of(one, self.spec, self.size)
        if not nodules.middles:
            return None
        return image if self.whole else nodules.around(image, [0])


def _judged(judging: Judging, cropping: _Cropping, chosen: Sequence[int], name: str, value: float) -> Tensor:
    """n, float64: what the judge says of an attribute on images that were asked to show this value of it."""
    attributes = {**beside(name, judging.covariates), name: value}
    given = {key: torch.tensor([number], dtype=torch.float32) for key, number in attributes.items()}

    def read(index: int) -> Request:
        request = judging.like.read(chosen[index])
        return replace(request, condition=replace(request.condition, attributes=given), target=None)

    parts: frozenset[Part] = judging.like.parts | {"attributes"}
    requests = Requests([judging.like.seeds[i] for i in chosen], [attributes] * len(chosen), parts, read)
    found, first = [], 0
    for images in judging.show(requests):
        crops = cropping.of_made(images, chosen[first : first + len(images)])
        found.append(judging.judge.judged(crops.to(judging.device))[name].double().cpu())
        first += len(images)
    return torch.cat(found)


def _of_real(
    judging: Judging, cropping: _Cropping, data: TrainingData
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Of the real images of all test people: labels and what the judge says, n float64 by name, and whose they are."""
    people, crops, owners = data.people("test"), [], []
    labels: dict[str, list[float]] = {name: [] for name in judging.names}
    for batch in data.stored("test"):
        for i, key in enumerate(batch.key):
            some = batch.condition.label_map
            condition = Condition(label_map=None if some is None else some[i : i + 1])
            found = cropping.of_real(batch.image[i : i + 1], condition)
            if found is not None:
                crops.append(found)
                owners.append(people.get(key, ""))
                for name, values in labels.items():
                    known = batch.condition.attributes.get(name)
                    values.append(torch.nan if known is None else float(known[i]))
    said: dict[str, list[Tensor]] = {name: [torch.empty(0, dtype=torch.float64)] for name in judging.names}
    for start in range(0, len(crops), AT_ONCE):
        judged = judging.judge.judged(torch.cat(crops[start : start + AT_ONCE]).to(judging.device))
        for name, parts in said.items():
            parts.append(judged[name].double().cpu())
    truth = {name: torch.tensor(values, dtype=torch.float64) for name, values in labels.items()}
    return truth, {name: torch.cat(parts) for name, parts in said.items()}, owners


def _control(
    judging: Judging,
    name: str,
    asked: tuple[float, float],
    made: tuple[Tensor, list[str]],
    real: tuple[Tensor, Tensor, list[str]],
    unseen: bool,
) -> Control:
    """The scores of an attribute, from what was judged of images that were made, and of real ones with labels."""
    (judged, people), (labels, found, owners), kind = made, real, judging.judge.outputs[name]
    reference = None
    if kind == "binary" and labels.unique().numel() == 2:
        reference = float(found[labels < 0.5].mean()), float(found[labels > 0.5].mean())
    of_value = [*reference, reference[1] - reference[0]] if reference else [None] * 3
    nothing, counts = torch.zeros(len(judged)), {"num": len(judged), "num_people": len(images_of_people(people))}
    limits = (0.0, 1.0) if kind == "binary" else MeanDifference.limits
    pairs = {
        "low": (nothing, judged[:, 0]),
        "high": (nothing, judged[:, 1]),
        "difference": (judged[:, 0], judged[:, 1]),
    }
    rows = {}
    for (ending, pair), true in zip(pairs.items(), of_value, strict=True):
        metric = MeanDifference()
        metric.limits = limits if ending != "difference" else metric.limits
        metric.update(*pair, people)
        metric.features = {"low": f"asked for {asked[0]:g}", "high": f"asked for {asked[1]:g}"}.get(ending, "both")
        rows[f"{name}_{ending}"] = row_of(metric, **counts) | {"real": true}
    above = ShareAbove()
    above.update(judged[:, 0], judged[:, 1], people)
    above.features = "maps whose image is judged higher when more is asked for"
    rows[f"{name}_above"] = row_of(above, **counts) | {"real": None}
    skill, warning = _skill(name, kind, labels, found, owners, unseen)
    return Control(asked, judged, people, reference, {**rows, f"{name}_judge": skill}, warning)


def _skill(
    name: str, kind: str, labels: Tensor, found: Tensor, owners: list[str], unseen: bool
) -> tuple[dict[str, Any], str]:
    """The judge's own skill on real images of test people as a row, and a warning where it is too little."""
    make, word = SKILLS[kind]
    counts = {"num": len(labels), "num_people": len(images_of_people(owners))}
    row: dict[str, Any] = {"value": None, "ci95": None, **counts, "features": f"{word} of the judge", "real": None}
    metric = make()
    if counts["num_people"] > 1:
        metric.update(labels, found, owners)
        estimate = metric.estimate()
        if estimate.value == estimate.value:
            row |= {"value": estimate.value, "ci95": list(estimate.interval) if estimate.interval else None}
    return row, _warning(name, word, row["value"], unseen)


def _warning(name: str, word: str, skill: float | None, unseen: bool) -> str:
    """What readers must be told of a judge's skill; "" for nothing."""
    if skill is None:
        return f"The judge's skill of {name} could not be measured on the test people: its word proves nothing."
    if skill < ENOUGH:
        return (
            f"The judge of {name} has {word} {skill:.2f} on the test people, below {ENOUGH}: its word proves nothing."
        )
    if not unseen:
        return f"The judge of {name} was trained on another split of people: it may have seen these test people."
    return ""


def panels(found: Mapping[str, Control]) -> Iterator[dict[str, Any]]:
    """What `save_control` shows of each attribute: a pair of values for each person."""
    for name, control in found.items():
        rows = control.rows
        skill = rows[f"{name}_judge"]
        said = "unknown" if skill["value"] is None else f"{skill['value']:.2f}"
        yield {
            "name": name,
            "asked": control.asked,
            "pairs": [control.judged[some].mean(0).tolist() for some in images_of_people(control.people).values()],
            "means": [(rows[f"{name}_{end}"]["value"], *rows[f"{name}_{end}"]["ci95"]) for end in ("low", "high")],
            "real": control.real,
            "skill": f"{skill['features']} on real images: {said}",
        }
