"""Randomness from explicit sources: noise whose i-th image depends on seeds[i] alone.

One generator for every image, drawn from on the CPU, so an image is the same for any batch size, order,
number of processes and device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_medgen.batch import sent


class SeededNoise:
    """Standard normal noise (or uniform numbers) for a batch of images, one stream per image.

    Every call draws the next numbers of each stream, so image i sees the same numbers whatever else is in
    the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Noise of b *shape, float32; on the device and in the dtype of `like` if given."""
        noise = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self.generators])
        return noise if like is None else sent(noise, like.device).to(like.dtype)

    def uniform(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Uniform numbers in [0, 1), b *shape, float32; on the device of `like` if given."""
        numbers = torch.stack([torch.rand(tuple(shape), generator=generator) for generator in self.generators])
        return numbers if like is None else sent(numbers, like.device)

    def like(self, x: Tensor) -> Tensor:
        """Noise of the shape, device and dtype of x: b ... (the form that samplers take)."""
        return self(x.shape[1:], like=x)


def mix(*parts: int | str) -> int:
    """A 63-bit seed from several parts: equal parts give equal seeds, any change gives an unrelated one."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1
