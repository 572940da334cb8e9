"""Preprocessing: places in the world stay, intensities are robust, detail is averaged and not aliased."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_modules.recipes.intensities import bounding_box
from data_modules.recipes.volumes import Preprocessing
from data_modules.sources import File
from data_modules.store import StoreAddress
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import write_nifti

UNIT = (0.0, 1.0)


def unchanged(size: tuple[int, ...], field_of_view_mm: tuple[float, ...]) -> Preprocessing:
    """No change of intensities in [0, 1], the grid on the middle of the raw grid."""
    return Preprocessing(size, field_of_view_mm, centre="grid", intensity="window", window=UNIT)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.25, 1, shape).astype(np.float32)


def moved(affine: np.ndarray, *origin: float) -> np.ndarray:
    affine = affine.astype(float)
    affine[:-1, -1] = origin
    return affine


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], value: float = 1.0) -> np.ndarray:
    voxels = np.zeros(shape, dtype=np.float32)
    voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return voxels


def test_a_volume_on_the_grid_is_unchanged() -> None:
    voxels, affine = noise(7, 8, 9), moved(np.diag([2, 2, 2, 1]), -7, 30, 4)
    prepared = unchanged((7, 8, 9), (14, 16, 18))(voxels, affine)
    np.testing.assert_allclose(prepared.voxels, voxels, atol=1e-6)
    np.testing.assert_allclose(prepared.affine, affine, atol=1e-6)
    assert prepared.cut == 0
    assert prepared.voxels.dtype == np.float32


@given(
    size=st.tuples(*[st.integers(2, 12)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
)
@settings(max_examples=50, deadline=None, database=None)
def test_a_volume_on_the_grid_is_unchanged_to_the_rim_for_any_spacing(
    size: tuple[int, ...], spacing: tuple[float, ...], origin: tuple[float, ...]
) -> None:
    field_of_view = tuple(n * s for n, s in zip(size, spacing, strict=True))
    voxels = noise(*size)
    prepared = unchanged(size, field_of_view)(voxels, moved(np.diag([*spacing, 1]), *origin))
    np.testing.assert_allclose(prepared.voxels, voxels, atol=1e-4)


def test_enlarging_leaves_no_dark_rim() -> None:
    prepared = unchanged((16, 16, 16), (8, 8, 8))(noise(8, 8, 8), np.eye(4))
    assert prepared.voxels.min() >= 0.25 - 1e-6


@given(size=st.tuples(*[st.integers(1, 300)] * 3), extent=st.tuples(*[st.floats(1, 400)] * 3))
@settings(deadline=None, database=None)
def test_spacing_is_field_of_view_over_size(size: tuple[int, ...], extent: tuple[float, ...]) -> None:
    np.testing.assert_allclose(np.array(Preprocessing(size, extent).spacing_mm) * size, extent)


@pytest.mark.parametrize(
    ("size", "extent"),
    [((8, 8), (8.0, 8.0, 8.0)), ((8,), (8.0,)), ((8, 8, 0), (8.0,) * 3), ((8, 8, 8), (8.0, 8.0, -8.0))],
)
def test_an_impossible_grid_is_an_input_error(size: tuple[int, ...], extent: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="size"):
        Preprocessing(size, extent)


@pytest.mark.parametrize("window", [(5.0, 5.0), (400.0, -1000.0)])
def test_an_empty_window_is_an_input_error(window: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="window"):
        Preprocessing(intensity="window", window=window)


@pytest.mark.parametrize("low", [(2, 5, 1), (10, 3, 8)])
def test_the_brain_is_centred(low: tuple[int, ...]) -> None:
    high = tuple(n + extent for n, extent in zip(low, (8, 6, 10), strict=True))
    prepared = Preprocessing((20, 20, 20), (20.0,) * 3)(box((24, 24, 24), low, high), np.eye(4))
    first, last = bounding_box(prepared.voxels > 0.5)
    np.testing.assert_allclose((np.array(first) + last) / 2, [10, 10, 10])
    np.testing.assert_allclose(prepared.affine[:3, 3] - np.array(low) - (np.array((8, 6, 10)) - 20) / 2, 0, atol=1e-9)


@pytest.mark.parametrize("centre", ["brain", "grid"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.2, 2.5)])
@pytest.mark.parametrize("degrees", [0, 20])
def test_a_blob_stays_at_its_place_in_the_world(centre: str, spacing: tuple[float, ...], degrees: int) -> None:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing), (-30, 11, 5)
    size = tuple(int(48 / s) for s in spacing)
    place = affine @ [*(0.45 * np.array(size)), 1]
    world = affine[:3, :3] @ np.indices(size).reshape(3, -1) + affine[:3, 3:]
    blob = np.exp(-((world - place[:3, None]) ** 2).sum(0) / (2 * 4.0**2)).reshape(size)

    prepared = Preprocessing((24, 24, 24), (48.0,) * 3, centre=centre, intensity="window", window=UNIT)(blob, affine)
    mass = prepared.voxels / prepared.voxels.sum()
    found = prepared.affine @ [*(np.indices(mass.shape) * mass).sum(axis=(1, 2, 3)), 1]
    np.testing.assert_allclose(found, place, atol=0.1)


@pytest.mark.parametrize(
    ("field_of_view", "share"),
    [((80, 96, 64), 0.0), ((60, 96, 64), 0.25), ((60, 72, 64), 1 - 0.75**2), ((60, 72, 48), 1 - 0.75**3)],
)
def test_cut_is_the_share_of_the_brain_outside(field_of_view: tuple[float, ...], share: float) -> None:
    brain = box((50, 60, 40), (3, 8, 5), (43, 56, 37))  # 80 x 96 x 64 mm
    size = tuple(int(extent) // 4 for extent in field_of_view)
    prepared = Preprocessing(size, tuple(map(float, field_of_view)))(brain, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert prepared.cut == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("factor", [5, 100])
def test_percentile_is_robust_to_one_hot_voxel(factor: float) -> None:
    voxels = box((16, 16, 16), (3, 3, 3), (13, 13, 13)) * np.random.default_rng(0).uniform(100, 200, (16, 16, 16))
    preprocessing = Preprocessing((16, 16, 16), (16.0,) * 3)
    expected = preprocessing(voxels, np.eye(4)).voxels
    voxels[8, 8, 8] = 200 * factor
    found = preprocessing(voxels, np.eye(4)).voxels
    found[8, 8, 8] = expected[8, 8, 8]
    np.testing.assert_allclose(found, expected, atol=0.02)


def brain_and_ringing(of: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A stripped brain off the middle of its grid, resampled without and with undershoot."""
    place = (np.indices((of, of, of)).T - np.array([0.45, 0.5, 0.55]) * of).T / (of * np.array([0.22, 0.3, 0.25]))[
        :, None, None, None
    ]
    voxels = (np.linalg.norm(place, axis=0) < 1) * np.random.default_rng(0).uniform(120, 290, (of, of, of))
    linear, cubic = (ndimage.shift(voxels, (0.4, 0.6, 0.3), order=order) for order in (1, 3))
    return linear, cubic


