"""Colours in image files: channels of pixels, and what is transparent of them."""

from __future__ import annotations

import numpy as np

WHITE = 255.0
"""Of a channel of 8 bits: the brightest value, and an alpha that lets nothing through."""


def opaque(pixels: np.ndarray, expected: int) -> np.ndarray:
    """Pixels ... c, 0 to 255, without the alpha that comes after `expected` channels: what is transparent is black.

    Pixels of another number of channels stay as they are.
    """
    if pixels.shape[-1] != expected + 1 or pixels.shape[-1] not in (2, 4):
        return pixels
    shown: np.ndarray = pixels[..., :-1] * (pixels[..., -1:] / np.float32(WHITE))
    return shown
