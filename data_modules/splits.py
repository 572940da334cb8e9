"""Patient-wise splits: all visits of a person fall together, and a person never changes sides.

A person has a number in [0, 1) hashed from (seed, person), so adding or withdrawing people moves nobody
else. The price is that the shares are met on average only.

For cross-validation the same number names one of n equal parts, which is tested: each person in one fold of the n.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_medgen.errors import InputError
from lit_medgen.seeds import mix

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Fold:
    """One of several trainings that test each person once.

    Attributes:
        k: its number, from 0.
        n: how many folds there are.
    """

    k: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Fold:
        """From "k of n"; InputError if it is anything else."""
        match = re.fullmatch(r"\s*(\d{1,6}) of (\d{1,6})\s*", text, re.ASCII)
        if match is None or int(match[2]) < 2 or int(match[1]) >= int(match[2]):
            raise InputError(
                f"data.init_args.fold is '{text}'; give '<k> of <n>' with n of at least 2 and k from 0 to n - 1, such "
                "as '0 of 5'."
            )
        return cls(int(match[1]), int(match[2]))

    def split_of(self, person: str, val_share: float, seed: int) -> Split:
        """The part of a person in this fold; of those who are not tested, `val_share` are validated on.

        Who can be validated on is the same in all folds, so that another `val_share` changes nobody's test.
        """
        if mix("split", seed, person) * self.n >> 63 == self.k:
            return "test"
        return "val" if mix("validation", seed, person) / 2**63 >= 1 - val_share else "train"


def split_of(person: str, fractions: Sequence[float], seed: int) -> Split:
    """The split of a person, whose identifier is that of all visits, by the shares of train, val and test."""
    number = mix("split", seed, person) / 2**63
    # From the end, so that the test people stay put when validation is made larger or smaller.
    if number >= 1 - fractions[2]:
        return "test"
    return "val" if number >= 1 - fractions[2] - fractions[1] else "train"


def identity(people: Iterable[str]) -> str:
    """One hash of a set of people: equal for the same people, in whatever order and however often each is named."""
    return hashlib.sha256("\n".join(sorted(set(people))).encode()).hexdigest()
