"""Slices in whose place those of others stand."""

from __future__ import annotations

import pytest

from benchmarks.whole_slices import strangers


@pytest.mark.parametrize("people", ["aabbc", "abab", "aab", "abcabc"])
def test_strangers_are_of_other_people(people: str) -> None:
    found = strangers(people)
    assert len(found) == len(people)
    assert all(people[i] != people[j] for i, j in enumerate(found))


def test_a_person_alone_has_no_stranger() -> None:
    assert strangers("aa") == [0, 1]
