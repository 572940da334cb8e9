"""From the numbers that a DICOM file stores to what they measure: rescale or Modality LUT, padding, inversion.

The Modality LUT gives the values of the modality, HU of a CT for example. Windows (VOI LUT) are for display, so none is
applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom

Get = Callable[..., Any]
"""An attribute of a slice by its name, and the default where it is missing or empty."""
PALETTE = "PALETTE COLOR"
COLOURS = ("RGB", PALETTE, "YBR_FULL", "YBR_ICT", "YBR_RCT")
"""Beginnings of the photometric interpretations that become red, green and blue."""


@dataclass(frozen=True, eq=False)
class Values:
    """How stored pixels become values.

    Attributes:
        slope: of the rescale.
        intercept: of the rescale.
        table: Modality LUT, used in place of the rescale; None if there is none.
        first: the stored number that the table's first value stands for.
        padding: lowest and highest stored number that stand for nothing; None if there are none.
        ends: lowest and highest number that can be stored, of an image that shows low values bright (MONOCHROME1) and
            is turned, so that bright is high in every image; None if it is not turned.
        channels: whether pixels have a last axis of channels.
        colour: the photometric interpretation of a colour image, whose pixels are values already; "" of a grey one.
    """

    slope: float
    intercept: float
    table: np.ndarray | None
    first: int
    padding: tuple[int, int] | None
    ends: tuple[int, int] | None
    channels: bool = False
    colour: str = ""

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Values, float32; padding becomes the smallest other value. ValueError if they are not finite."""
        if self.colour:
            return stored.astype(np.float32)
        found = self._values(stored)
        return found[..., None] if self.channels else found

    def _values(self, stored: np.ndarray) -> np.ndarray:
        values = self._measured(stored)
        if self.ends is not None:
            ends = self._measured(np.array(self.ends)) if self.table is None else self.table
            values = np.float32(ends.min() + ends.max()) - values
        if not np.isfinite(values).all():
            raise ValueError("rescaled pixels that are not finite")
        if self.padding is not None:
            padded = (stored >= self.padding[0]) & (stored <= self.padding[1])
            if padded.any() and not padded.all():
                values[padded] = values[~padded].min()
        return values

    def _measured(self, stored: np.ndarray) -> np.ndarray:
        if self.table is None:
            return stored.astype(np.float32) * self.slope + self.intercept
        index = (stored.astype(np.int64) - self.first).clip(0, len(self.table) - 1)
        return self.table[index]


def values_of(get: Get, projection: bool, channels: bool = False) -> Values:
    """How the pixels of a slice or, with `projection`, of a radiograph become values; ValueError if that is unknown.

    With `channels`, pixels have a last axis, and may be colours.
    """
    photometric = str(get("PhotometricInterpretation", "MONOCHROME2"))
    if not photometric.startswith("MONOCHROME") or int(get("SamplesPerPixel", 1)) != 1:
        if channels and photometric.startswith(COLOURS):
            return Values(1.0, 0.0, None, 0, None, None, channels, photometric)
        raise ValueError(f"a colour image ({photometric}); expected one grey slice")
    slope, intercept = float(get("RescaleSlope", 1)), float(get("RescaleIntercept", 0))
    if not slope > 0:
        raise ValueError(f"rescale slope {slope:g}; expected a number above 0")
    signed = int(get("PixelRepresentation", 0)) == 1
    table, first = _table(get("ModalityLUTSequence"), signed)
    ends = None
    if projection and photometric == "MONOCHROME1":  # of slices, values are measured (HU) whatever they are shown as
        bits = int(get("BitsStored", 16))
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return Values(slope, intercept, table, first, _padding(get, signed), ends, channels)


def _table(sequence: Any, signed: bool) -> tuple[np.ndarray | None, int]:
    """Values of a Modality LUT, float32, and the stored number of the first."""
    if not sequence:
        return None, 0
    item: pydicom.Dataset = sequence[0]
    num, first, bits = (int(number) for number in item.LUTDescriptor)
    num = num or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        # Stored as bytes (OW): little-endian words, or 8-bit entries one after the other.
        entries = np.frombuffer(data, np.uint8 if bits <= 8 and len(data) <= num + 1 else "<u2")
    else:
        entries = np.atleast_1d(np.asarray(data))
    if len(entries) < num:
        raise ValueError(f"a Modality LUT of {len(entries)} values; its descriptor says {num}")
    return entries[:num].astype(np.float32), _as_stored(first, signed)


def _padding(get: Get, signed: bool) -> tuple[int, int] | None:
    """PixelPaddingValue, to PixelPaddingRangeLimit if there is one."""
    ends = [get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    numbers = [_as_stored(int(end), signed) for end in ends if end is not None]
    return min(numbers), max(numbers)


def _as_stored(number: int, signed: bool) -> int:
    """As pixels are stored: some writers give a negative number its unsigned form."""
    return number - 2**16 if signed and number >= 2**15 else number