def test_undershoot_is_background() -> None:
    """Ringing around a brain moves neither the background nor the centre nor the share cut."""
    linear, cubic = brain_and_ringing()
    assert cubic.min() < -40
    preprocessing = Preprocessing((16, 16, 16), (16.0,) * 3)
    expected, found = preprocessing(linear, np.eye(4)), preprocessing(cubic, np.eye(4))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1.0)
    assert found.cut == pytest.approx(expected.cut, abs=0.03)
    scaled, brain = preprocessing.normalise(cubic)
    assert np.quantile(scaled[~ndimage.binary_dilation(linear > 0, iterations=3)], 0.99) < 0.01
    assert brain.sum() == pytest.approx(preprocessing.normalise(linear)[1].sum(), rel=0.1)


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_a_background_of_any_level_is_background(offset: float) -> None:
    voxels, _ = brain_and_ringing()
    preprocessing = Preprocessing((16, 16, 16), (16.0,) * 3)
    expected, found = preprocessing(voxels, np.eye(4)), preprocessing(voxels + offset, np.eye(4))
    np.testing.assert_allclose(found.affine, expected.affine)
    np.testing.assert_allclose(found.voxels, expected.voxels, atol=0.01)


@pytest.mark.parametrize("intensity", ["percentile", "window"])
@pytest.mark.parametrize("outlier", [-32768.0, 32767.0])
def test_one_voxel_moves_nothing(outlier: float, intensity: str) -> None:
    voxels, _ = brain_and_ringing()
    preprocessing = Preprocessing((20, 20, 20), (40.0,) * 3, intensity=intensity)
    expected = preprocessing(voxels, np.eye(4))
    voxels[1, 38, 2] = outlier
    found = preprocessing(voxels, np.eye(4))
    np.testing.assert_allclose(found.affine, expected.affine)
    assert found.cut == pytest.approx(expected.cut, abs=1e-3)
    there = np.abs(found.voxels - expected.voxels) > 0.01
    assert there.sum() <= (8 if outlier > 0 else 0)  # where the voxel itself is


