"""Sets C (given) and P (target) of the slices of a volume, from which cDPM learns.

Facts: Peng et al. 2023, section 2.2; the authors' port and Harvey et al. 2022, "Flexible Diffusion Modeling of Long
Videos", section 4.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_modules.records import Record
from data_modules.views import Grid, Read, View, grid_of_slices
from lit_medgen.batch import PADDING, DataSpec


@dataclass(frozen=True)
class Slices:
    """A set of slices of a fixed length n, padded where it is smaller."""

    index: np.ndarray  # n, int64; `PADDING` at the end where the set is smaller
    observed: np.ndarray  # n, bool; true for condition slices

    @classmethod
    def of(cls, condition: list[int], target: list[int], length: int) -> Slices:
        """Sorted by index, padded to `length`."""
        both = sorted([(i, True) for i in condition] + [(i, False) for i in target])
        padding = [(PADDING, False)] * (length - len(both))
        index, observed = zip(*both, *padding, strict=True)
        return cls(np.array(index, dtype=np.int64), np.array(observed))


class SliceSets(View[Slices | None]):
    """Sets C (given) and P (target) of the slices of a volume; evaluation looks at whole volumes (None).

    Args:
        max_slices: tau_max, the most slices that C and P have together.
    """

    reads_slices = True

    def __init__(self, max_slices: int = 20) -> None:
        if max_slices < 1:
            raise ValueError(f"view.init_args.max_slices is {max_slices}; give at least 1.")
        self.max_slices = max_slices

    @abstractmethod
    def sets(self, num_slices: int, random: np.random.Generator) -> Slices:
        """C and P from a volume of `num_slices`."""

    def spec(self, stored: DataSpec, axis: str) -> DataSpec:
        """Volumes whose slices lie along an axis."""
        grid_of_slices(stored, axis)
        return replace(stored, slice_axis=axis)

    def draw(self, grid: Grid, record: Record, random: np.random.Generator) -> Slices:
        """Sets C and P of a volume."""
        return self.sets(grid.num_slices, random)

    def evaluated(self, grid: Grid, record: Record) -> Sequence[None]:
        """None, which stands for the whole volume."""
        return [None]

    def read(self, read: Read, grid: Grid, selection: Slices | None, padding: float) -> np.ndarray:
        """The slices n h w, `padding` where there is none; or the volume x y z."""
        if selection is None:
            return read(None)
        real = selection.index >= 0
        chosen = read(selection.index[real])
        found = np.full((len(real), *chosen.shape[1:]), padding, dtype=chosen.dtype)
        found[real] = chosen
        return found

    def slice_index(self, selection: Slices | None) -> np.ndarray | None:
        """Of C and P together."""
        return None if selection is None else selection.index

    def observed(self, selection: Slices | None) -> np.ndarray | None:
        """Which of them are C."""
        return None if selection is None else selection.observed

    def num_voxels(self, grid: Grid) -> int:
        """Voxels of as many slices as there can be."""
        return math.prod(grid.size) // grid.num_slices * self.max_slices


class UniformDraw(SliceSets):
    """Arbitrary sets with |P| >= 1 and |C| + |P| <= tau_max (paper, section 2.2).

    The paper fixes no distribution of the sizes. Here |P| is uniform on 1 ... tau_max, then |C| is uniform on what
    is left, 0 included, and the slices are drawn without replacement.
    """

    def sets(self, num_slices: int, random: np.random.Generator) -> Slices:
        """C and P from a volume of `num_slices`."""
        most = min(self.max_slices, num_slices)
        num_target = int(random.integers(1, most + 1))
        num_condition = int(random.integers(0, most - num_target + 1))
        chosen = random.permutation(num_slices)[: num_target + num_condition].tolist()
        return Slices.of(chosen[num_target:], chosen[:num_target], self.max_slices)


class FDMDraw(SliceSets):
    """Groups of evenly spaced slices, as the reference code draws them (Harvey et al. 2022, section 4).

    A group has a uniform size and a log-uniform stride from a random first slice. The first group is target; each
    further one is condition or target with equal chance, until the set is full.
    """

    def sets(self, num_slices: int, random: np.random.Generator) -> Slices:
        """C and P from a volume of `num_slices`."""
        most = min(self.max_slices, num_slices)
        role: dict[int, bool] = {}  # slice -> observed
        observed = False
        while len(role) < most:
            for index in self._group(num_slices, most, random):
                if len(role) < most:
                    role.setdefault(index, observed)
            observed = bool(random.integers(2))
        return Slices.of([i for i, o in role.items() if o], [i for i, o in role.items() if not o], self.max_slices)

    @staticmethod
    def _group(num_slices: int, most: int, random: np.random.Generator) -> list[int]:
        size = int(random.integers(1, most + 1))
        # The longest stride that keeps the group inside: (size - 1) stride <= num_slices - 1; a group of one has any.
        longest = (num_slices - 1) / max(size - 1, 1)
        stride = math.exp(random.uniform(0, math.log(max(longest, 1))))
        span = stride * (size - 1)
        first = random.uniform(0, num_slices - span)
        return sorted({min(int(first + k * stride), num_slices - 1) for k in range(size)})


class ContiguousDraw(SliceSets):
    """Stages of the paper's sampling for a share of the items, the sets of another draw for the rest (ours).

    `Autoregressive` sampling asks for runs of neighbouring slices, each from those just before it. Sets drawn by
    `UniformDraw` from many slices are hardly ever such runs. A stage here is a run of `num_target` slices that
    starts at 0, num_target, 2 num_target, ..., every one as likely, with the slices before it, up to `max_slices` in
    all, as conditions; the first has none.

    Args:
        max_slices: tau_max, the most slices that C and P have together.
        share: of the items that are stages, 0 to 1.
        num_target: slices of a run, as the sampling scheme's; None: half of `max_slices`.
        others: draws the rest; None: `UniformDraw`.
    """

    def __init__(
        self,
        max_slices: int = 20,
        share: float = 0.5,
        num_target: int | None = None,
        others: SliceSets | None = None,
    ) -> None:
        super().__init__(max_slices)
        num_target = num_target or (max_slices + 1) // 2
        self.others = others or UniformDraw(max_slices)
        if not 0 <= share <= 1:
            raise ValueError(f"view.init_args.share is {share}; give 0 to 1.")
        if not 1 <= num_target <= max_slices:
            raise ValueError(f"view.init_args.num_target is {num_target}; give 1 to max_slices, {max_slices}.")
        if self.others.max_slices != max_slices:
            raise ValueError(
                f"view.init_args.max_slices is {max_slices}, but that of view.init_args.others is "
                f"{self.others.max_slices}; give the same."
            )
        self.share, self.num_target = share, num_target

    def sets(self, num_slices: int, random: np.random.Generator) -> Slices:
        """C and P from a volume of `num_slices`."""
        if random.random() >= self.share:
            return self.others.sets(num_slices, random)
        first = self.num_target * int(random.integers(math.ceil(num_slices / self.num_target)))
        target = list(range(first, min(first + self.num_target, num_slices)))
        condition = list(range(max(0, first - (self.max_slices - self.num_target)), first))
        return Slices.of(condition, target, self.max_slices)
