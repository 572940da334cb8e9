"""What `utility` trains and tests on: real images of the training and of the test people, and samples, with targets.

One visit of each person counts, as evaluation looks at it. Of samples the targets are what they were asked to show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_medgen.batch import DataSpec, Images, Requests, Split, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.evaluation.held import Scratch
from lit_medgen.evaluation.utility_tasks import (
    LABEL_MAP,
    Category,
    Number,
    Segmentation,
    Task,
    UnfitTaskError,
    values_of,
)
from lit_medgen.evaluation.utility_training import Labelled, labelled
from lit_medgen.metrics.base import images_of_people

MIN_PEOPLE = 8
"""Training people, and test people, who must have a target; and samples."""
MIN_OF_VALUE = 2
"""People of each part, and samples, that must have a value of a category, or a class, for it to count."""


class Made(NamedTuple):
    """Samples, and what each was made from."""

    images: Images
    """n c *s in [-1, 1]."""
    made_from: Sequence[Mapping[str, Any]]
    """n, as `Requests.made_from` says it."""


class Sets(NamedTuple):
    """The images of a task."""

    train: Labelled
    test: Labelled
    samples: Labelled


def refuse_few(data: TrainingData) -> None:
    """InputError for data with too few people of a part, before hours are spent on samples."""
    for split, what in (("train", "training"), ("test", "test")):
        if (num := len(set(data.people(split).values()))) < MIN_PEOPLE:  # type: ignore[arg-type]
            raise InputError(
                f"utility: {num} {what} people; give at least {MIN_PEOPLE}: train with other data.init_args.fractions, "
                "or on more people."
            )


def owned(samples: Made, data: TrainingData) -> Made:
    """The samples, each of the training person that it was made like; InputError for one made like an unseen person."""
    for split in ("val", "test"):
        keys = set(data.images(split).keys)
        like = sum(row.get("key") in keys for row in samples.made_from)
        if like:
            raise InputError(
                f"utility: {like} of {len(samples.images)} samples were made like {split} people, on whom networks "
                "must not be trained; sample with --like train."
            )
    train = data.images("train")
    whose = dict(zip(train.keys, train.people, strict=True))
    people = [whose.get(str(row.get("key", "")), "") for row in samples.made_from]
    return Made(Images(samples.images.keys, people, samples.images.read), samples.made_from)


def names_of_tasks(
    made_from: Sequence[Mapping[str, Any]], spec: DataSpec, reads_maps: bool, asked: Sequence[str] | None
) -> list[str]:
    """What can be predicted of samples; InputError for what cannot.

    Args:
        made_from: what each sample was asked to show.
        spec: of the data.
        reads_maps: whether samples were made from label maps.
        asked: names of attributes, or `LABEL_MAP`; None: all that samples were asked to show.
    """
    there = [*spec.attributes, *([LABEL_MAP] if spec.classes else [])]
    known = [name for name in spec.attributes if any(_is_number(row.get(name)) for row in made_from)]
    known += [LABEL_MAP] if reads_maps and spec.classes else []
    for name in asked or ():
        if name not in there:
            raise InputError(
                f"--predict: no {name!r} in the data, which has {', '.join(there) or 'none'}; give one of "
                "these, or a list of some, e.g. '[sex,age]'."
            )
        if name not in known:
            raise InputError(
                f"--predict: the samples were not asked to show {name!r}, but {', '.join(known) or 'nothing'}; take a "
                "model that is made from it, or predict what they were asked for."
            )
    if not known:
        raise InputError(
            "utility: the samples were asked to show nothing, so nothing can be learned from them; take a model that "
            "is made from attributes or label maps, and sample with --like train."
        )
    return list(dict.fromkeys(asked or known))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def sets_of(name: str, samples: Made, data: TrainingData, scratch: Scratch) -> tuple[Task, Sets]:
    """The task of that name and its images; UnfitTaskError where too few people, or one value alone, have it."""
    spec = data.spec
    if name == LABEL_MAP:
        task: Task = Segmentation(spec)
    else:
        task = Category(name, spec) if values_of(spec, name) else Number(name, spec)
    sets = Sets(
        _of_real(task, data, "train", scratch),
        _of_real(task, data, "test", scratch),
        _made(task, samples, data, scratch),
    )
    for what, some in zip(("training people", "test people"), sets, strict=False):
        if (num := some.num_people) < MIN_PEOPLE:
            raise UnfitTaskError(f"utility: {num} {what} with a known {name}; give at least {MIN_PEOPLE} of each part.")
    if (num := len(sets.samples)) < MIN_PEOPLE:
        raise UnfitTaskError(
            f"utility: {num} samples with a known {name}; sample at least {MIN_PEOPLE} with --like train."
        )
    if isinstance(task, Number):
        _refuse_constant(name, sets)
        return task, sets
    scored = _scored(name, sets)
    return (Segmentation(spec, scored) if name == LABEL_MAP else Category(name, spec, scored)), sets


def _of_real(task: Task, data: TrainingData, split: Split, scratch: Scratch) -> Labelled:
    requests, images = data.requests(split), data.images(split, one_per_person=True)
    return labelled(task, images, lambda i: _target(task.name, requests, i), scratch)


def _made(task: Task, samples: Made, data: TrainingData, scratch: Scratch) -> Labelled:
    requests = data.requests("train")
    at = {str(row["key"]): i for i, row in enumerate(requests.made_from)}

    def target(index: int) -> Tensor | None:
        row = samples.made_from[index]
        if task.name != LABEL_MAP:
            return _number(row.get(task.name))
        like = at.get(str(row.get("key", "")))
        return None if like is None else _target(task.name, requests, like)

    return labelled(task, samples.images, target, scratch)


def _target(name: str, requests: Requests, index: int) -> Tensor | None:
    """An attribute, 1, or a label map, 1 1 *s; None where it is not known."""
    if name != LABEL_MAP:
        return _number(requests.made_from[index].get(name))
    label_map = requests.read(index).condition.label_map
    return None if label_map is None or not bool((label_map >= 0).all()) else label_map


def _number(value: Any) -> Tensor | None:
    return torch.tensor([float(value)]) if _is_number(value) else None


def _refuse_constant(name: str, sets: Sets) -> None:
    for what, some in zip(("training people", "test people", "samples"), sets, strict=True):
        values = some.all_targets()
        if bool((values == values[0]).all()):
            raise UnfitTaskError(f"utility: {name} is {float(values[0]):g} of all {what}; predict what differs.")


def _scored(name: str, sets: Sets) -> list[int]:
    """The values, or the classes but the background, that enough people of each part and samples have."""
    counts = [_counted(some) for some in sets]
    enough = [{value for value, num in each.items() if num >= MIN_OF_VALUE} for each in counts]
    found = sorted(set.intersection(*enough) - ({0} if name == LABEL_MAP else set()))
    least, what = (1, "no class") if name == LABEL_MAP else (2, "not two values")
    if len(found) < least:
        words = zip(("training people", "test people", "samples"), counts, strict=True)
        counted = "; ".join(f"{part}: {_listed(each.items())}" for part, each in words)
        raise UnfitTaskError(
            f"utility: {name} has {what} of which there are {MIN_OF_VALUE} in each part (value x how many: {counted}); "
            "predict something else, or take data of more people."
        )
    return found


def _counted(some: Labelled) -> Counter[int]:
    """Value or class -> how many people have it."""
    found: Counter[int] = Counter()
    for group in images_of_people(some.images.people).values():
        found.update({int(value) for i in group.tolist() for value in some.targets([i]).unique().tolist()})
    return found


def _listed(counts: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{value} x {num}" for value, num in sorted(counts)) or "none"


def refuse_unknown_split(spec: DataSpec | None, source: str) -> None:
    """InputError for samples of which it is not known on whom their model was trained."""
    if spec is None or not (spec.people.get("train") and spec.people.get("test")):
        raise InputError(
            f"{source}: nothing says on which people the model was trained (spec.json of `sample`), so it may have "
            "seen the test people; give a folder that `sample` wrote, or a checkpoint."
        )
