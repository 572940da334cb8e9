"""Figures: up is up, and nothing is lost on the way to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lit_medgen.images import png
from lit_medgen.images.grids import enlarge, mosaic, save_figure, three_planes
from lit_medgen.images.png import write_figure

X, Y, Z = 8, 10, 12


def marked(x: int, y: int, z: int) -> list[list[int]]:
    """Where a voxel is seen on the axial, coronal and sagittal plane: row, column; [] where it is not."""
    volume = np.zeros((X, Y, Z))
    volume[x, y, z] = 1
    return [np.argwhere(plane).flatten().tolist() for plane in three_planes(volume)]


def test_anterior_is_up_and_right_is_right_on_the_axial_plane() -> None:
    assert marked(X - 1, Y - 1, Z // 2)[0] == [0, X - 1]
    assert marked(0, 0, Z // 2)[0] == [Y - 1, 0]


def test_superior_is_up_on_the_coronal_plane() -> None:
    assert marked(X - 1, Y // 2, Z - 1)[1] == [0, X - 1]


def test_superior_is_up_and_anterior_is_right_on_the_sagittal_plane() -> None:
    assert marked(X // 2, Y - 1, Z - 1)[2] == [0, Y - 1]


def test_a_voxel_off_the_middle_planes_is_not_seen() -> None:
    assert marked(0, 0, 0) == [[], [], []]


def test_mosaic_of_volumes() -> None:
    canvas = mosaic(torch.ones(3, 1, X, Y, Z))
    assert canvas.shape == (Y + Z + Z, 3 * max(X, Y))
    assert canvas.max() == 1
    assert canvas.sum() == 3 * (X * Y + X * Z + Y * Z)  # no plane covers another


def test_mosaic_of_images_is_one_row() -> None:
    images = torch.full((4, 1, X, Y), -1.0)
    images[2, 0, 3, 1] = 1  # column 3, row 1 of the third image
    assert mosaic(images).shape == (Y, 4 * X)
    assert np.argwhere(mosaic(images)).tolist() == [[1, 2 * X + 3]]


def test_mosaic_clips() -> None:
    canvas = mosaic(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5))
    np.testing.assert_allclose(canvas.ravel(), [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("shape", [(3, 1, X, Y, Z), (9, 1, X, Y)])
def test_save_figure_writes_a_picture(shape: tuple[int, ...], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    rows = {name: torch.rand(shape, generator=random) for name in ("real", "samples")} | {
        "none": torch.empty(0, 1, X, Y, Z)
    }
    save_figure(tmp_path / "a.png", rows, 6)
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 100
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize("dpi", [None, 40])
def test_a_figure_has_the_resolution_that_it_is_told(dpi: int | None, tmp_path: Path) -> None:
    write_figure(tmp_path / "a.png", Figure(figsize=(3, 2)), dpi)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (3 * (dpi or png.DPI), 2 * (dpi or png.DPI))


def test_enlarge_repeats_pixels() -> None:
    image = np.arange(6).reshape(2, 3)
    large = enlarge(image, min_side=5)
    assert large.shape == (4, 6)
    np.testing.assert_array_equal(large[::2, ::2], image)
    np.testing.assert_array_equal(enlarge(image, min_side=1), image)
