"""Results that several scores share, and where images are worked on.

A report asks for the same matrices many times: every score, floor and null is compared with the same real people. So a
function of images is called once, and images go to the device in blocks; what comes back is small and on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 2**28
"""Of images in float64 on the device at a time."""


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
        """What the function returns for the arguments; tensors are the same if they are the same object."""
        if not self.remember:
            return function(*arguments)
        key = (function, *(id(part) if isinstance(part, Tensor) else part for part in arguments))
        if key not in self._results:
            self._results[key] = arguments, function(*arguments)  # the arguments too, so that no other gets their id
        return self._results[key][1]

    def forget(self, images: Tensor) -> None:
        """Drops every result of these images, and of what was computed from them."""
        gone = [images]
        while gone:
            lost = gone.pop()
            for key, (arguments, result) in list(self._results.items()):
                if any(part is lost for part in arguments):
                    del self._results[key]
                    gone += [part for part in (result if isinstance(result, tuple) else [result])]


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is computed: the device, but the CPU instead of MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def of_each(images: Tensor, statistic: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """n ..., float64 on the CPU: a statistic of images (n c *s), which go to the device in blocks, in float64."""
    num = max(1, BLOCK_BYTES // (8 * images[0].numel()))
    device = exact_device(device)
    return torch.cat([statistic(some.to(device, torch.float64)).cpu() for some in images.split(num)])


def products(x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    """n m, float64 on the CPU: scalar products of x (n c *s) and y (m c *s), both in [-1, 1] and taken in [0, 1]."""
    device = exact_device(device)
    total = torch.zeros(len(x), len(y), dtype=torch.float64, device=device)
    num = max(1, BLOCK_BYTES // (8 * (len(x) + len(y))))
    columns = [part.flatten(1).split(num, dim=1) for part in (x, y)]
    for a, b in zip(*columns, strict=True):
        a = (a.to(device, torch.float64) + 1) / 2
        total += a @ (a if y is x else (b.to(device, torch.float64) + 1) / 2).T
    return total.cpu()
