"""CT slices and their label maps with fewer pixels than delivered, for methods that work at a smaller size.

A pixel of the result stands for a block of k x k delivered ones: its HU are the mean of theirs (rounded), as a scanner
with larger pixels would measure; its class is that of most of them, or that of the most malignant nodule among them,
so that no nodule vanishes, however small. Images are rows columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange, reduce

from data_modules.lidc.semantic_maps import CLASSES, FIRST_NODULE
from lit_medgen.errors import InputError


def block_side(size: Sequence[int], pixels: Sequence[int] | None) -> int:
    """k, from the size as delivered and that wanted; InputError unless blocks are squares and fill the slice."""
    if pixels is None:
        return 1
    if (
        len(pixels) == 2
        and min(pixels) >= 1
        and pixels[0] * size[1] == pixels[1] * size[0]
        and size[0] % pixels[0] == 0
    ):
        return size[0] // pixels[0]
    divided = [[side // k for side in size] for k in (2, 4) if not any(side % k for side in size)]
    raise InputError(
        f"data.init_args.ct.pixels is {list(pixels)}; give rows and columns by which the slices' "
        f"{' x '.join(map(str, size))} can be divided to the same number"
        + (f", such as {' or '.join(map(str, divided))}" if divided else "")
        + ", or null to keep them as delivered."
    )


def reduced_hu(image: np.ndarray, k: int) -> np.ndarray:
    """Means over blocks, int16; h w int16 -> h/k w/k."""
    if k == 1:
        return image
    means = reduce(image.astype(np.float32), "(h a) (w b) -> h w", "mean", a=k, b=k)
    return np.asarray(means.round().astype(np.int16))


def reduced_labels(labels: np.ndarray, k: int) -> np.ndarray:
    """Classes of blocks; h w uint8 -> h/k w/k. Of classes that are as frequent in a block the first counts."""
    if k == 1:
        return labels
    blocks = rearrange(labels, "(h a) (w b) -> h w (a b)", a=k, b=k)
    counts = np.stack([(blocks == label).sum(2) for label in range(len(CLASSES))])
    most, highest = counts.argmax(0), blocks.max(2)  # nodules are the last classes, ordered by malignancy
    return np.where(highest >= FIRST_NODULE, highest, most).astype(np.uint8)


def reduced_affine(affine: np.ndarray, k: int) -> np.ndarray:
    """Pixel to world of the reduced slice, 4 4: the first pixel is the middle of the first block."""
    to_delivered = np.diag([k, k, 1.0, 1.0])
    to_delivered[:2, 3] = (k - 1) / 2
    return np.asarray(affine @ to_delivered)


def reduced_position(position: float, k: int) -> float:
    """A row or column of the delivered slice in pixels of the reduced one."""
    return (position + 0.5) / k - 0.5
