"""Patient-wise splits: all visits of a person fall together, and a person never changes sides.

A person has a number in [0, 1) hashed from (seed, person), so adding or withdrawing people moves nobody
else. The price is that the shares are met on average only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from lit_medgen.seeds import mix

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


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
