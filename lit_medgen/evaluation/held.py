"""Images that a report reads again and again: in memory where they are small, else in a temporary file.

Samples come from files that take a while to decode, nulls are made once, and neither fits in memory where they are
hundreds of volumes. A temporary file has no name, so it is gone when the process is, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.errors import space_for
from lit_medgen.metrics.known import num_bytes_of_one

IN_MEMORY_BYTES = 2**27
"""Sets of images of at most so many bytes in float32 are held in memory: 16 volumes of 128^3."""


@dataclass(frozen=True)
class Sets:
    """The images of a report: samples, those of the training people, those of the test people."""

    samples: Images
    train: Images
    real: Images


def quick(images: Images) -> Images:
    """The same images, read once if they are small enough to stay in memory."""
    if not len(images) or len(images) * num_bytes_of_one(images) > IN_MEMORY_BYTES:
        return images
    return Images(images.keys, images.people, Images.of(images.all()).read)


class Scratch(ExitStack):
    """Holds images while its `with` block runs.

    Args:
        folder: where temporary files go, if they can; else, and with None, where the system puts them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder if folder and os.access(folder, os.W_OK) else Path(tempfile.gettempdir())

    def hold(self, parts: Iterable[Tensor], num: int, people: Sequence[str] | None = None) -> Images:
        """Images that come in parts (n c *s in [-1, 1], `num` together), each of which is read once.

        `people` says whose each is; None: nobody's.
        """
        parts = iter(parts)
        first = next(parts)
        shape, every = first.shape[1:], chain([first], parts)
        if 4 * num * first[0].numel() <= IN_MEMORY_BYTES:
            return Images.of(torch.cat(list(every)).float(), people)
        with space_for(self.folder):
            unnamed = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 (closed with this object)
            file = cast(BinaryIO, self.enter_context(unnamed))
            for image in chain.from_iterable(every):
                left = memoryview(image.float().contiguous().numpy()).cast("B")
                while len(left):  # a file without a buffer may write a part alone
                    left = left[file.write(left) :]

        def read(indices: Sequence[int]) -> Tensor:
            images = torch.empty(len(indices), *shape)
            for image, index in zip(images, indices, strict=True):
                file.seek(index * 4 * image.numel())
                image.copy_(torch.from_numpy(np.fromfile(file, np.float32, image.numel())).view(*shape))
            return images

        return Images([str(i) for i in range(num)], list(people or [""] * num), read)
