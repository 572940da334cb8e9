r"""Membership inference: whether a model's losses tell the people that it was trained on from others.

A person's score is how little the model is surprised by their images: less its `Method.surprise`, or, of a method that
has none, less its training loss at noise and times that are the same for everybody (Yeom et al. 2018, "Privacy risk in
machine learning", section 3.2). Reported are the area under the ROC curve, and how many members are found where 1 % of
unseen people are taken for such (Carlini et al. 2022, "Membership inference attacks from first principles", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images, Split, TrainingData, sent
from lit_medgen.errors import InputError, describe
from lit_medgen.evaluation.detectors import Scale, separation, surprise
from lit_medgen.metrics.base import images_of_people
from lit_medgen.seeds import mix
from lit_medgen.training.method import Method

MAX_PEOPLE = 200
"""Training people, and unseen ones, whose losses are looked at."""
NUM_TIMES = 16
"""Losses of each image, at different times and noises, where the training loss is taken."""
FALSE_POSITIVES = 0.01
SPLITS: tuple[tuple[Split, ...], ...] = (("train",), ("val", "test"))
"""Of members, and of unseen people."""
ROUNDS = 1000
"""Of the bootstrap over people that says how sure the share of members found is."""


def membership(model: Method, data: TrainingData, batch_size: int) -> dict[str, Any]:
    """The areas and shares for a report; `why_not` where a method has no loss of one image.

    Args:
        model: trained, in evaluation mode, on its device.
        data: that it was trained on, set up.
        batch_size: images that the model looks at together.
    """
    if not model.why_no_surprise():
        raw = [_surprise(model, data, splits, batch_size) for splits in SPLITS]
        scales = {name: Scale.of(values) for name, values in raw[1].items()}
        members, unseen = (surprise(values, scales) for values in raw)
        of = f"Mean z-score of {', '.join(raw[0])}"
    else:
        try:
            of_members, of_unseen = (_losses(model, data, splits) for splits in SPLITS)
        except InputError as error:  # of sets of slices, of which there is no list
            return {"why_not": describe(error).removesuffix(".")}
        if of_members is None or of_unseen is None:
            return {"why_not": f"{type(model).__name__} has no loss of one image at a fixed noise"}
        members, unseen = of_members, of_unseen
        of = f"Training loss at the same {NUM_TIMES} times and noises for everybody"
    return {"of": of, "people": [len(members), len(unseen)], **separated(members, unseen)}


def separated(members: Tensor, unseen: Tensor) -> dict[str, Any]:
    """AUC and share of members found, with intervals, from n and m surprises of people."""
    nobody = [[""] * len(some) for some in (unseen, members)]
    area = separation(-unseen, -members, *nobody).auc
    found, random = true_positives(members.numpy(), unseen.numpy()), np.random.default_rng(0)
    rounds = [
        true_positives(*(random.choice(some.numpy(), len(some)) for some in (members, unseen))) for _ in range(ROUNDS)
    ]
    low, high = np.quantile(rounds, [0.025, 0.975]).tolist()
    return {
        "auc": {"value": area.value, "ci95": list(area.ci95)},
        "tpr": {"value": found, "ci95": [min(low, found), max(high, found)]},
    }


def true_positives(members: np.ndarray, unseen: np.ndarray) -> float:
    """Share of members who surprise less than all but `FALSE_POSITIVES` of unseen people."""
    threshold = np.sort(unseen)[math.floor(FALSE_POSITIVES * len(unseen))]
    return float((members < threshold).mean())


def _surprise(model: Method, data: TrainingData, splits: Sequence[Split], batch_size: int) -> dict[str, Tensor]:
    """Measure -> n: the mean over the images of each person; the noise of an image is that of its place among these."""
    found: dict[str, list[Tensor]] = {}
    for split in splits:
        images = data.images(split, one_per_person=True, limit=MAX_PEOPLE)
        for name, values in _of_images(model, images, batch_size).items():
            people = images_of_people(images.people).values()
            found.setdefault(name, []).append(torch.stack([values[some].mean() for some in people]))
    return {name: torch.cat(parts)[:MAX_PEOPLE] for name, parts in found.items()}


def _of_images(model: Method, images: Images, batch_size: int) -> Mapping[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        # The same noise for the first image of everybody, and so on: a difference is one of images.
        seeds = [_place(images.people, index) for index in indices]
        for name, values in model.surprise(sent(images.read(indices), model.device), seeds).items():
            parts.setdefault(name, []).append(values.double().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def _place(people: Sequence[str], index: int) -> int:
    """Which of a person's images this is."""
    place = index
    while place > 0 and people[place - 1] and people[place - 1] == people[index]:
        place -= 1
    return index - place


@torch.no_grad()
def _losses(model: Method, data: TrainingData, splits: Sequence[Split]) -> Tensor | None:
    """n: the training loss of each person's first record; None where it does not depend on a time, as in a game."""
    found: list[Tensor] = []
    for split in splits:
        seen: set[str] = set()
        for person, batch in zip(data.people(split).values(), data.stored(split), strict=True):
            if person in seen or len(found) == MAX_PEOPLE:
                continue
            seen.add(person)
            values = []
            for repeat in range(NUM_TIMES):
                torch.manual_seed(mix("membership", repeat))
                with model.evaluating("test", 0, repeat, NUM_TIMES) as now:
                    values.append(model.losses(batch.to(model.device))["loss"].double().cpu())
                if not now.timed:
                    return None
            found.append(torch.stack(values).mean())
    return torch.stack(found)
