"""What is seen of an image: which way up, how large, between which values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lit_medgen.app.views import OWN, SHOWN_PX, WHOLE, planes, shades, side_by_side, window_of, windows
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError

CT = DataSpec(1, (8, 4), (1.0, 1.0), orientation="LP", intensity_window=(-1024.0, 800.0), intensity_unit="HU")
VOLUME = DataSpec(1, (4, 6, 8), (2.0, 1.0, 0.5))


def test_windows_of_ct_are_those_of_the_reading_room() -> None:
    for name, level, width in (("lung", -600, 1500), ("mediastinum", 40, 400), ("bone", 400, 1800)):
        assert windows(CT)[name] == window_of(OWN, CT, level, width)
    assert windows(CT)[WHOLE] == (-1024, 800)
    assert list(windows(VOLUME)) == [WHOLE]
    with pytest.raises(InputError, match="width of the window is 0"):
        window_of(OWN, CT, 40, 0)


def test_a_window_is_black_below_and_white_above() -> None:
    found = shades(np.array([[-2000.0, -160.0, 40.0, 240.0, 3000.0]]), windows(CT)["mediastinum"])
    assert found.tolist() == [[0, 0, 128, 255, 255]]


def test_a_slice_is_shown_as_its_file_is() -> None:
    """Columns are the first axis, rows the second, from the top."""
    image = np.zeros((1, 8, 4))
    image[0, 7, 0] = 1
    (plane,) = planes(image, CT, [], 0)
    assert plane.shape == (SHOWN_PX // 2, SHOWN_PX)
    assert plane[0, -1] == 1
    assert plane.sum() == (SHOWN_PX // 8) ** 2


def test_planes_of_a_volume_meet_at_the_voxel_up_is_up_and_millimetres_are_equal() -> None:
    volume = np.zeros((1, *VOLUME.size))
    volume[0, 1, 2, 3] = 1  # left, to the back, below the middle
    axial, coronal, sagittal = planes(volume, VOLUME, [1, 2, 3], 0)
    assert axial.shape == (round(SHOWN_PX * 6 / 8), SHOWN_PX)  # 8 mm across, 6 mm high
    assert coronal.shape == (SHOWN_PX // 2, SHOWN_PX)  # 8 mm across, 4 mm high
    assert sagittal.shape == (round(SHOWN_PX * 4 / 6), SHOWN_PX)
    for plane, row, column in ((axial, 3.5 / 6, 1.5 / 4), (coronal, 4.5 / 8, 1.5 / 4), (sagittal, 4.5 / 8, 2.5 / 6)):
        assert plane[int(row * plane.shape[0]), int(column * plane.shape[1])] == 1
    assert not any(plane.any() for plane in planes(volume, VOLUME, [0, 0, 0], 0))


def test_colours_are_one_picture_and_other_channels_one_at_a_time() -> None:
    image = np.stack([np.full((8, 4), value) for value in (0.1, 0.2, 0.3)])
    colour = replace(CT, channels=3, channel_names=("red", "green", "blue"))
    (plane,) = planes(image, colour, [], 0)
    assert plane[0, 0].tolist() == [0.1, 0.2, 0.3]
    named = replace(CT, channels=3, channel_names=("t1", "t2", "flair"))
    assert planes(image, named, [], 2)[0].max() == 0.3


def test_pictures_of_other_heights_stand_side_by_side() -> None:
    tall, flat = np.full((5, 2), 7, np.uint8), np.full((2, 3), 9, np.uint8)
    found = side_by_side([tall, flat])
    assert found.shape == (5, 5)
    assert (found[1:3, 2:] == 9).all()
    assert found[:, 2:].sum() == flat.sum()
