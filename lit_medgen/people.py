"""Which people a model was trained on, told by hashes alone, also when some of them have withdrawn since.

A set of people is known by the XOR of a long hash of each. Of a model that was trained on some people, and data that
lacks those who have left since, the two sums differ by the sum of those. If they are on a list (of withdrawals), they
are found as the one solution of linear equations over bits; for any other difference there is none, but for a share of
2**-(`BITS` - people listed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

BITS = 2048
"""Of a sum; people on a list that can be told apart are `SPARE` fewer."""
SPARE = 64


def sum_of(people: Iterable[str]) -> str:
    """The sum of a set of people in hexadecimal, in whatever order and however often each is named."""
    total = 0
    for person in set(people):
        total ^= _number(person)
    return f"{total:0{BITS // 4}x}"


def sum_of_all(sums: Iterable[str]) -> str:
    """The sum of all people of sets that have nobody in common, from those of the sets, which may be unknown ("")."""
    total = 0
    for one in sums:
        total ^= int(one or "0", 16)
    return f"{total:0{BITS // 4}x}"


def who_left(before: str, now: str, listed: Iterable[str]) -> list[str] | None:
    """The listed people who are in the first sum and not in the second, if that is all they differ by; else None.

    None also where a sum is not known, or where too many people are listed for a certain answer.
    """
    people = sorted(set(listed))
    if not before or not now or len(people) > BITS - SPARE:
        return None
    chosen = _solution([_number(person) for person in people], int(before, 16) ^ int(now, 16))
    return None if chosen is None else [person for k, person in enumerate(people) if chosen >> k & 1]


def _number(person: str) -> int:
    return int.from_bytes(hashlib.shake_256(person.encode()).digest(BITS // 8))


def _solution(numbers: Sequence[int], target: int) -> int | None:
    """Which of the numbers (a bit for each) have the target as their XOR; None if no choice has."""
    basis: dict[int, tuple[int, int]] = {}  # highest bit -> a sum with that bit, and what it is the sum of

    def reduced(value: int, chosen: int) -> tuple[int, int]:
        while value and (step := basis.get(value.bit_length())):
            value, chosen = value ^ step[0], chosen ^ step[1]
        return value, chosen

    for k, number in enumerate(numbers):
        value, chosen = reduced(number, 1 << k)
        if value:
            basis[value.bit_length()] = value, chosen
    value, chosen = reduced(target, 0)
    return None if value else chosen


def numbered(people: Sequence[str]) -> list[int]:
    """A number for each person in the order of their first images, as names are told to nobody."""
    numbers = {person: number for number, person in enumerate(dict.fromkeys(people))}
    return [numbers[person] for person in people]
