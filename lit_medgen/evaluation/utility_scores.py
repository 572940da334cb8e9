"""Scores of the networks of `utility`, and paired differences of two, with intervals over people and seeds.

A score is the mean over seeds. Its interval adds two variances: that of the jackknife, which leaves a test person out
of all seeds at once, and that over seeds divided by their number, for which people were trained on and from which
weights; of few seeds it counts by the quantile of Student's t instead of 1.96.
Two networks are tested on the same people with the same seeds, so their difference is taken person by person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from lit_medgen.evaluation.utility_tasks import Task
from lit_medgen.metrics.base import images_of_people, jackknife_variance

Values = Mapping[str, Tensor]
"""Score -> its value for each seed, of all test people and then without each of them; seeds 1+people, float64."""


def values_of_outcomes(task: Task, outcomes: Sequence[Tensor], people: Sequence[str]) -> Values:
    """The values of a task's scores.

    Args:
        task: what was predicted.
        outcomes: of each seed, n d, as `Task.outcomes` gives them.
        people: n, whose each tested image is.
    """
    kept = [torch.ones(len(people), dtype=torch.bool)]
    for some in images_of_people(people).values():
        kept.append(torch.ones(len(people), dtype=torch.bool))
        kept[-1][some] = False
    found = torch.tensor([[task.score(each[rows]) for rows in kept] for each in outcomes], dtype=torch.float64)
    return {score.name: found[:, :, k] for k, score in enumerate(task.scores)}


def rows_of(task: Task, values: Values) -> dict[str, dict[str, Any]]:
    """Score -> value, 95 % interval, and the value of each seed."""
    return {score.name: _row(values[score.name], score.limits) for score in task.scores}


def differences(task: Task, values: Values, others: Values) -> dict[str, dict[str, Any]]:
    """The same of one less the other, of the same people and seeds."""
    return {score.name: _row(values[score.name] - others[score.name]) for score in task.scores}


def _row(values: Tensor, limits: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """The mean over seeds with its interval, which ends where the score does; None where it is not defined."""
    of_seeds, left_out = values[:, 0], values[:, 1:].mean(0)
    value, num = float(of_seeds.mean()), len(of_seeds)
    reach = 1.96**2 * jackknife_variance(left_out)
    if num > 1:
        reach += float(stats.t.ppf(0.975, num - 1)) ** 2 * float(of_seeds.var()) / num
    low, high = value - reach**0.5, value + reach**0.5
    defined = len(left_out) > 1 and math.isfinite(reach)
    return {
        "value": value if math.isfinite(value) else None,
        "ci95": [max(low, limits[0]), min(high, limits[1])] if defined else None,
        "seeds": of_seeds.tolist() if math.isfinite(value) else None,
    }
