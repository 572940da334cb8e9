"""Augmentation: the identity at strength 0, one resampling in mm for all that belongs to an image, pure draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_views import CLASSES, Several, root  # noqa: F401 (a fixture)

from data_modules import (
    Augmentation,
    BiasField,
    Crop,
    Flip,
    Gamma,
    MonaiTransform,
    Noise,
    OneSlice,
    Preprocessing,
    Rotation,
    Shift,
    UniformDraw,
    View,
    Volume,
    Zoom,
)
from data_modules.augmentation import Frame
from data_modules.augmenter import Augmenter
from data_modules.records import Record
from data_modules.sources import IMAGE, LABEL_MAP
from data_modules.views import Grid
from lit_medgen.errors import InputError

SIZE, SPACING = (16, 12, 10), (2.0, 3.0, 2.5)
FLAT, HALF = (16, 12), (8, 6, 5)
EXTENT = np.array(SIZE) * SPACING
SLOPE = np.array([0.011, -0.017, 0.013])
"""Of an image that is linear in mm, which linear interpolation leaves linear."""
STRONG = [Flip("x", 1.0), Rotation(20), Shift(mm=4), Zoom(0.2)]
VIEWS: list[View[Any]] = [Volume(), OneSlice(), UniformDraw(4), Crop((7, 5, 5))]


def ramp(size: tuple[int, ...], matrix: np.ndarray | None = None) -> np.ndarray:
    """SLOPE times the position from the middle of the field of view, mm, after a map of it; float32."""
    sides = EXTENT[: len(size)] / size
    points = (np.stack(np.indices(size), -1) - (np.array(size) - 1) / 2) * sides
    if matrix is not None:
        points = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return (points @ SLOPE[: len(size)]).astype(np.float32)


def reader(array: np.ndarray) -> Callable[[np.ndarray | None], np.ndarray]:
    """Reads an array of volumes whose slices are stacked along z."""
    return lambda slices: array if slices is None else np.moveaxis(array[..., slices], -1, 0)


def shown(
    transforms: list[Augmentation], array: np.ndarray, view: View[Any], name: str = IMAGE, position: int = 0
) -> np.ndarray:
    """What a view shows of an augmented volume, or of the volume itself without transforms."""
    grid = Grid(array.shape, "axial" if array.ndim == 3 else "")
    record = Record("", "", "", "", 0.0, np.eye(4), {})
    selection = view.draw(grid, record, np.random.default_rng(position))
    stacked = 2 if view.reads_slices else None
    read, padding = reader(array), 0 if name == LABEL_MAP else -1
    drawn = Augmenter(transforms, Frame(SIZE[: array.ndim], SPACING[: array.ndim], stacked), 3).at(position)
    moved = drawn.moved(read, array.shape, view.box(grid, selection), name, padding)
    part = view.read(moved, grid, selection, padding)
    index = view.slice_index(selection)
    return drawn.changed(part, name, index >= 0 if isinstance(view, UniformDraw) and index is not None else None)


def image(seed: int = 0, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_strength_0_is_the_identity(view: View[Any]) -> None:
    none = [Flip("x", 0.0), Rotation(0), Shift(mm=0), Shift(voxels=0), Zoom(0), Gamma(0), BiasField(0), Noise(0)]
    for each in [*([one] for one in none), none]:
        assert np.array_equal(shown(each, image(), view), shown([], image(), view))


@pytest.mark.parametrize("axis", "xyz")
def test_a_flip_is_exact_and_its_own_inverse(axis: Any) -> None:
    for size in (SIZE, (15, 11, 9)):
        values, labels = image(size=size), (image(1, size) > 0).astype(np.uint8)
        flip = [Flip(axis, 1.0)]
        assert np.array_equal(shown(flip, values, Volume()), np.flip(values, "xyz".index(axis)))
        assert np.array_equal(shown(flip * 2, values, Volume()), values)
        assert np.array_equal(shown(flip, labels, Volume(), LABEL_MAP), np.flip(labels, "xyz".index(axis)))


@pytest.mark.parametrize("size", [SIZE, HALF, FLAT])
def test_images_and_sources_of_other_sizes_move_alike_in_mm(size: tuple[int, ...]) -> None:
    """Closed form: of an image linear in mm every voxel is known, whatever several transforms do in one resampling."""
    for position in range(3):
        frame = Frame(SIZE[: len(size)], SPACING[: len(size)])
        matrix = Augmenter(STRONG, frame, 3).at(position).matrix
        assert np.abs(matrix - np.eye(len(matrix))).max() > 0.1
        found, expected = shown(STRONG, ramp(size), Volume(), position=position), ramp(size, matrix)
        inner = tuple(slice(side // 3, -(side // 3)) for side in size)  # what is moved in from outside is background
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)


def test_a_label_map_moves_as_its_image() -> None:
    """Where an image of two values still has one of them, between no voxels that differ, the map has it as well."""
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[4:11, 3:9, 2:8] = 1
    for view in VIEWS:
        for position in range(3):
            values = shown(STRONG, labels.astype(np.float32), view, position=position)
            moved = shown(STRONG, labels, view, LABEL_MAP, position=position)
            assert set(np.unique(moved)) <= {0, 1}
            assert np.array_equal(moved[values == 1], np.ones((values == 1).sum()))
            assert np.array_equal(moved[values == 0], np.zeros((values == 0).sum()))


def test_transforms_act_in_the_order_of_the_config() -> None:
    frame, (shift, turn) = Frame(SIZE, SPACING), (Shift(mm=4), Rotation(30))
    first, second = (Augmenter(each, frame, 3).at(0).matrix for each in ([shift, turn], [turn, shift]))
    assert not np.allclose(first, second)
    alone = [Augmenter([each, Shift(mm=0), Shift(mm=0)], frame, 3).at(0).matrix for each in (shift, turn)]
    last = [Augmenter([Shift(mm=0), each], frame, 3).at(0).matrix for each in (turn, shift)]
    np.testing.assert_array_equal(first, alone[0] @ last[0])
    np.testing.assert_array_equal(second, alone[1] @ last[1])
    bright = [Gamma(0.9), BiasField(0.9), Noise(0.2)]
    drawn = Augmenter(bright, frame, 3).at(0)
    expected = image()
    for each, seed in drawn.others:
        expected = each(expected, np.random.default_rng(seed))  # type: ignore[operator]
    np.testing.assert_array_equal(shown(bright, image(), Volume()), expected)
    assert not np.array_equal(shown(bright[::-1], image(), Volume()), expected)


def test_all_slices_of_a_set_move_in_their_plane_by_one_draw() -> None:
    """Of a volume that is the same in all slices, they stay the same; of one linear along z, its values stay."""
    same = np.repeat(image()[..., :1], SIZE[2], axis=2)
    found = shown([Flip("x", 1.0), Rotation(20), Shift(mm=4), BiasField(), Gamma()], same, UniformDraw(4), position=2)
    real = (found != -1).any((1, 2))
    assert real.sum() > 1
    assert (found[real] == found[real][0]).all()
    deep = np.broadcast_to(np.linspace(-0.9, 0.9, SIZE[2], dtype=np.float32), SIZE)
    sets = shown([Rotation(20), Zoom(0.1)], deep, UniformDraw(4), position=2)
    before = shown([], deep, UniformDraw(4), position=2)
    middle = (slice(None), slice(6, 10), slice(4, 8))
    np.testing.assert_allclose(sets[middle], before[middle], atol=1e-6)


def test_padding_of_sets_stays_background() -> None:
    for position in range(8):
        before = shown([], image(), UniformDraw(8), position=position)
        found = shown([Noise(0.5)], image(), UniformDraw(8), position=position)
        padding = (before == -1).all((1, 2))
        assert (found[padding] == -1).all()
        assert (found[~padding] != before[~padding]).any()


def test_a_crop_moves_around_its_own_middle_and_shows_what_was_beside_it() -> None:
    values = ramp(SIZE)
    for position in range(4):
        before, found = (shown(each, values, Crop((5, 5, 5)), position=position) for each in ([], [Rotation(40)]))
        assert found[2, 2, 2] == pytest.approx(before[2, 2, 2], abs=1e-5)
        assert (found != -1).mean() > 0.5
        assert not np.allclose(found, before)


def test_draws_are_a_pure_function_of_seed_and_position() -> None:
    every = [*STRONG, Gamma(), BiasField(), Noise()]
    once, again = ([shown(every, image(), Volume(), position=p) for p in order] for order in ((0, 1, 2), (2, 1, 0)))
    for one, other in zip(once, again[::-1], strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(once[0], once[1])


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_bias_field_keeps_its_bounds_and_background(strength: float) -> None:
    for seed in range(5):
        field = BiasField(strength).field(SIZE, np.random.default_rng(seed))
        assert 1 / (1 + strength) - 1e-5 <= field.min() < 1 < field.max() <= 1 + strength + 1e-5
    empty = np.full(SIZE, -1, dtype=np.float32)
    for each in (BiasField(strength), Gamma(strength)):
        assert np.array_equal(shown([each], empty, Volume()), empty)


def test_changes_stay_in_the_range() -> None:
    for position in range(5):
        found = shown([*STRONG, Gamma(2), BiasField(2), Noise(0.5)], image(), Volume(), position=position)
        assert found.dtype == np.float32
        assert -1 <= found.min() <= found.max() <= 1


def test_only_training_items_are_augmented(root: Path, tmp_path: Path) -> None:  # noqa: F811
    """With label map and two sources, of another size; and never what is kept as latents."""
    recipe = Preprocessing(
        (10, 12, 9), (40.0, 48.0, 36.0), classes=CLASSES, sources=("t2", "flair"), source_size=(5, 6, 9)
    )
    plain, changed = (
        Several(str(root), recipe, fractions=(1, 0, 0), store_dir=str(tmp_path), num_jobs=1, augmentation=each)
        for each in (None, [Flip("x", 1.0), Shift(voxels=0.3), Noise(0.1)])
    )
    for data in (plain, changed):
        data.prepare_data()
        data.setup("fit")
    one, other = (data.dataset("train").read((5, 0)) for data in (plain, changed))
    for name in ("label_map", "source"):
        a, b = getattr(one.condition, name), getattr(other.condition, name)
        assert a.shape == b.shape
        assert not torch.equal(a, b)
    assert one.condition.label_map is not None
    assert other.condition.label_map is not None
    assert torch.equal(one.condition.label_map, other.condition.label_map.flip(2))  # a shift of less than half a voxel
    assert not torch.equal(one.image, other.image)
    assert torch.equal(next(plain.stored("train")).image, next(changed.stored("train")).image)
    assert torch.equal(plain.images("train").all(), changed.images("train").all())
    assert (plain.order().get("augmentation"), plain.digest) == (None, changed.digest)
    assert changed.order()["augmentation"][2] == "Noise(deviation=0.1)"
    with pytest.raises(InputError, match="this method reads latents, which are made of each image once"):
        changed.read_latents(lambda batch: batch.image)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Flip("x", 2), "Flip: probability is 2; give 0 to 1"),
        (lambda: Rotation(-1), "Rotation: degrees is -1; give 0 to 180"),
        (lambda: Shift(), "Shift: mm and voxels is None and None; give one of the two"),
        (lambda: Shift(mm=1, voxels=1), "give one of the two"),
        (lambda: Zoom(-0.1), "Zoom: strength is -0.1; give 0 or more"),
        (lambda: Augmenter([Noise(), Flip()], Frame(SIZE, SPACING), 0), "Flip stands after Noise; put flips"),
        (lambda: Augmenter([Flip("z")], Frame(SIZE, SPACING, 2), 0), "axis is z, but slices are stacked along it"),
        (lambda: Augmenter([Flip("z")], Frame(FLAT, SPACING[:2]), 0), "images are 2D; give one of x, y"),
        (lambda: Augmenter([Shift(mm=1)], Frame(FLAT, (np.nan, np.nan)), 0), "have no size; give voxels"),
        (lambda: MonaiTransform("SaveImage"), "transform is 'SaveImage'; give a class of monai.transforms"),
        (lambda: MonaiTransform("RandFlip", {"chance": 1}), "MonaiTransform: RandFlip: .*chance"),
    ],
)
def test_what_cannot_be_is_one_line(make: Callable[[], Any], words: str) -> None:
    if "monai" in words.lower():
        pytest.importorskip("monai", reason="MONAI is an extra")
    with pytest.raises((InputError, ValueError), match=words) as refusal:
        make()
    assert str(refusal.value).startswith("data.init_args.augmentation: ")


def test_monai_changes_values_of_the_image_and_moves_all() -> None:
    pytest.importorskip("monai", reason="MONAI is an extra")
    values, labels = image(), (image(1) > 0).astype(np.uint8)
    flip = [MonaiTransform("RandFlip", {"prob": 1.0, "spatial_axis": 0})]
    for array, name in ((values, IMAGE), (labels, LABEL_MAP), (values, "flair")):
        assert np.array_equal(shown(flip, array, Volume(), name), array[::-1])
    turned = [MonaiTransform("RandRotate", {"prob": 1.0, "range_x": (0.3, 0.6), "padding_mode": "zeros"})]
    moved = [shown(turned, labels, Volume(), LABEL_MAP, position) for position in range(3)]
    assert set(np.unique(moved)) == {0, 1}
    assert all(not np.array_equal(each, labels) for each in moved)
    bright = [MonaiTransform("RandScaleIntensity", {"prob": 1.0, "factors": 0.5})]
    once, again, other = (shown(bright, values, Volume(), position=p) for p in (4, 4, 5))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert np.array_equal(shown(bright, labels, Volume(), LABEL_MAP), labels)
    with pytest.raises(InputError, match=r"RandRotate90 makes \[12, 16, 10\] of \[16, 12, 10\]; give a transform that"):
        shown([MonaiTransform("RandRotate90", {"prob": 1.0, "max_k": 1})], values, Volume())
