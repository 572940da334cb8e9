"""Pixel scores equal scikit-learn's, ties included, and their intervals are jackknives over people."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import Tensor

from lit_medgen.metrics.base import jackknife_variance
from lit_medgen.metrics.pixelwise import auroc_and_precision, dice

PEOPLE = ["a", "b", "b", "c", "d"]


def drawn(levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """Values of five images of several sizes, so many of them different at most, and their marked voxels."""
    generator = torch.Generator().manual_seed(0)
    marked = [torch.rand(40 + 7 * k, generator=generator) < 0.2 for k in range(5)]
    values = [(torch.randn(len(each), generator=generator) + each).mul(levels / 4).round() / levels for each in marked]
    return values, marked


@pytest.mark.parametrize("levels", [4, 10**6], ids=["ties", "no ties"])
def test_they_are_those_of_scikit_learn(levels: int) -> None:
    values, marked = drawn(levels)
    scores = roc_auc_score, average_precision_score
    found = auroc_and_precision(values, marked, PEOPLE)
    for score, estimate in zip(scores, found, strict=True):
        assert estimate.value == pytest.approx(score(torch.cat(marked), torch.cat(values)), abs=1e-12)
        left = []
        for person in "abcd":
            some = [k for k, who in enumerate(PEOPLE) if who != person]
            left.append(score(torch.cat([marked[k] for k in some]), torch.cat([values[k] for k in some])))
        error = jackknife_variance(torch.tensor(left, dtype=torch.float64)) ** 0.5
        assert estimate.ci95 == pytest.approx((estimate.value - 1.96 * error, min(1, estimate.value + 1.96 * error)))


def test_what_has_no_score() -> None:
    values, marked = drawn(4)
    one = auroc_and_precision(values[:1], marked[:1], ["a"])[0]
    assert one.interval is None
    assert math.isfinite(one.value)
    alone = auroc_and_precision(values[:2], [marked[0], torch.zeros_like(marked[1])], ["a", "b"])[0]
    assert alone.interval is None
    with pytest.raises(ValueError, match="marked voxels and others"):
        auroc_and_precision(values, [torch.zeros_like(each) for each in marked], PEOPLE)


def test_dice_is_the_f1_score() -> None:
    values, marked = drawn(4)
    for value, true in zip(values, marked, strict=True):
        assert dice(value > 0.2, true) == pytest.approx(f1_score(true, value > 0.2))
    assert dice(torch.zeros(3).bool(), torch.zeros(3).bool()) == 1