def test_air_of_a_ct_is_its_low_end() -> None:
    hounsfield = np.random.default_rng(0).normal(40, 20, (20, 20, 20))
    hounsfield[:, :, :8] = -1024
    scaled, body = Preprocessing().normalise(hounsfield)
    assert scaled[:, :, :8].max() == 0
    assert body.sum() == 20 * 20 * 12
    assert scaled[:, :, 8:].mean() > 0.9


def test_zero_around_a_z_scored_brain_is_background() -> None:
    """Not the middle of its range: half of the brain lies below it, and none of that is cut off."""
    voxels, _ = brain_and_ringing()
    inside = voxels > 0
    z_scored = np.where(inside, (voxels - voxels[inside].mean()) / voxels[inside].std(), 0)
    preprocessing = Preprocessing((16, 16, 16), (16.0,) * 3)
    expected, found = preprocessing(voxels, np.eye(4)), preprocessing(z_scored, np.eye(4))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1.0)
    assert found.cut == pytest.approx(expected.cut, abs=0.03)
    scaled, _ = preprocessing.normalise(z_scored)
    assert scaled[~inside].max() == 0
    assert (scaled[inside] == 0).mean() < 0.02
    assert np.corrcoef(scaled[inside], voxels[inside])[0, 1] > 0.99


@pytest.mark.parametrize("outlier", [-32768.0, 32767.0])
def test_a_volume_that_comes_out_nearly_constant_is_refused(outlier: float) -> None:
    voxels, _ = brain_and_ringing()
    voxels[20, 20, 20] = outlier
    with pytest.raises(ValueError, match=r"nearly constant: .* 99\.9% of all its voxels .*3276\d"):
        Preprocessing(intensity="minmax").normalise(voxels)


def test_a_volume_whose_contrast_is_lost_is_refused() -> None:
    """A hundredth of the voxels is padding far below the others, which come out alike; a drawn shape is alike too."""
    voxels, _ = brain_and_ringing()
    voxels[:, :, 0] = -32768
    with pytest.raises(ValueError, match="nearly constant: 99% of its foreground"):
        Preprocessing().normalise(voxels)
    assert Preprocessing().normalise((voxels > 0).astype(float))[1].any()


def test_many_specks_are_kept() -> None:
    voxels = np.zeros((60, 60, 60))
    voxels[::4, ::4, ::4] = 1
    assert Preprocessing().normalise(voxels)[1].sum() == 15**3


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_values_may_be_of_any_size(unit: float) -> None:
    voxels, _ = brain_and_ringing()
    preprocessing = Preprocessing((16, 16, 16), (40.0,) * 3)
    expected, found = (preprocessing(voxels * k, np.eye(4)) for k in (1, unit))
    np.testing.assert_allclose(found.voxels, expected.voxels, atol=1e-5)


def test_voxels_may_be_of_any_size() -> None:
    voxels, _ = brain_and_ringing()
    expected = Preprocessing((16, 16, 16), (40.0,) * 3)(voxels, np.eye(4))
    found = Preprocessing((16, 16, 16), (0.32,) * 3)(voxels, np.diag([8e-3, 8e-3, 8e-3, 1]))
    np.testing.assert_allclose(found.voxels, expected.voxels, atol=1e-5)


@pytest.mark.parametrize("intensity", ["percentile", "minmax", "window"])
def test_voxels_that_are_not_finite_are_refused_or_become_background(intensity: str, tmp_path: Path) -> None:
    """NaN around a brain is as 0 around it."""
    voxels, _ = brain_and_ringing()
    write_nifti(tmp_path / "a.nii", np.where(voxels > 0, voxels, np.nan).astype(np.float32), np.eye(4))
    options = {"size": (16, 16, 16), "field_of_view_mm": (40.0,) * 3, "intensity": intensity, "window": (0, 290)}
    with pytest.raises(ValueError, match=r"data\.init_args\.preprocessing\.non_finite"):
        Preprocessing(**options).read(File(tmp_path / "a.nii"))
    filling = Preprocessing(**options, non_finite="fill")
    found, expected = filling(*filling.read(File(tmp_path / "a.nii"))), filling(voxels, np.eye(4))
    assert found.voxels[0].max() == expected.voxels[0].max() == 0
    if intensity != "minmax":
        np.testing.assert_allclose(found.voxels, expected.voxels, atol=1e-3)


