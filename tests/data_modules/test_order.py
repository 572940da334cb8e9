"""Order: a pure function of (seed, position), whatever the ranks and wherever a run starts."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.order import Place, PositionBatches, index_at

SIZES = st.integers(1, 50)
SEEDS = st.integers(0, 2**31)


def steps(
    num: int, batch: int, seed: int, steps: int, rank: int = 0, ranks: int = 1, first: int = 0
) -> list[list[Place]]:
    return list(islice(PositionBatches(num, batch, seed, rank, ranks, first), steps))


def global_steps(num: int, batch: int, seed: int, num_steps: int, ranks: int, first: int = 0) -> list[list[Place]]:
    """The places of every step, the ranks one after the other."""
    each = [steps(num, batch // ranks, seed, num_steps, rank, ranks, first) for rank in range(ranks)]
    return [[place for rank in each for place in rank[step]] for step in range(num_steps)]


@given(num=SIZES, seed=SEEDS, epoch=st.integers(0, 20))
@settings(deadline=None, database=None)
def test_each_pass_is_a_permutation(num: int, seed: int, epoch: int) -> None:
    assert sorted(index_at(epoch * num + p, num, seed) for p in range(num)) == list(range(num))


@given(num=SIZES, seed=SEEDS, batch=st.integers(1, 7), first=st.integers(0, 40))
@settings(deadline=None, database=None)
def test_positions_are_counted_without_gap_or_repeat(num: int, seed: int, batch: int, first: int) -> None:
    places = [place for step in steps(num, batch, seed, 12, first=first) for place in step]
    assert [position for position, _ in places] == list(range(first, first + 12 * batch))
    assert [index for _, index in places] == [index_at(position, num, seed) for position, _ in places]


@pytest.mark.parametrize("ranks", [2, 3])
@given(num=SIZES, seed=SEEDS, first=st.integers(0, 9))
@settings(deadline=None, database=None, max_examples=40)
def test_the_order_does_not_depend_on_the_number_of_ranks(ranks: int, num: int, seed: int, first: int) -> None:
    assert global_steps(num, 6, seed, 10, ranks, first) == global_steps(num, 6, seed, 10, 1, first)


@given(num=SIZES, seed=SEEDS, batch=st.integers(1, 5), first=st.integers(0, 30))
@settings(deadline=None, database=None)
def test_a_run_continues_exactly_where_it_stopped(num: int, seed: int, batch: int, first: int) -> None:
    assert steps(num, batch, seed, 10, first=first * batch) == steps(num, batch, seed, first + 10)[first:]


def test_an_iterator_starts_anew() -> None:
    batches = PositionBatches(10, 3, seed=0, first=2)
    assert list(islice(batches, 5)) == list(islice(batches, 5))


def test_seeds_and_passes_differ() -> None:
    orders = {tuple(index_at(epoch * 20 + p, 20, seed) for p in range(20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
