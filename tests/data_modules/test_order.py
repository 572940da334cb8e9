"""Order: a pure function of (seed, position), whatever the ranks and wherever a run starts."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_modules.order import Order, PositionBatches, Sample, balanced
from lit_medgen.seeds import mix

SIZES = st.integers(1, 50)
SEEDS = st.integers(0, 2**31)


def steps(
    num: int, batch: int, seed: int, steps: int, rank: int = 0, ranks: int = 1, first: int = 0
) -> list[list[Sample]]:
    return list(islice(PositionBatches(Order(num, seed), batch, rank, ranks, first), steps))


def global_steps(num: int, batch: int, seed: int, num_steps: int, ranks: int, first: int = 0) -> list[list[Sample]]:
    """The samples of every step, the ranks one after the other."""
    each = [steps(num, batch // ranks, seed, num_steps, rank, ranks, first) for rank in range(ranks)]
    return [[sample for rank in each for sample in rank[step]] for step in range(num_steps)]


@given(num=SIZES, seed=SEEDS, epoch=st.integers(0, 20))
@settings(deadline=None, database=None)
def test_each_pass_is_a_permutation(num: int, seed: int, epoch: int) -> None:
    assert sorted(Order(num, seed)(epoch * num + p) for p in range(num)) == list(range(num))


@given(num=SIZES, seed=SEEDS, batch=st.integers(1, 7), first=st.integers(0, 40))
@settings(deadline=None, database=None)
def test_positions_are_counted_without_gap_or_repeat(num: int, seed: int, batch: int, first: int) -> None:
    samples = [sample for step in steps(num, batch, seed, 12, first=first) for sample in step]
    assert [position for position, _ in samples] == list(range(first, first + 12 * batch))
    assert [index for _, index in samples] == [Order(num, seed)(position) for position, _ in samples]


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
    batches = PositionBatches(Order(10, 0), 3, first=2)
    assert list(islice(batches, 5)) == list(islice(batches, 5))


def test_seeds_and_passes_differ() -> None:
    orders = {tuple(Order(20, seed)(epoch * 20 + p) for p in range(20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_without_weights_the_order_is_that_of_runs_begun_before() -> None:
    """A permutation of NumPy's generator, seeded by (seed, pass): another one would break every resumed run."""
    expected = np.random.default_rng(mix("order", 7, 3)).permutation(40)
    assert [Order(40, 7)(3 * 40 + p) for p in range(40)] == expected.tolist()


@given(weights=st.lists(st.floats(0, 10), min_size=1, max_size=60), seed=SEEDS, epoch=st.integers(0, 20))
@settings(deadline=None, database=None)
def test_weights_are_met_within_one_in_every_pass(weights: list[float], seed: int, epoch: int) -> None:
    assume(sum(weights) > 1e-3)
    num = len(weights)
    order = Order(num, seed, weights)
    counts = np.bincount([order(epoch * num + p) for p in range(num)], minlength=num)
    expected = num * np.array(weights) / sum(weights)
    assert (np.abs(counts - expected) < 1 + 1e-6).all()


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=30), seed=SEEDS, first=st.integers(0, 100))
@settings(deadline=None, database=None)
def test_weighted_positions_stand_for_themselves(weights: list[float], seed: int, first: int) -> None:
    """Whatever was asked for before, so that any rank may begin anywhere."""
    num, order = len(weights), Order(len(weights), seed, weights)
    through = [order(position) for position in range(first + 20)]
    assert [Order(num, seed, weights)(position) for position in range(first, first + 20)] == through[first:]


def test_balanced_values_have_equal_shares() -> None:
    values = [0.0] * 30 + [1.0] * 6 + [float("nan")] * 12
    order = Order(48, 0, balanced(values))
    counts = np.bincount([[0.0, 1.0].index(v) if v == v else 2 for v in (values[order(p)] for p in range(48))])
    assert counts.tolist() == [16, 16, 16]
