"""Skill of a classifier against the noise in its images: what it predicted of each image at several times, and scores.

Shapes: n images, k labels, m times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Score
from lit_medgen.metrics.agreement import AgreementMetric
from lit_medgen.metrics.base import Estimate
from lit_medgen.metrics.skill import AreaUnderROC, ExplainedVariance
from lit_medgen.people import numbered
from lit_medgen.training.label_likelihoods import Kind

SKILLS: dict[Kind, tuple[str, type[AgreementMetric], float, str]] = {
    "binary": ("auc", AreaUnderROC, 0.5, "area under the ROC curve"),
    "number": ("r2", ExplainedVariance, 0.0, "share of the variance explained (R^2)"),
}
"""Kind of a label -> prefix of its score's name, what makes the score, its value for a guess, and its name in words."""


@dataclass(frozen=True)
class Predicted:
    """What was predicted of some images.

    Attributes:
        keys: n store keys.
        people: n, whose each image is (hashed); "" for nobody's.
        labels: n k, NaN where a label is not known.
        values: n m k, probabilities of binary labels and numbers in the unit of the data.
    """

    keys: list[str]
    people: list[str]
    labels: Tensor
    values: Tensor

    @classmethod
    def join(cls, parts: Sequence[Predicted]) -> Predicted:
        """All parts as one, on the CPU."""
        return cls(
            [key for part in parts for key in part.keys],
            [person for part in parts for person in part.people],
            torch.cat([part.labels for part in parts]).cpu(),
            torch.cat([part.values for part in parts]).cpu(),
        )


class Skill:
    """Scores of predictions at each time.

    Args:
        predicted: what was predicted of the images.
        kinds: name of each of the k labels -> what it is.
        times: the m times.
    """

    def __init__(self, predicted: Predicted, kinds: Mapping[str, Kind], times: Sequence[float]) -> None:
        self.predicted, self.kinds, self.times = predicted, dict(kinds), tuple(times)

    @cached_property
    def curves(self) -> dict[str, list[Estimate]]:
        """Label -> its score at each time; NaN where the labels define none, or no interval."""
        return {
            name: [self._estimate(name, self.predicted.values[:, i, k]) for i in range(len(self.times))]
            for k, name in enumerate(self.kinds)
        }

    def named(self, name: str) -> str:
        """The name of a label's score: auc_<label> or r2_<label>."""
        return f"{SKILLS[self.kinds[name]][0]}_{name}"

    def known(self, name: str) -> Tensor:
        """Which images have a label, n, bool."""
        return ~self.predicted.labels[:, list(self.kinds).index(name)].isnan()

    def _estimate(self, name: str, values: Tensor) -> Estimate:
        known = self.known(name)
        if not known.any():
            return Estimate(torch.nan, (torch.nan, torch.nan))
        metric = SKILLS[self.kinds[name]][1]()
        people = [person for person, there in zip(self.predicted.people, known.tolist(), strict=True) if there]
        labels = self.predicted.labels[:, list(self.kinds).index(name)]
        metric.update(labels[known], values[known], people)
        return metric.estimate()

    def clean(self) -> dict[str, float]:
        """Score's name -> its value on images without noise, of the labels that define one."""
        found = {self.named(name): curve[0].value for name, curve in self.curves.items()}
        return {name: value for name, value in found.items() if value == value}

    def scores(self, images: str, noisy: str) -> dict[str, Score]:
        """The scores for a report.

        Args:
            images: what those of the first time, 0, are of, in words.
            noisy: the same of later ones.
        """
        found = {}
        for name, curve in self.curves.items():
            for t, estimate in zip(self.times, curve, strict=True):
                what = f"{images}" if t == 0 else f"{noisy}, t = {t:g}"
                found[self.named(name) + (f"_t{t:g}" if t else "")] = self._score(name, estimate, what, t == 0)
        return found

    def _score(self, name: str, estimate: Estimate, images: str, is_clean: bool) -> Score:
        of, num = f"{SKILLS[self.kinds[name]][3]} of {name}; {images}", int(self.known(name).sum())
        if estimate.value != estimate.value:
            return Score(None, f"{of}: not defined, as all labels are equal or unknown", num=num)
        interval = estimate.interval
        guess = SKILLS[self.kinds[name]][2]
        warning = ""
        if is_clean and (interval is None or interval[0] <= guess):
            warning = f"{self.named(name)} on clean images cannot be told from that of a guess, {guess:g}."
        return Score(estimate.value, of, interval, num, warning)

    def panels(self) -> list[dict[str, Any]]:
        """What `save_skill` shows of each label that has a score at any time."""
        return [
            {
                "y": f"{SKILLS[self.kinds[name]][3]}\nof {name}",
                "guess": SKILLS[self.kinds[name]][2],
                "t": list(self.times),
                "value": [estimate.value for estimate in curve],
                "interval": [estimate.ci95 for estimate in curve],
            }
            for name, curve in self.curves.items()
            if any(estimate.value == estimate.value for estimate in curve)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Of each image its key, the number of its person, each label and what was predicted of it without noise.

        People are numbered in the order of the images: files of predictions need not say more of them.
        """
        rows = []
        people = numbered(self.predicted.people)
        images = self.predicted.keys, people, self.predicted.labels, self.predicted.values[:, 0]
        for key, person, labels, values in zip(*images, strict=True):
            row: dict[str, Any] = {"key": key, "person": person}
            for name, label, value in zip(self.kinds, labels.tolist(), values.tolist(), strict=True):
                row |= {name: label if label == label else None, f"{name}_predicted": value}
            rows.append(row)
        return rows
