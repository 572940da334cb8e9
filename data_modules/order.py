"""The order of training samples as a pure function of (seed, position).

Position p counts samples over all ranks since the start of the run. One pass over n samples is one "epoch" of
the order, shuffled anew from (seed, epoch); a run is one endless stream of positions. So the order does not
depend on the number of ranks or workers, and a run continues where it stopped by starting at another position.

With weights, sample i stands in each pass floor(n w_i) or ceil(n w_i) times, w normalised to sum to 1 (systematic
resampling), so that shares are met in every pass and not on average alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from torch.utils.data import Sampler

from lit_medgen.seeds import mix

Sample = tuple[int, int]
"""(position in the run, index of the image)."""


class Order:
    """Which of `num` samples stands at a position; without weights (0 or more), every one once in each pass."""

    def __init__(self, num: int, seed: int, weights: Sequence[float] | np.ndarray | None = None) -> None:
        self.num, self.seed = num, seed
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self._passes: dict[int, np.ndarray] = {}  # of the last two passes, as ranks look across the end of one

    def __call__(self, position: int) -> int:
        """The index of the sample."""
        epoch, index = divmod(position, self.num)
        if epoch not in self._passes:
            self._passes = {key: kept for key, kept in self._passes.items() if key == epoch - 1}
            self._passes[epoch] = self.one_pass(epoch)
        return int(self._passes[epoch][index])

    def one_pass(self, epoch: int) -> np.ndarray:
        """num: the shuffled indices of one pass."""
        random = np.random.default_rng(mix("order", self.seed, epoch))
        order = random.permutation(self.num)
        if self.weights is None:
            return order
        points = (np.arange(self.num) + random.random()) / self.num * self.weights.sum()
        chosen: np.ndarray = np.searchsorted(self.weights.cumsum(), points, side="right").clip(max=self.num - 1)
        return chosen[order]


class PositionBatches(Sampler[list[Sample]]):
    """Endless batches for one rank.

    Batch k of w ranks with b samples each covers the b positions from first + (k w + rank) b on; `first` is how many
    samples the run has used, on all ranks together.
    """

    def __init__(self, order: Order, batch_size: int, rank: int = 0, world_size: int = 1, first: int = 0) -> None:
        self.order, self.batch_size = order, batch_size
        self.rank, self.world_size, self.first = rank, world_size, first

    def __iter__(self) -> Iterator[list[Sample]]:
        for k in count():
            start = self.first + (k * self.world_size + self.rank) * self.batch_size
            yield [(p, self.order(p)) for p in range(start, start + self.batch_size)]


def balanced(values: Sequence[float]) -> np.ndarray:
    """The weight of each sample that gives every value among them the same share; all NaN are one value."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    weights: np.ndarray = 1 / counts[inverse]
    return weights
