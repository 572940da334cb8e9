"""Results that several scores share, and images that stream through them.

A report asks for the same matrices many times: every score, floor and null is compared with the same real people. So a
function of images is called once. Images are read in blocks, since hundreds of volumes fill no memory but that of a
cluster; what comes of them is small, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Images

BLOCK_BYTES = 2**28
"""Of images in float32 that are read at a time: 32 volumes of 128^3."""


class Known:
    """Calls functions of images and keeps what they returned, while the images stay as they are.

    Args:
        device: where images are worked on.
        remember: whether results are kept.
    """

    def __init__(self, device: torch.device | str = "cpu", remember: bool = True) -> None:
        self.device, self.remember = torch.device(device), remember
        self._results: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns for the arguments; images and tensors are the same if they are one object."""
        if not self.remember:
            return function(*arguments)
        key = (function, *(id(part) if isinstance(part, Tensor | Images) else part for part in arguments))
        if key not in self._results:
            self._results[key] = arguments, function(*arguments)  # the arguments too, so that no other gets their id
        return self._results[key][1]

    def forget(self, images: Images) -> None:
        """Drops every result of these images, and of what was computed from them."""
        gone: list[Any] = [images]
        while gone:
            lost = gone.pop()
            for key, (arguments, result) in list(self._results.items()):
                if any(part is lost for part in arguments):
                    del self._results[key]
                    gone += result if isinstance(result, tuple) else [result]


def as_images(images: Tensor | Images) -> Images:
    """Images as they are read: a tensor n c *s is wrapped."""
    return Images.of(images) if isinstance(images, Tensor) else images


def blocks(images: Images, num_bytes: int | None = None) -> Iterator[Tensor]:
    """The images, n c *s each time, of at most so many bytes in float32 (at least one image)."""
    return (some for _, some in numbered_blocks(images, num_bytes))


def numbered_blocks(images: Images, num_bytes: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """The same, each with the index of its first image."""
    if not len(images):
        return
    num = max(1, (num_bytes or BLOCK_BYTES) // num_bytes_of_one(images))
    for start in range(0, len(images), num):
        yield start, images.read(range(start, min(start + num, len(images))))


def num_bytes_of_one(images: Images) -> int:
    """Of an image in float32."""
    return 4 * images.read(range(1)).numel()


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is computed: the device, but the CPU instead of MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def of_each(images: Images, statistic: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    """n ..., float64 on the CPU: a statistic of images (n c *s), which go to the device in blocks, in float64."""
    device = exact_device(device)
    few = blocks(images, BLOCK_BYTES // 4)  # in float64, and several times as much on the way
    return torch.cat([statistic(some.to(device, torch.float64), *arguments).cpu() for some in few])


def products(x: Images, y: Images, device: torch.device) -> Tensor:
    """n m, float64 on the CPU: scalar products of images x (n c *s) and y (m c *s) in [-1, 1], taken in [0, 1]."""
    device = exact_device(device)
    found = torch.zeros(len(x), len(y), dtype=torch.float64)
    for row, some_x in numbered_blocks(x):
        for column, some_y in numbered_blocks(y):
            if y is not x or column >= row:  # else known by symmetry
                same = some_x if y is x and column == row else some_y
                found[row : row + len(some_x), column : column + len(some_y)] = _products(some_x, same, device)
    return torch.where(torch.ones_like(found).triu().bool(), found, found.T) if y is x else found


def _products(x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    """n m: the same of two blocks, n c *s and m c *s, in float64 a few voxels at a time."""
    total = torch.zeros(len(x), len(y), dtype=torch.float64, device=device)
    num = max(1, BLOCK_BYTES // (16 * (len(x) + len(y))))
    columns = [part.flatten(1).split(num, dim=1) for part in (x, y)]
    for a, b in zip(*columns, strict=True):
        a = (a.to(device, torch.float64) + 1) / 2
        total += a @ (a if y is x else (b.to(device, torch.float64) + 1) / 2).T
    return total.cpu()


def centred(gram: Tensor) -> Tensor:
    """n n: the scalar products of images less their mean, from those of the images."""
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
