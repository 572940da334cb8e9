"""Anomaly maps of people, by their healthy counterparts, and how well maps find marked lesions.

A map is the mean over channels of |x - counterpart|. Beside it stand two nulls that know no model of images: how far a
voxel is from the mean training image, and how bright it is.

Thresholds come from validation people without lesions, as the value that a stated share of their voxels exceeds; a
threshold that is chosen on each test image (Otsu) finds a lesion in everybody. Only foreground counts: voxels that are
not background, and what is marked.

Shapes: n images, c channels, *s their axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Condition, Request, Requests, TrainingData
from lit_medgen.diffusion import Resynthesis
from lit_medgen.errors import InputError
from lit_medgen.metrics.base import Estimate, mean_over_people
from lit_medgen.metrics.pixelwise import auroc_and_precision, dice
from lit_medgen.seeds import mix
from lit_medgen.training.generator import Generator

BACKGROUND = -0.9
"""Value in [-1, 1] from which a voxel is foreground: the lowest twentieth of the range is air."""
MAX_TRAINING = 512
"""Training images, evenly spread, of which the mean is taken."""
MODEL, MEAN, BRIGHTNESS = "model", "distance from the mean training image", "brightness"


@dataclass(frozen=True)
class Mapped:
    """An image, its counterpart and its map.

    Attributes:
        key: store key of the image.
        person: whose it is (hashed).
        image: c *s in [-1, 1].
        counterpart: c *s in [-1, 1]; of several, their mean.
        map: *s, at least 0.
        lesion: *s, bool; None where no label map says.
        affine: 4 4, voxel to world, mm; None where it is not known.
    """

    key: str
    person: str
    image: Tensor
    counterpart: Tensor
    map: Tensor
    lesion: Tensor | None
    affine: Tensor | None

    @property
    def foreground(self) -> Tensor:
        """*s, bool: what counts."""
        inside = self.image.amax(0) > BACKGROUND
        return inside if self.lesion is None else inside | self.lesion

    @property
    def has_lesion(self) -> bool:
        """Whether any voxel is marked."""
        return self.lesion is not None and bool(self.lesion.any())


@dataclass(frozen=True)
class Mapping:
    """How maps are made.

    Attributes:
        how: the way to noise and back.
        attributes: what counterparts should show; empty: nothing is asked for.
        num_repeats: counterparts of each image, each from a noise of its own, over which map and counterpart are means.
        classes: numbers of the classes of label maps that are lesions; empty: nothing is marked.
        batch_size: images at once.
    """

    how: Resynthesis
    attributes: dict[str, float]
    num_repeats: int = 1
    classes: tuple[int, ...] = ()
    batch_size: int = 8

    def of(self, model: Generator, requests: Requests, people: dict[str, str]) -> Iterator[Mapped]:
        """The map of each image of the data that a request is like; `people`: store key -> whose image it is."""
        for start in range(0, len(requests), self.batch_size):
            request = requests.joined(range(start, min(start + self.batch_size, len(requests))))
            yield from self._of_batch(model, request, people)

    def _of_batch(self, model: Generator, request: Request, people: dict[str, str]) -> Iterator[Mapped]:
        images, num = request.target, len(request.seeds)
        assert images is not None
        condition = Condition({name: torch.full((num,), value) for name, value in self.attributes.items()})
        total, maps = torch.zeros_like(images), torch.zeros_like(images[:, 0])
        for repeat in range(self.num_repeats):
            seeds = [mix("counterpart", seed, repeat) for seed in request.seeds]
            made = model.counterparts(images, condition, seeds, self.how).float().cpu().clamp(-1, 1)
            total, maps = total + made / self.num_repeats, maps + (images - made).abs().mean(1) / self.num_repeats
        lesions = self._lesions(request.condition.label_map)
        for k, key in enumerate(request.key):
            lesion = None if lesions is None else lesions[k]
            affine = None if request.affine is None else request.affine[k]
            yield Mapped(key, people.get(key, ""), images[k], total[k], maps[k], lesion, affine)

    def _lesions(self, label_map: Tensor | None) -> list[Tensor | None] | None:
        """*s of each image, bool; None for one without a label map."""
        if label_map is None or not self.classes:
            return None
        marked = torch.isin(label_map[:, 0], torch.tensor(self.classes))
        return [marks if bool((labels >= 0).any()) else None for marks, labels in zip(marked, label_map, strict=True)]


def lesion_classes(names: Sequence[str], asked: Sequence[str] | None) -> tuple[int, ...]:
    """Numbers of the classes that are lesions; InputError for names that are none, or where it has to be said."""
    if not names:
        if asked:
            raise InputError("--lesion: the data has no label maps; leave it out, or name their classes in the data.")
        return ()
    if asked is None:
        if len(names) == 2:
            return (1,)
        raise InputError(f"--lesion is missing: which of the classes are lesions? There are {'; '.join(names)}.")
    for name in asked:
        if name not in names:
            raise InputError(f"--lesion: no class {name!r}; the label maps have {'; '.join(names)}.")
    return tuple(names.index(name) for name in asked)


def mean_image(data: TrainingData) -> Tensor:
    """c *s: the mean of training images, of at most `MAX_TRAINING` of them."""
    images = data.images("train")
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_TRAINING)).round().astype(int).tolist()
    total = torch.zeros(images.read([0]).shape[1:])
    for index in chosen:
        total += images.read([index])[0] / len(chosen)
    return total


def detectors(mean: Tensor) -> dict[str, Callable[[Mapped], Tensor]]:
    """Name -> the map of an image, *s: the model's, and those of the nulls."""
    return {
        MODEL: lambda one: one.map,
        MEAN: lambda one: (one.image - mean).abs().mean(0),
        BRIGHTNESS: lambda one: one.image.mean(0),
    }


