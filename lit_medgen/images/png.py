"""PNG in and out: 8-bit grey and colour images."""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from lit_medgen.files import write_atomically
from lit_medgen.images.colours import opaque

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 64_000_000
"""Pillow only warns about decompression bombs up to twice its limit; we refuse before decoding."""

COLOUR = "data.init_args.preprocessing.channels: [red, green, blue]"
"""What a config says to read colour images."""

DPI = 110
"""Dots per inch of a figure, unless it says otherwise."""


def read_png(path: Path, numbers: bool = False, channels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels x y (column, row from the top), float32, and a 3 3 identity affine: a PNG has no physical size.

    Args:
        path: the file.
        numbers: colours of a palette are their numbers, as label maps have them.
        channels: how many are expected; pixels are then c x y, however many there are: grey, or red, green and blue.
            Transparent parts of an image with one more, its alpha, are black. 0: a grey image, colours are refused.
    """
    try:
        _refuse_damage(path)
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels; expected at most {MAX_PIXELS:,}")
            if image.mode in ("1", "CMYK", "YCbCr") or (image.mode == "P" and not (numbers or channels)):
                raise ValueError(f"image mode {image.mode}; expected grey values")
            pixels = _channels(image, channels) if channels else np.asarray(image)
    except UnidentifiedImageError as error:  # whose text has the path
        raise ValueError("cannot be read as an image (of no known format); the file is cut off or damaged") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as an image ({error}); the file is cut off or damaged") from error
    if channels:
        return pixels.T.astype(np.float32), np.eye(3)
    if pixels.ndim == 3:
        colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
        if (colours != colours[..., :1]).any():
            raise ValueError(f"a colour image; expected grey values{'' if numbers else f', or {COLOUR}'}")
        pixels = colours[..., 0]
    return pixels.T.astype(np.float32), np.eye(3)


def _channels(image: Image.Image, expected: int) -> np.ndarray:
    """Rows columns c of an opened image; a palette, and one colour that is transparent, are resolved."""
    clear = "transparency" in image.info
    if image.mode == "P" or (image.mode == "RGB" and clear):
        image = image.convert("RGBA" if clear else "RGB")
    pixels = np.asarray(image)
    return opaque(pixels if pixels.ndim == 3 else pixels[..., None], expected)


def _refuse_damage(path: Path) -> None:
    """OSError unless every chunk has its checksum and the last is there: Pillow decodes pixels without looking."""
    content = memoryview(path.read_bytes())
    if content[:8] != SIGNATURE:
        return  # another format, or none, which Pillow tells
    first, kind = 8, b""
    while kind != b"IEND":
        if first + 12 > len(content):
            raise OSError("it ends early")
        end = first + 8 + int.from_bytes(content[first : first + 4])
        kind, checksum = bytes(content[first + 4 : first + 8]), content[end : end + 4]
        if len(checksum) != 4 or zlib.crc32(content[first + 4 : end]) != int.from_bytes(checksum):
            raise OSError("the checksum of a chunk does not hold")
        first = end + 4


def write_figure(path: Path, figure: Figure, dpi: int | None = None) -> None:
    """Writes a figure of matplotlib with so many dots per inch (None: `DPI`).

    Characters that its font lacks are boxes, of which nobody need be warned.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(content, dpi=dpi or DPI, format="png")
    write_atomically(path, content.getvalue())


def write_png(path: Path, pixels: np.ndarray, description: str = "") -> None:
    """Writes pixels in [0, 1] with 8 bits, x y as grey or x y 3 as colours; the description stands in a text chunk."""
    rows = (np.swapaxes(pixels, 0, 1).clip(0, 1) * 255).round().astype(np.uint8)
    write_atomically(path, as_png(rows, description))


def as_png(rows: np.ndarray, description: str = "") -> bytes:
    """The content of a PNG file: rows columns as grey, or rows columns 3 as colours, uint8."""
    content, texts = io.BytesIO(), PngInfo()
    if description:
        texts.add_text("Description", description)
    Image.fromarray(np.ascontiguousarray(rows)).save(content, format="png", pnginfo=texts)
    return content.getvalue()
