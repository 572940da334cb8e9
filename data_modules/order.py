"""The order of training samples as a pure function of (seed, position).

Position p counts samples over all ranks since the start of the run. One pass over n samples is one "epoch" of
the order, shuffled anew from (seed, epoch); a run is one endless stream of positions. So the order does not
depend on the number of ranks or workers, and a run continues where it stopped by starting at another position.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
from torch.utils.data import Sampler

from lit_medgen.seeds import mix

Place = tuple[int, int]
"""(position in the run, index of the sample)."""


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num: int) -> np.ndarray:
    """num: the shuffled indices of one pass."""
    return np.random.default_rng(mix("order", seed, epoch)).permutation(num)


def index_at(position: int, num: int, seed: int) -> int:
    """Which of `num` samples stands at a position."""
    epoch, place = divmod(position, num)
    return int(permutation(seed, epoch, num)[place])


class PositionBatches(Sampler[list[Place]]):
    """Endless batches for one rank.

    Batch k of w ranks with b samples each covers the b positions from first + (k w + rank) b on.

    Args:
        num: samples in the training split.
        batch_size: samples of a batch on this rank.
        seed: of the order.
        rank: this process.
        world_size: number of processes.
        first: position to start from: how many samples the run has used, on all ranks together.
    """

    def __init__(
        self, num: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, first: int = 0
    ) -> None:
        self.num, self.batch_size, self.seed = num, batch_size, seed
        self.rank, self.world_size, self.first = rank, world_size, first

    def __iter__(self) -> Iterator[list[Place]]:
        for k in count():
            start = self.first + (k * self.world_size + self.rank) * self.batch_size
            yield [(p, index_at(p, self.num, self.seed)) for p in range(start, start + self.batch_size)]
