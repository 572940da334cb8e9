"""Slice sets C (observed) and P (target) of cDPM: laws of every draw, and what the draws reach."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.slice_sets import ContiguousDraw, FDMDraw, Slices, SliceSets, UniformDraw
from data_modules.views import Grid, OneSlice, grid_of_slices
from lit_medgen.batch import PADDING, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.methods.cdpm.schemes import Autoregressive
from lit_medgen.sample_files import SampleFile
from lit_medgen.sample_reading import read_voxels

DRAWS: list[type[SliceSets]] = [UniformDraw, FDMDraw, ContiguousDraw]


def draws(draw: SliceSets, num_slices: int, num: int, seed: int = 0) -> list[Slices]:
    return [draw.sets(num_slices, np.random.default_rng((seed, i))) for i in range(num)]


@pytest.mark.parametrize("kind", DRAWS)
@given(most=st.integers(1, 24), num_slices=st.integers(1, 150), seed=st.integers(0, 2**32))
@settings(deadline=None, database=None)
def test_laws_of_a_draw(kind: type[SliceSets], most: int, num_slices: int, seed: int) -> None:
    slices = kind(most).sets(num_slices, np.random.default_rng(seed))
    assert slices.index.shape == slices.observed.shape == (most,)
    assert slices.index.dtype == np.int64
    assert slices.observed.dtype == bool
    real = slices.index[slices.index != PADDING]
    assert (slices.index[: len(real)] == real).all()  # padding only at the end
    assert not slices.observed[len(real) :].any()  # and never observed
    assert (np.diff(real) > 0).all()  # sorted, each slice once
    assert 0 <= real[0] <= real[-1] < num_slices
    assert len(real) - slices.observed.sum() >= 1  # something to learn


@pytest.mark.parametrize("kind", DRAWS)
@given(seed=st.integers(0, 2**32))
@settings(deadline=None, database=None, max_examples=20)
def test_a_draw_is_a_pure_function_of_its_generator(kind: type[SliceSets], seed: int) -> None:
    np.random.seed(0)  # noqa: NPY002 (the global state must not matter)
    first = kind(8).sets(40, np.random.default_rng(seed))
    np.random.seed(1)  # noqa: NPY002
    second = kind(8).sets(40, np.random.default_rng(seed))
    np.testing.assert_array_equal(first.index, second.index)
    np.testing.assert_array_equal(first.observed, second.observed)


@pytest.mark.parametrize("kind", [UniformDraw, FDMDraw])  # a ContiguousDraw has few stages by design
def test_other_generators_draw_other_sets(kind: type[SliceSets]) -> None:
    assert len({tuple(slices.index) for slices in draws(kind(8), 100, 50)}) > 45


@pytest.mark.parametrize("kind", DRAWS)
def test_every_slice_is_reached_in_either_role(kind: type[SliceSets]) -> None:
    found = draws(kind(8), 16, 1000)
    for role in (True, False):
        reached = {int(i) for slices in found for i in slices.index[slices.observed == role]} - {PADDING}
        assert reached == set(range(16))


def test_uniform_sizes() -> None:
    found = draws(UniformDraw(6), 30, 6000)
    sizes = [(int(s.observed.sum()), int((s.index >= 0).sum() - s.observed.sum())) for s in found]
    assert set(sizes) == {(c, p) for p in range(1, 7) for c in range(7 - p)}  # empty C and full P among them
    shares = np.bincount([p for _, p in sizes], minlength=7)[1:] / len(sizes)
    np.testing.assert_allclose(shares, 1 / 6, atol=0.025)  # |P| is uniform
    conditions = [c for c, p in sizes if p == 3]
    np.testing.assert_allclose(np.bincount(conditions) / len(conditions), 1 / 4, atol=0.06)  # so is |C| on what is left


@given(most=st.integers(1, 20), num_slices=st.integers(1, 40), seed=st.integers(0, 2**32))
@settings(deadline=None, database=None)
def test_fdm_fills_every_place(most: int, num_slices: int, seed: int) -> None:
    slices = FDMDraw(most).sets(num_slices, np.random.default_rng(seed))
    assert (slices.index != PADDING).sum() == min(most, num_slices)


def test_fdm_reaches_runs_of_neighbours_and_sets_across_the_volume() -> None:
    spans = np.array([slices.index[-1] - slices.index[0] for slices in draws(FDMDraw(10), 120, 2000)])
    targets = [slices.index[~slices.observed] for slices in draws(FDMDraw(10), 120, 2000)]
    runs = np.mean([len(target) >= 4 and (np.diff(target) == 1).all() for target in targets])
    assert 0.01 < runs < 0.5
    assert (spans > 100).mean() > 0.05


def test_fdm_draws_unconditional_sets_at_times() -> None:
    share = np.mean([not slices.observed.any() for slices in draws(FDMDraw(10), 120, 2000)])
    # At least 1 in 10: the first group alone fills the places. At most what also later coins of 1/2 allow.
    assert 0.1 < share < 0.5


def nearly_contiguous(slices: Slices) -> bool:
    """Whether the set has more than one slice, over 90 % of which are followed by their neighbour."""
    real = slices.index[slices.index != PADDING]
    return len(real) > 1 and float(np.mean(np.diff(real) == 1)) > 0.9


def test_contiguous_draw_draws_the_stages_that_sampling_asks_for() -> None:
    stages = {
        (tuple(stage.condition), tuple(stage.target)) for stage in Autoregressive(10, 10).stages(128)
    }  # the paper's 13
    found = draws(ContiguousDraw(), 128, 3000)
    near = [slices for slices in found if nearly_contiguous(slices)]
    assert np.mean([nearly_contiguous(slices) for slices in draws(UniformDraw(), 128, 3000)]) < 0.01
    assert len(near) / len(found) == pytest.approx(0.5, abs=0.03)
    counts = Counter(
        (tuple(s.index[s.observed].tolist()), tuple(s.index[~s.observed & (s.index != PADDING)].tolist()))
        for s in draws(ContiguousDraw(share=1.0), 128, 2600)
    )
    assert set(counts) == stages
    assert min(counts.values()) > 140  # 200 each, on average


def test_contiguous_draw_leaves_the_rest_to_another_draw() -> None:
    found = draws(ContiguousDraw(8, share=0, others=FDMDraw(8)), 40, 20)
    for i, slices in enumerate(found):
        random = np.random.default_rng((0, i))
        random.random()
        np.testing.assert_array_equal(slices.index, FDMDraw(8).sets(40, random).index)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"num_target": 21}, "num_target is 21"),
        ({"others": FDMDraw(8)}, "max_slices is 20, but that of view.init_args.others is 8"),
    ],
)
def test_impossible_contiguous_draws_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ContiguousDraw(**wrong)


@pytest.mark.parametrize("kind", DRAWS)
def test_at_least_one_slice(kind: type[SliceSets]) -> None:
    with pytest.raises(ValueError, match="max_slices is 0"):
        kind(0)


def single(view: OneSlice, num_slices: int, num: int) -> list[int]:
    record: Any = None
    return [view.draw(Grid((1, 1, num_slices), "axial"), record, np.random.default_rng((0, i))) for i in range(num)]


@given(num_slices=st.integers(1, 150), data=st.data())
def test_one_slice_is_one_of_the_middle(num_slices: int, data: st.DataObject) -> None:
    middle = data.draw(st.integers(1, num_slices))
    draw = OneSlice(middle, per_person=3)
    used = draw.used(num_slices)
    assert len(used) == middle
    assert abs(used[0] - (num_slices - 1 - used[-1])) <= 1  # as many left out below as above
    found = set(single(draw, num_slices, 20))
    assert found <= set(used.tolist())
    if middle < 3:
        with pytest.raises(InputError, match=f"per_person is 3, but {middle} slices"):
            draw.evaluated_of(num_slices)
        return
    evaluated = draw.evaluated_of(num_slices)
    assert len(set(evaluated.tolist())) == 3
    assert set(evaluated.tolist()) <= set(used.tolist())
    assert (np.diff(evaluated) >= 0).all()


def test_every_middle_slice_is_as_likely() -> None:
    counts = np.bincount(single(OneSlice(4), 10, 2000), minlength=10)
    assert not counts[:3].any()
    assert not counts[7:].any()
    assert counts[3:7].min() > 420


@pytest.mark.parametrize("wrong", [{"middle": 0}, {"per_person": 0}])
def test_impossible_single_slices_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"view.init_args.{next(iter(wrong))} is 0"):
        OneSlice(**wrong)


@pytest.mark.parametrize(("axis", "orientation"), [("axial", "RP"), ("coronal", "RI"), ("sagittal", "AI")])
@pytest.mark.parametrize("of_a_person", [True, False])
def test_a_slice_comes_back_from_its_file_as_it_was(
    axis: str, orientation: str, of_a_person: bool, tmp_path: Path
) -> None:
    """It went down where the file's axes go up, and other planes than axial were no slices to the reader."""
    view, stored = OneSlice(), DataSpec(1, (4, 6, 8), (1.0, 1.5, 2.0))
    spec, grid = view.spec(stored, axis), grid_of_slices(stored, axis)
    assert spec.orientation == orientation
    affine = spec.affine()
    if of_a_person:
        affine = torch.from_numpy(view.affine(stored.affine().numpy(), grid, 2))
    image = torch.rand(1, *spec.size) * 2 - 1
    SampleFile("nifti", spec, "synthetic", "0" * 64).write(tmp_path, "a", image, affine if of_a_person else None)
    values, found, _ = read_voxels(tmp_path / "a.nii.gz", spec)
    np.testing.assert_allclose(values, spec.to_window(image)[0], atol=1e-6)
    np.testing.assert_allclose(found[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-5)
