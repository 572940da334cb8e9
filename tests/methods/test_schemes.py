"""Schemes of cDPM: every slice is made once, from slices made before."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_medgen.methods.cdpm.schemes import Autoregressive, Hierarchy, LongRange, Scheme, spread

each_scheme = pytest.mark.parametrize("kind", [Autoregressive, LongRange, Hierarchy])


@each_scheme
@given(num_slices=st.integers(1, 200), num_target=st.integers(1, 30), num_condition=st.integers(1, 30))
@settings(deadline=None)
def test_every_slice_is_made_once_from_slices_made_before(
    kind: type[Scheme], num_slices: int, num_target: int, num_condition: int
) -> None:
    """Stages stay within their sizes, and use as many conditions as there are and fit."""
    made: list[int] = []
    for stage in kind(num_target, num_condition).stages(num_slices):
        assert 1 <= len(stage.target) <= num_target
        assert len(stage.condition) == len(set(stage.condition)) == min(num_condition, len(made))
        assert set(stage.condition) <= set(made)
        made += stage.target
    assert sorted(made) == list(range(num_slices))


@each_scheme
@given(num_slices=st.integers(1, 200), num_target=st.integers(1, 30), num_condition=st.integers(1, 30))
@settings(deadline=None)
def test_no_more_stages_than_needed(kind: type[Scheme], num_slices: int, num_target: int, num_condition: int) -> None:
    """Only the last is short; the parts of `Hierarchy` are equal but for one slice."""
    sizes = [len(stage.target) for stage in kind(num_target, num_condition).stages(num_slices)]
    assert len(sizes) == -(-num_slices // num_target)
    if kind is Hierarchy:
        assert max(sizes[1:], default=0) - min(sizes[1:], default=0) <= 1
    else:
        assert all(size == num_target for size in sizes[:-1])


def test_the_papers_thirteen_stages() -> None:
    """Peng et al. 2023, section 3.2: 128 slices, ten from the ten before."""
    stages = Autoregressive(10, 10).stages(128)
    assert len(stages) == 13
    assert [len(stage.target) for stage in stages] == [10] * 12 + [8]
    for before, stage in pairwise(stages):
        assert stage.condition == before.target
        assert stage.target[0] == before.target[-1] + 1


def test_long_range_keeps_the_first_slices_in_view() -> None:
    """Half of the conditions are the slices just before, half are spread over all earlier ones."""
    for stage in LongRange(10, 10).stages(128)[2:]:
        first = stage.target[0]
        assert stage.condition[-5:] == list(range(first - 5, first))
        assert stage.condition[0] == 0


def test_hierarchy_fills_in_between() -> None:
    """The first stage spans the volume; later ones have conditions on both sides."""
    first, *others = Hierarchy(10, 10).stages(128)
    assert first.target[0] == 0
    assert first.target[-1] == 127
    for stage in others:
        assert min(stage.condition) < min(stage.target)
        assert max(stage.condition) > max(stage.target)


@pytest.mark.parametrize(("num_slices", "num_target", "num_condition"), [(40, 12, 8), (32, 12, 8), (32, 10, 10)])
def test_hierarchy_sees_all_neighbours_where_places_allow(num_slices: int, num_target: int, num_condition: int) -> None:
    """IXI, the demo, and one more: a neighbour made before is a condition, or there would be a seam."""
    known: set[int] = set()
    for stage in Hierarchy(num_target, num_condition).stages(num_slices):
        beside = {i + step for i in stage.target for step in (-1, 1)} & known
        assert beside <= set(stage.condition)
        known.update(stage.target)


@given(num=st.integers(0, 300), count=st.integers(0, 40))
@settings(deadline=None)
def test_spread_is_even(num: int, count: int) -> None:
    """As many as asked for where there are as many, ends included, gaps equal but for rounding."""
    chosen = spread(num, count)
    assert len(chosen) == len(set(chosen)) == min(num, count)
    assert set(chosen) <= set(range(num))
    if len(chosen) > 1:
        gaps = [after - before for before, after in pairwise(chosen)]
        assert (chosen[0], chosen[-1]) == (0, num - 1)
        assert max(gaps) - min(gaps) <= 2


@each_scheme
@pytest.mark.parametrize(("num_target", "num_condition"), [(0, 10), (10, 0)])
def test_empty_stages_are_refused(kind: type[Scheme], num_target: int, num_condition: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        kind(num_target, num_condition)
