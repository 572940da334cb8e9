"""Edits of nodules on label maps: what is taken away is filled, what comes back is as it was, nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_medgen.images.label_maps import draw, grow, move, remove, write_label_map
from lit_medgen.images.png import read_png

LUNG, BODY, NODULES = 4, 1, (5, 6)
SPACING = (0.5, 1.0, 2.0)


def chest(dim: int, seed: int = 0) -> np.ndarray:
    """Body around a lung with vessels, and a blob of each class in it, the first at the wall."""
    random = np.random.default_rng(seed)
    size = (40, 30, 24)[:dim]
    label_map = np.full(size, BODY, dtype=np.uint8)
    label_map[tuple(slice(2, length - 2) for length in size)] = LUNG
    for label, corner in zip(NODULES, (2, 12), strict=True):
        for _ in range(4):
            low = corner + random.integers(0, 2, dim)
            label_map[tuple(slice(start, start + 3) for start in low)] = label
    return label_map


@pytest.mark.parametrize("dim", [2, 3])
def test_what_is_removed_is_filled_with_the_nearest(dim: int) -> None:
    before = chest(dim)
    nodule = np.isin(before, NODULES)
    after = remove(before, NODULES, SPACING[:dim])
    assert not np.isin(after, NODULES).any()
    assert (after[~nodule] == before[~nodule]).all()
    others = np.argwhere(~nodule)
    for voxel in np.argwhere(nodule)[::5]:  # by definition: the class of one of the nearest
        apart = np.linalg.norm((others - voxel) * SPACING[:dim], axis=1)
        nearest = others[np.isclose(apart, apart.min())]
        assert after[tuple(voxel)] in before[tuple(nearest.T)]
    assert (remove(before, NODULES, SPACING[:dim], within=[LUNG])[nodule] == LUNG).all()


def test_one_of_several_is_removed() -> None:
    before = chest(2)
    after = remove(before, NODULES, SPACING[:2], at_mm=(6.5, 13.0))
    assert (after == 5).sum() == (before == 5).sum()
    assert not (after == 6).any()
    with pytest.raises(ValueError, match=r"no nodule at \(10, 2\) mm"):
        remove(before, NODULES, SPACING[:2], at_mm=(10, 2))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(2, 3), st.data())
def test_moved_back_it_is_what_it_was(seed: int, dim: int, data: st.DataObject) -> None:
    before = chest(dim, seed)
    by_mm = [data.draw(st.floats(0, (length - 19) * mm)) for length, mm in zip(before.shape, SPACING, strict=False)]
    there = move(before, NODULES, SPACING[:dim], by_mm, within=[LUNG])
    steps = tuple(round(length / mm) for length, mm in zip(by_mm, SPACING, strict=False))
    np.testing.assert_array_equal(np.isin(there, NODULES), np.roll(np.isin(before, NODULES), steps, range(dim)))
    back = move(there, NODULES, SPACING[:dim], [-length for length in by_mm], within=[LUNG])
    np.testing.assert_array_equal(back, before)
    assert back.dtype == before.dtype


@pytest.mark.parametrize("dim", [2, 3])
def test_grown_by_nothing_it_is_what_it_was(dim: int) -> None:
    before = chest(dim)
    np.testing.assert_array_equal(grow(before, NODULES, SPACING[:dim], by_mm=0.0), before)
    np.testing.assert_array_equal(grow(before, NODULES, SPACING[:dim], factor=1.0), before)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_rim_is_all_that_is_near(dim: int) -> None:
    """By definition, voxel by voxel; and what is grown and shrunk again holds what was there (a closing)."""
    before = chest(dim)
    after = grow(before, NODULES, SPACING[:dim], by_mm=1.1)
    nodule = np.argwhere(np.isin(before, NODULES))
    for voxel in np.argwhere(before > 0)[::7]:
        apart = np.linalg.norm((nodule - voxel) * SPACING[:dim], axis=1).min()
        assert (after[tuple(voxel)] in NODULES) == (apart <= 1.1)
    closed = grow(after, NODULES, SPACING[:dim], by_mm=-1.1)
    assert np.isin(closed, NODULES)[np.isin(before, NODULES)].all()
    assert ((after != before) <= np.isin(after, NODULES)).all()


@pytest.mark.parametrize(("factor", "tolerance"), [(2.0, 0.1), (0.5, 0.25), (1.5, 0.1)])
def test_a_factor_keeps_place_and_shape(factor: float, tolerance: float) -> None:
    disc = draw(np.full((80, 60), LUNG), NODULES, (1, 1), 5, (38, 31), (12, 8), within=[LUNG])
    grown = grow(disc, NODULES, (1, 1), factor=factor, within=[LUNG])
    where, wide = (np.argwhere(part == 5) for part in (disc, grown))
    assert len(wide) / len(where) == pytest.approx(factor**2, rel=tolerance)
    np.testing.assert_allclose(wide.mean(0), where.mean(0), atol=0.5)
    np.testing.assert_allclose(wide.std(0) / where.std(0), factor, rtol=tolerance)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_drawn_nodule_is_an_ellipsoid_in_mm(dim: int) -> None:
    empty = np.full((60, 50, 40)[:dim], LUNG, dtype=np.uint8)
    centre, radii = (15.0, 24.0, 40.0)[:dim], (7.0, 9.0, 12.0)[:dim]
    drawn = draw(empty, NODULES, SPACING[:dim], 6, centre, radii)
    volume = (drawn == 6).sum() * np.prod(SPACING[:dim])
    assert volume == pytest.approx({2: np.pi, 3: 4 / 3 * np.pi}[dim] * np.prod(radii), rel=0.02)
    np.testing.assert_allclose(np.argwhere(drawn == 6).mean(0) * SPACING[:dim], centre, atol=0.02)
    np.testing.assert_array_equal(remove(drawn, NODULES, SPACING[:dim]), empty)
    rough = draw(empty, NODULES, SPACING[:dim], 6, centre, radii, roughness=0.1, seed=3)
    assert (rough == 6).sum() != (drawn == 6).sum()
    np.testing.assert_array_equal(rough, draw(empty, NODULES, SPACING[:dim], 6, centre, radii, roughness=0.1, seed=3))


@pytest.mark.parametrize(
    ("edit", "options", "words"),
    [
        (move, {"by_mm": (20.0, 0.0)}, "leave the map"),
        (move, {"by_mm": (-1.0, 0.0), "within": [LUNG]}, "cover class 1; expected the classes [4] alone"),
        (grow, {"by_mm": 9.0}, "leave the map"),
        (grow, {"factor": 20.0}, "leave the map"),
        (grow, {"by_mm": 1.0, "within": [LUNG]}, "cover class 1"),
        (grow, {"by_mm": -9.0}, "nothing of it is left"),
        (grow, {"by_mm": 1.0, "factor": 2.0}, "give one of them"),
        (draw, {"label": 5, "centre_mm": (19.0, 10.0), "radii_mm": (2.0, 2.0)}, "leave the map"),
        (draw, {"label": 5, "centre_mm": (1.0, 10.0), "radii_mm": (1.0, 2.0), "within": [LUNG]}, "cover class 1"),
        (draw, {"label": 5, "centre_mm": (2.0, 3.0), "radii_mm": (1.0, 2.0)}, "expected no other nodule"),
        (draw, {"label": 5, "centre_mm": (90.0, 9.0), "radii_mm": (1.0, 1.0)}, "no voxel in the map"),
        (draw, {"label": 2, "centre_mm": (9.0, 9.0), "radii_mm": (1.0, 1.0)}, "class 2"),
    ],
)
def test_what_leaves_the_map_or_the_lung_is_refused(edit: Any, options: dict[str, Any], words: str) -> None:
    before = chest(2)
    kept = before.copy()
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        edit(before, NODULES, SPACING[:2], **options)
    assert words in str(error.value)
    np.testing.assert_array_equal(before, kept)
    with pytest.raises(ValueError, match="no voxel of the classes"):
        remove(np.full((4, 4), LUNG), NODULES, (1, 1))


def test_a_written_map_is_read_as_it_was(tmp_path: Path) -> None:
    write_label_map(tmp_path / "map.png", chest(2), SPACING[:2])
    np.testing.assert_array_equal(read_png(tmp_path / "map.png")[0], chest(2))