def test_options_that_change_what_is_stored_make_a_store_of_their_own() -> None:
    options = [{}, {"form": "qform"}, {"form": "sform"}, {"non_finite": "fill"}, {"without_spacing": "1mm"}]
    folders = {StoreAddress(Path(), "a", Preprocessing(**option), "axial").folder for option in options}
    assert len(folders) == len(options)


@pytest.mark.parametrize("shape", [(100, 60), (60, 100), (30, 40), (512, 300)])
def test_2d_images_without_spacing_are_made_to_fit(shape: tuple[int, int]) -> None:
    """All of the image is there, its aspect kept, the rest is background."""
    pixels = noise(*shape)
    preprocessing = Preprocessing((32, 32), (192.0, 192.0), intensity="window", window=UNIT)
    prepared = preprocessing(pixels, np.eye(3))
    assert prepared.cut == 0
    low, high = bounding_box(prepared.voxels > 0.2)
    extent = np.array(high) - low
    assert extent.max() == 32
    assert extent / 32 == pytest.approx(np.array(shape) / max(shape), abs=0.08)
    assert (np.array(low) + high) / 2 == pytest.approx([16, 16], abs=1)
    corners = prepared.affine[:2, :2] @ np.array([[-0.5, 31.5], [-0.5, 31.5]]) + prepared.affine[:2, 2:]
    raw = prepared.moved[:2, :2] @ np.array([[-0.5, shape[0] - 0.5], [-0.5, shape[1] - 0.5]])
    assert (corners[:, 0] <= raw[:, 0] + 1e-6).all()
    assert (corners[:, 1] >= raw[:, 1] - 1e-6).all()


def test_2d_images_with_spacing_keep_the_field_of_view() -> None:
    pixels = noise(100, 60)
    preprocessing = Preprocessing((32, 32), (25.0, 25.0), intensity="window", window=UNIT)
    assert preprocessing(pixels, np.diag([0.5, 0.5, 1.0])).cut == pytest.approx(1 - (25 / 50) * (25 / 30), abs=0.01)
    as_1mm = replace(preprocessing, without_spacing="1mm")
    assert as_1mm(pixels, np.eye(3)).cut == pytest.approx(1 - 25 * 25 / 6000, abs=0.01)


def test_a_volume_of_one_slice_is_a_2d_image(tmp_path: Path) -> None:
    """Its second axis goes down, as in a PNG, so the upper end of a sagittal slice is the image's top."""
    voxels = noise(1, 20, 12)
    write_nifti(tmp_path / "a.nii", voxels, np.diag([4.0, 0.5, 0.25, 1.0]))
    pixels, affine = Preprocessing((8, 8), (8.0, 8.0)).read(File(tmp_path / "a.nii"))
    np.testing.assert_array_equal(pixels, voxels[0, :, ::-1])
    np.testing.assert_allclose(affine, np.diag([0.5, 0.25, 1.0]), rtol=1e-6)


def test_a_nifti_of_two_dimensions_is_a_2d_image(tmp_path: Path) -> None:
    pixels = noise(20, 12)
    nib.save(nib.Nifti1Image(pixels, np.diag([0.5, 0.25, 1.0, 1.0])), tmp_path / "a.nii")
    found, affine = Preprocessing((8, 8), (8.0, 8.0)).read(File(tmp_path / "a.nii"))
    np.testing.assert_array_equal(found, pixels[:, ::-1])
    np.testing.assert_allclose(affine, np.diag([0.5, 0.25, 1.0]))
    with pytest.raises(ValueError, match="2D image"):
        Preprocessing((8, 8, 8), (8.0, 8.0, 8.0)).read(File(tmp_path / "a.nii"))


