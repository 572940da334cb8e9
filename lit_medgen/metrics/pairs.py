"""Scores that are means over pairs of images, and the same with a person left out, without looking at all pairs again.

Of a matrix K of all pairs, the sum without the rows a and columns b is that of K, less those of the rows and of the
columns, plus that of their crossings, which were taken away twice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_medgen.metrics.base import LeftOut, TwoSampleMetric


class PairMetric(TwoSampleMetric):
    """A score of mean values of pairs: of samples (xx), of real images (yy), of samples and real images (xy)."""

    diagonal = False
    """Whether an image is a pair with itself."""

    @abstractmethod
    def _of_means(self, means: Mapping[str, Tensor]) -> Tensor:
        """The score, from the mean over the pairs of every matrix that `statistics` gives."""

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        chosen, means = {"x": x, "y": y}, {}
        for name, matrix in statistics.items():
            some = matrix[chosen[name[0]]][:, chosen[name[1]]].double()
            means[name] = some.mean() if self._counts_all(name) else mean_off_diagonal(some)
        return float(self._of_means(means))

    def without(self, statistics: dict[str, Tensor], left_out: Sequence[LeftOut], num: tuple[int, int]) -> Tensor:
        """The score without some images, for each choice of them, from the sums of all pairs."""
        means = {}
        for name, matrix in statistics.items():
            chosen = [{"xx": (x, x), "yy": (y, y), "xy": (x, y)}[name] for x, y in left_out]
            means[name] = _means_without(matrix.double(), chosen, self._counts_all(name))
        return self._of_means(means)

    def _counts_all(self, name: str) -> bool:
        return self.diagonal or name == "xy"


def mean_off_diagonal(matrix: Tensor) -> Tensor:
    """Mean of a square matrix without its diagonal."""
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def _means_without(matrix: Tensor, left_out: Sequence[tuple[Tensor, Tensor]], diagonal: bool) -> Tensor:
    """g: mean of a matrix without some rows and columns, for each choice of them, with its diagonal or not."""
    if not diagonal:
        matrix = matrix - matrix.diagonal().diag()
    of_rows, of_columns = matrix.sum(1), matrix.sum(0)
    total, means = of_rows.sum(), []
    for rows, columns in left_out:
        n, m = (side - len(gone) for side, gone in zip(matrix.shape, (rows, columns), strict=True))
        rest = total - of_rows[rows].sum() - of_columns[columns].sum() + matrix[rows][:, columns].sum()
        means.append(rest / (n * (m if diagonal else m - 1)))
    return torch.stack(means)
