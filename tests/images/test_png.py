"""PNG: grey values in and out; colour and damage refused."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_medgen.images.png import read_png, write_png


@pytest.fixture
def grey() -> np.ndarray:
    """Rows and columns of 8-bit values."""
    return np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def test_round_trip_of_eight_bits(tmp_path: Path) -> None:
    pixels = np.arange(256).reshape(32, 8) / 255
    write_png(tmp_path / "a.png", pixels)
    found, affine = read_png(tmp_path / "a.png")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(256).reshape(32, 8))
    np.testing.assert_array_equal(affine, np.eye(3))


def test_x_is_the_column_and_y_the_row_from_the_top(tmp_path: Path) -> None:
    rows = np.zeros((20, 30), dtype=np.uint8)
    rows[3, 25] = 255
    Image.fromarray(rows).save(tmp_path / "a.png")
    pixels, _ = read_png(tmp_path / "a.png")
    assert pixels.shape == (30, 20)
    assert np.argwhere(pixels).tolist() == [[25, 3]]


def test_values_outside_the_range_are_clipped(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[-0.5, 0.0], [1.0, 7.0]]))
    np.testing.assert_array_equal(read_png(tmp_path / "a.png")[0], [[0, 0], [255, 255]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_grey(mode: str, grey: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_png(tmp_path / "a.png")[0], grey.T)


def test_sixteen_bits_are_kept(grey: np.ndarray, tmp_path: Path) -> None:
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_png(tmp_path / "a.png")[0], deep.T)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_is_refused(mode: str, grey: np.ndarray, tmp_path: Path) -> None:
    coloured = np.array(Image.fromarray(grey).convert(mode))
    coloured[0, 0, 1] ^= 1
    Image.fromarray(coloured).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="colour"):
        read_png(tmp_path / "a.png")


def test_a_palette_is_refused(grey: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(grey).convert("P").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="image mode P"):
        read_png(tmp_path / "a.png")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(share: float, grey: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(grey).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="cut off or damaged"):
        read_png(tmp_path / "a.png")


@pytest.mark.parametrize("side", [9_000, 11_000, 60_000])  # Pillow: silent, warning, error
def test_a_huge_claim_is_refused_before_decoding(side: int, tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=f"{side}|pixels"):
        read_png(tmp_path / "a.png")


def test_damaged_files_either_load_or_are_a_value_error(
    grey: np.ndarray, tmp_path: Path, mutant: Callable[[bytes, np.random.Generator], bytes]
) -> None:
    random, path, leaks = np.random.default_rng(0), tmp_path / "a.png", []
    Image.fromarray(grey).save(path)
    content = path.read_bytes()
    for _ in range(300):
        path.write_bytes(mutant(content, random))
        try:
            with warnings.catch_warnings(action="ignore"):
                assert read_png(path)[0].ndim == 2
        except ValueError:
            continue
        except Exception as error:  # the test is that there is none
            leaks.append(repr(error))
    assert not leaks


@pytest.mark.data
def test_real_chest_radiographs_grey_or_rgba(shared_data: Path) -> None:
    modes = {}
    for path in sorted((shared_data / "cxr" / "images_1024").glob("*.png")):
        with Image.open(path) as image:
            modes[path.name] = image.mode
            expected = np.asarray(image.getchannel(0)).T
        np.testing.assert_array_equal(read_png(path)[0], expected)
    assert modes["00000773_001.png"] == "RGBA"  # a known quirk of this data set
    assert len(modes) == 4