def threshold_of(maps: Sequence[Tensor], healthy: Sequence[Mapped], share: float) -> float:
    """The value that this share of the foreground of images without lesions exceeds."""
    values = torch.cat([each[one.foreground] for each, one in zip(maps, healthy, strict=True)])
    return float(np.quantile(values.double().numpy(), 1 - share))


def scores_of(
    found: Sequence[Mapped], of: Callable[[Mapped], Tensor], healthy: Sequence[Mapped], share: float
) -> dict[str, Any]:
    """How well maps tell lesions of test images, with intervals over people.

    Args:
        found: test images with a label map.
        of: the map of an image.
        healthy: validation images without lesions, from which the threshold comes.
        share: of their foreground that it exceeds.
    """
    ill, well = [one for one in found if one.has_lesion], [one for one in found if not one.has_lesion]
    threshold = threshold_of([of(one) for one in healthy], healthy, share)
    people = [one.person for one in ill]
    values, marked = zip(*((of(one)[one.foreground], _marks(one)[one.foreground]) for one in ill), strict=True)
    auroc, precision = auroc_and_precision(values, marked, people)
    overlaps = [dice(each > threshold, marks) for each, marks in zip(values, marked, strict=True)]
    rows = {
        "auroc": _row(auroc, ill),
        "average_precision": _row(precision, ill),
        "dice": _row(mean_over_people(torch.tensor(overlaps, dtype=torch.float64), people), ill),
    }
    if well:
        shares = [float((of(one)[one.foreground] > threshold).double().mean()) for one in well]
        estimate = mean_over_people(torch.tensor(shares, dtype=torch.float64), [one.person for one in well])
        rows["false_positives"] = _row(estimate, well)
    return {"threshold": threshold, "scores": rows}


def prevalence(found: Sequence[Mapped]) -> float:
    """The share of marked voxels in the foreground of images with lesions: the average precision of chance."""
    ill = [one for one in found if one.has_lesion]
    return sum(int(_marks(one).sum()) for one in ill) / sum(int(one.foreground.sum()) for one in ill)


def _marks(one: Mapped) -> Tensor:
    assert one.lesion is not None
    return one.lesion


def _row(estimate: Estimate, images: Sequence[Mapped]) -> dict[str, Any]:
    interval = estimate.interval
    return {
        "value": estimate.value,
        "ci95": None if interval is None else [max(interval[0], 0.0), min(interval[1], 1.0)],  # all are shares
        "num": len(images),
        "num_people": len({one.person for one in images}),
    }
