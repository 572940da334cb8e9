"""The condition alarm, which says whether a network hears what it is told.

Each image of a batch gets the condition of another, at the same noise and time. Reported are

    effect = |f(c) - f(c')| / max(|f(c)|, |f(c')|),   how much the prediction moves, as a share of its size
    gain   = error(f(c')) - error(f(c)),              by how much its own condition makes a prediction better

as means over images, with jackknife intervals over people. A network that ignores its condition has no effect, and the
loss says nothing of it. So each is compared with a level of noise: the effect with the rounding of bfloat16, in
which networks are trained, and the gain with its standard error over people.

Shapes: b images of a batch, n images of all batches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Condition, Score
from lit_medgen.metrics.base import mean_over_people

NOISE = 2.0**-8
"""Effect below which a network does not hear its condition: the rounding of bfloat16, relative to a number."""
MIN_PEOPLE = 8
"""People of whom a gain is judged: of fewer, the interval says little."""
PARTS = ("label_map", "source", "text")
"""Parts of a condition that are swapped besides the attributes."""


def swapped(condition: Condition, names: Collection[str] | None = None) -> Condition:
    """The condition with every image's replaced by that of the image half a batch further on.

    Neighbours in a batch are often slices of one person, whose conditions are equal.

    Args:
        condition: of a batch.
        names: the attributes, or parts, that are swapped; None: all. Given slices stay, as they belong to their image.
    """

    def turned(name: str, value: Tensor) -> Tensor:
        return value.roll(max(1, len(value) // 2), 0) if names is None or name in names else value

    attributes = {name: turned(name, value) for name, value in condition.attributes.items()}
    parts: dict[str, Any] = {
        name: turned(name, value) for name in PARTS if (value := getattr(condition, name)) is not None
    }
    return replace(condition, attributes=attributes, **parts)


def differing(one: Condition, other: Condition, num: int, device: torch.device) -> Tensor:
    """Which of `num` images have another condition in one than in the other, b, bool; absent equals absent."""
    found = torch.zeros(num, dtype=torch.bool, device=device)
    pairs = [(value, other.attributes[name]) for name, value in one.attributes.items()]
    pairs += [(getattr(one, name), getattr(other, name)) for name in PARTS if getattr(one, name) is not None]
    for a, b in pairs:
        found = found | ((a != b) & ~(a.isnan() & b.isnan())).reshape(num, -1).any(1)
    return found


def relative_change(prediction: Tensor, other: Tensor) -> Tensor:
    """|prediction - other| of each image, b, as a share of the larger norm of both; 0 where both are zero."""
    prediction, other = prediction.float().flatten(1), other.float().flatten(1)
    size = torch.maximum(prediction.norm(dim=1), other.norm(dim=1)).clamp(min=torch.finfo(torch.float32).tiny)
    return (prediction - other).norm(dim=1) / size


@dataclass(frozen=True)
class Swaps:
    """What swaps did to images.

    Attributes:
        change: n, of the prediction, relative to its size.
        gain: n, in error.
        differs: n, bool: whether the condition was another at all; the others measure nothing.
    """

    change: Tensor
    gain: Tensor
    differs: Tensor

    @classmethod
    def join(cls, parts: Sequence[Swaps]) -> Swaps:
        """Those of several batches."""
        return cls(
            *(torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("change", "gain", "differs"))
        )


def scores_of(swaps: Mapping[str, Swaps], people: Sequence[str]) -> dict[str, Score]:
    """The scores of a report: effect and gain of all covariates swapped together, and the effect of each alone.

    Args:
        swaps: first "", for all together, then covariate -> of it alone.
        people: n, whose each image is.
    """
    scores: dict[str, Score] = {}
    for name, found in swaps.items():
        key, whose = f"condition_effect_{name}" if name else "condition_effect", name or "their conditions"
        of = f"change of predictions when images swap {whose}, as a share of their size"
        scores[key] = _score(found.change, found, people, of)
        said_of_all = bool(name) and bool(scores["condition_effect"].warning)
        if (effect := scores[key].value) is not None and not effect >= NOISE and not said_of_all:
            warning = (
                f"predictions hardly hear {whose}: swapped, they change by {effect:.2g} of their size, less than "
                f"bfloat16 rounds ({NOISE:.2g})."
            )
            scores[key] = replace(scores[key], warning=warning)
    together = swaps[""]
    of = "rise of a prediction's error when images swap their conditions"
    gain = scores["condition_gain"] = _score(together.gain, together, people, of)
    num_people = len({who for who, differs in zip(people, together.differs.tolist(), strict=True) if differs})
    if gain.ci95 and num_people >= MIN_PEOPLE and not gain.ci95[0] > 0 and not scores["condition_effect"].warning:
        warning = (
            "conditions change predictions, but do not make them better as far as can be seen: the 95 % interval of "
            f"condition_gain is not above 0 ({gain.num} images of {num_people} people)."
        )
        scores["condition_gain"] = replace(gain, warning=warning)
    return scores


def _score(values: Tensor, swaps: Swaps, people: Sequence[str], of: str) -> Score:
    """The mean over images whose condition was another, with its interval; of None where there are none."""
    chosen = swaps.differs.nonzero().flatten().tolist()
    if not chosen:
        return Score(None, f"{of}: not measured, no two images had different ones", num=0)
    estimate = mean_over_people(values[chosen].double(), [people[i] for i in chosen])
    return Score(estimate.value, of, estimate.interval, len(chosen))
