r"""How well maps tell marked voxels from others: exact ranks of voxels pooled over images, intervals over people.

With the marked voxels' values u and the others' v, N and M of them,

    AUROC = mean over u of (#{v < u} + #{v = u} / 2) / M
    AP    = mean over u of #{u' >= u} / (#{u' >= u} + #{v >= u})

which are the area under the ROC curve (Mann & Whitney 1947) and the step-wise area under the precision-recall curve, as
scikit-learn has them, ties included. Both are sums of counts between pairs of people, so the jackknife over people,
which leaves out all voxels of a person, costs no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.metrics.base import Estimate, images_of_people, jackknife_variance


@dataclass(frozen=True)
class Ranks:
    """Counts between the marked voxels of all people and the voxels of each person.

    Attributes:
        owner: n, number of the person whose each marked voxel is.
        others_above: n p, how many other voxels of each of the p people have a higher value than a marked voxel.
        others_level: n p, how many have the same.
        marked_above: n p, how many marked voxels of each person have at least its value, itself included.
        others: p, other voxels of each person.
    """

    owner: Tensor
    others_above: Tensor
    others_level: Tensor
    marked_above: Tensor
    others: Tensor

    @classmethod
    def of(cls, values: Sequence[Tensor], marked: Sequence[Tensor], people: Sequence[str]) -> Ranks:
        """The counts of images: values of the voxels that count, n of each, whether each is marked, and whose they are.

        ValueError without any marked voxel, or without others.
        """
        groups = images_of_people(people).values()
        own, other = [], []
        for some in groups:
            value = torch.cat([values[i].flatten() for i in some.tolist()]).double()
            is_marked = torch.cat([marked[i].flatten() for i in some.tolist()])
            own.append(value[is_marked].sort().values)
            other.append(value[~is_marked].sort().values)
        every = torch.cat(own)
        if not len(every) or not sum(len(each) for each in other):
            raise ValueError("marked voxels and others are needed; there are none of one of them.")
        below = [torch.searchsorted(each, every) for each in other]
        not_above = [torch.searchsorted(each, every, right=True) for each in other]
        lengths = torch.tensor([len(each) for each in other])
        return cls(
            owner=torch.repeat_interleave(torch.tensor([len(each) for each in own])),
            others_above=lengths - torch.stack(not_above, dim=1),
            others_level=torch.stack(not_above, dim=1) - torch.stack(below, dim=1),
            marked_above=torch.stack([len(each) - torch.searchsorted(each, every) for each in own], dim=1),
            others=lengths,
        )

    def without(self, person: int | None) -> tuple[float, float]:
        """AUROC and AP of all people but one (None: of all); NaN where nothing is left of marked voxels or others."""
        there = torch.ones(len(self.others), dtype=torch.bool)
        rows = torch.ones(len(self.owner), dtype=torch.bool)
        if person is not None:
            there[person], rows = False, self.owner != person
        num = int(self.others[there].sum())
        if not num or not rows.any():
            return float("nan"), float("nan")
        above, level, marked = (
            each[rows][:, there].sum(1).double() for each in (self.others_above, self.others_level, self.marked_above)
        )
        auroc = ((num - above - level) + level / 2).mean() / num
        return float(auroc), float((marked / (marked + above + level)).mean())


def auroc_and_precision(
    values: Sequence[Tensor], marked: Sequence[Tensor], people: Sequence[str]
) -> tuple[Estimate, Estimate]:
    """AUROC and average precision of voxels pooled over images, with their 95 % intervals; arguments as of `Ranks.of`.

    The ends are NaN where one person has all marked voxels.
    """
    ranks = Ranks.of(values, marked, people)
    whole = ranks.without(None)
    parts = torch.tensor([ranks.without(person) for person in range(len(ranks.others))], dtype=torch.float64)
    return _estimate(whole[0], parts[:, 0]), _estimate(whole[1], parts[:, 1])


def _estimate(value: float, parts: Tensor) -> Estimate:
    """A score in [0, 1] with its interval, from its values without each person."""
    if len(parts) < 2 or parts.isnan().any():
        return Estimate(value, (float("nan"), float("nan")))
    error = jackknife_variance(parts) ** 0.5
    return Estimate(value, (max(value - 1.96 * error, 0.0), min(value + 1.96 * error, 1.0)))


def dice(found: Tensor, true: Tensor) -> float:
    """Overlap 2 |A B| / (|A| + |B|) of two masks (Dice 1945); 1 where both are empty."""
    total = int(found.sum() + true.sum())
    return 2 * float((found & true).sum()) / total if total else 1.0
