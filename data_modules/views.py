"""Which slices of a volume make a training item: one (2D methods), or the sets C (condition) and P (target) of cDPM.

A draw is a pure function of its generator, which the data set seeds from (seed, position), so the sets are known
before a file is read and a resumed run draws the same ones. Facts: Peng et al. 2023, section 2.2; the authors'
port and Harvey et al. 2022, "Flexible Diffusion Modeling of Long Videos", section 4.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from lit_medgen.batch import PADDING
from lit_medgen.errors import InputError


@dataclass(frozen=True)
class Slices:
    """A set of slices in a fixed number of places.

    Attributes:
        index: n, int64; `PADDING` at the end where the set is smaller than the number of places.
        observed: n, bool; true for condition slices.
    """

    index: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, condition: list[int], target: list[int], places: int) -> Slices:
        """Sorted by index, padded to `places`."""
        both = sorted([(i, True) for i in condition] + [(i, False) for i in target])
        padding = [(PADDING, False)] * (places - len(both))
        index, observed = zip(*both, *padding, strict=True)
        return cls(np.array(index, dtype=np.int64), np.array(observed))


class SliceDraw(ABC):
    """Draws slices of a volume: the sets C and P, unless it is a `OneSlice`.

    Args:
        max_slices: tau_max, the most slices that C and P have together.
    """

    def __init__(self, max_slices: int = 20) -> None:
        if max_slices < 1:
            raise ValueError(f"slices.init_args.max_slices is {max_slices}; give at least 1.")
        self.max_slices = max_slices

    @abstractmethod
    def draw(self, num_slices: int, random: np.random.Generator) -> Slices:
        """Sets from a volume of `num_slices`."""


class OneSlice(SliceDraw):
    """A single slice as an image in 2D, every one of the middle slices as likely as the others.

    Args:
        middle: how many of the middle slices are used; None: all.
        per_person: how many slices of a person evaluation looks at, evenly spread over those used.
    """

    def __init__(self, middle: int | None = None, per_person: int = 4) -> None:
        super().__init__(1)
        for name, value in (("middle", middle), ("per_person", per_person)):
            if value is not None and value < 1:
                raise ValueError(f"slices.init_args.{name} is {value}; give at least 1.")
        self.middle, self.per_person = middle, per_person

    def used(self, num_slices: int) -> np.ndarray:
        """The slices that can be drawn, in order; InputError if there are fewer than `middle`."""
        middle = self.middle or num_slices
        if middle > num_slices:
            raise InputError(f"data.init_args.slices.init_args.middle is {middle}, but there are {num_slices} slices.")
        return np.arange(middle) + (num_slices - middle) // 2

    def evaluated(self, num_slices: int) -> np.ndarray:
        """The slices of each person that evaluation looks at: the middles of equal parts of those used."""
        used = self.used(num_slices)
        if self.per_person > len(used):
            raise InputError(
                f"data.init_args.slices.init_args.per_person is {self.per_person}, but {len(used)} slices are used."
            )
        return used[((np.arange(self.per_person) + 0.5) / self.per_person * len(used)).astype(int)]

    def draw(self, num_slices: int, random: np.random.Generator) -> Slices:
        """One slice from a volume of `num_slices`."""
        return Slices.of([], [int(random.choice(self.used(num_slices)))], 1)


class UniformDraw(SliceDraw):
    """Arbitrary sets with |P| >= 1 and |C| + |P| <= tau_max (paper, section 2.2).

    The paper fixes no distribution of the sizes. Here |P| is uniform on 1 ... tau_max, then |C| is uniform on what
    is left, 0 included, and the slices are drawn without replacement.
    """

    def draw(self, num_slices: int, random: np.random.Generator) -> Slices:
        """Sets from a volume of `num_slices`."""
        most = min(self.max_slices, num_slices)
        num_target = int(random.integers(1, most + 1))
        num_condition = int(random.integers(0, most - num_target + 1))
        chosen = random.permutation(num_slices)[: num_target + num_condition].tolist()
        return Slices.of(chosen[num_target:], chosen[:num_target], self.max_slices)


class FDMDraw(SliceDraw):
    """Groups of evenly spaced slices, as the reference code draws them (Harvey et al. 2022, section 4).

    A group has a uniform size and a log-uniform stride at a random place. The first group is target; each further
    one is condition or target with equal chance, until the places are full.
    """

    def draw(self, num_slices: int, random: np.random.Generator) -> Slices:
        """Sets from a volume of `num_slices`."""
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


class ContiguousDraw(SliceDraw):
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
        others: SliceDraw | None = None,
    ) -> None:
        super().__init__(max_slices)
        num_target = num_target or (max_slices + 1) // 2
        self.others = others or UniformDraw(max_slices)
        if not 0 <= share <= 1:
            raise ValueError(f"slices.init_args.share is {share}; give 0 to 1.")
        if not 1 <= num_target <= max_slices:
            raise ValueError(f"slices.init_args.num_target is {num_target}; give 1 to max_slices, {max_slices}.")
        if self.others.max_slices != max_slices:
            raise ValueError(
                f"slices.init_args.max_slices is {max_slices}, but that of slices.init_args.others is "
                f"{self.others.max_slices}; give the same."
            )
        self.share, self.num_target = share, num_target

    def draw(self, num_slices: int, random: np.random.Generator) -> Slices:
        """Sets from a volume of `num_slices`."""
        if random.random() >= self.share:
            return self.others.draw(num_slices, random)
        first = self.num_target * int(random.integers(math.ceil(num_slices / self.num_target)))
        target = list(range(first, min(first + self.num_target, num_slices)))
        condition = list(range(max(0, first - (self.max_slices - self.num_target)), first))
        return Slices.of(condition, target, self.max_slices)