def test_a_grid_of_other_dimensions_is_named(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", noise(4, 4, 4), np.eye(4))
    with pytest.raises(ValueError, match=r"an image of 3 dimensions; expected 2, .*preprocessing\.size"):
        Preprocessing((8, 8), (8.0, 8.0)).read(File(tmp_path / "a.nii"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("percentile", 150.0), ("percentile", 0.995), ("background", 1.5), ("field_of_view_mm", (float("inf"),) * 3)],
)
def test_an_option_that_fits_no_image_is_refused_before_any_is_read(option: str, value: float) -> None:
    with pytest.raises(InputError, match=option):
        Preprocessing(**{option: value})


def test_percentile_of_the_brain_not_of_the_air() -> None:
    """Most of a volume is air: the percentile counts from the background on."""
    brain = np.random.default_rng(0).uniform(100, 200, (10, 10, 10))
    voxels = np.zeros((40, 40, 40))
    voxels[15:25, 15:25, 15:25] = brain
    scaled, mask = Preprocessing(percentile=50).normalise(voxels)
    assert mask.sum() == 1000
    np.testing.assert_allclose(scaled[15:25, 15:25, 15:25], (brain / np.median(brain)).clip(0, 1))


def test_minmax() -> None:
    scaled, _ = Preprocessing(intensity="minmax").normalise(np.array([[[-10.0, 0.0, 30.0]]]))
    np.testing.assert_allclose(scaled.ravel(), [0, 0.25, 1])


def test_window() -> None:
    scaled, _ = Preprocessing(intensity="window", window=(-1000, 400)).normalise(
        np.array([-2048.0, -1000, -300, 400, 3071])
    )
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("value", [0.0, 7.0, -1024.0, 1e6])
@pytest.mark.parametrize("intensity", ["percentile", "minmax", "window"])
def test_a_constant_volume_is_refused(value: float, intensity: str) -> None:
    with pytest.raises(ValueError, match="constant"):
        Preprocessing((4, 4, 4), (4.0,) * 3, intensity=intensity)(np.full((4, 4, 4), value), np.eye(4))


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize("centre", ["brain", "grid"])
def test_a_volume_below_the_window_is_refused(centre: str) -> None:
    with pytest.raises(ValueError, match=r"window|brain|background"):
        Preprocessing((4, 4, 4), (4.0,) * 3, centre=centre, intensity="window", window=(10, 20))(
            noise(4, 4, 4), np.eye(4)
        )


@pytest.mark.parametrize("factors", [(4, 4, 4), (2, 4, 1), (1, 1, 8)])
def test_noise_is_averaged_when_resolution_falls(factors: tuple[int, int, int]) -> None:
    """As if each new voxel were the mean of the old ones inside it: a variance of 1 / product of the factors."""
    shape = (32, 32, 32)
    voxels = np.random.default_rng(0).uniform(0, 1, shape)
    size = tuple(n // f for n, f in zip(shape, factors, strict=True))
    found = unchanged(size, (32.0,) * 3)(voxels, np.eye(4)).voxels
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert 0.4 < found.var() / voxels.var() * np.prod(factors) < 1.3


def test_an_axis_that_keeps_its_resolution_is_not_smoothed() -> None:
    columns = np.broadcast_to(noise(8)[:, None, None], (8, 8, 8))
    found = unchanged((8, 2, 4), (8.0,) * 3)(columns, np.eye(4)).voxels
    np.testing.assert_allclose(found, columns[:, :2, :4], atol=1e-5)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_in_which_axes_are_stored_does_not_matter(order: tuple[int, int, int]) -> None:
    voxels, affine = noise(16, 12, 8), np.diag([0.5, 1.0, 3.0, 1.0])
    preprocessing = Preprocessing((4, 6, 8), (8.0, 12.0, 24.0), centre="grid", intensity="minmax")
    found = preprocessing(voxels.transpose(order), affine[:, [*order, 3]])
    expected = preprocessing(voxels, affine)
    np.testing.assert_allclose(found.voxels, expected.voxels, atol=1e-6)
    np.testing.assert_allclose(found.affine, expected.affine)


def test_images_of_two_dimensions() -> None:
    pixels = np.repeat(np.repeat(noise(8, 6), 2, axis=0), 2, axis=1)
    prepared = unchanged((8, 6), (16.0, 12.0))(pixels, np.eye(3))
    assert prepared.voxels.shape == (8, 6)
    np.testing.assert_allclose(prepared.affine, [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    assert prepared.voxels.mean() == pytest.approx(pixels.mean(), abs=0.02)


@pytest.mark.parametrize("corner", list(product((0, 1), repeat=2)))
def test_bounding_box(corner: tuple[int, int]) -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:4, 2:3] = mask[corner] = True
    rows, columns = np.nonzero(mask)
    assert bounding_box(mask) == ([rows.min(), columns.min()], [rows.max() + 1, columns.max() + 1])
