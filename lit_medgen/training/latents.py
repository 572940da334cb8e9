"""The latent store: latents of all images of a data set, made once and kept beside the prepared data.

The file is addressed by the hash of all that it depends on: the first stage's weights, the prepared data, the view of
it and whose images they are. Batches that hold latents need no images, so none are read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, TrainingData, sent
from lit_medgen.files import write_atomically
from lit_medgen.output import say
from lit_medgen.training.frozen import weights_hash

ENCODED_AT_ONCE = 16
"""Images."""


class LatentStore:
    """Latents of training and validation images, by store key and slice.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file, np.load(file) as kept:
            self.latents = torch.from_numpy(kept["latents"])
            images = zip(kept["keys"].tolist(), kept["slices"].tolist(), strict=True)
            self.rows = {image: row for row, image in enumerate(images)}

    def __call__(self, batch: Batch) -> Tensor:
        """The latents of a batch's images: b *z codes, or b d *z."""
        return self.latents[[self.rows[image] for image in images_of(batch)]]

    def of(self, keys: Iterable[str]) -> Tensor:
        """The latents of all images of some records, in the order of the keys: n *z codes, or n d *z."""
        rows: dict[str, list[int]] = {}
        for (key, _), row in self.rows.items():
            rows.setdefault(key, []).append(row)
        return self.latents[[row for key in keys for row in rows[key]]]

    @classmethod
    def of_data(
        cls, first_stage: nn.Module, encode: Callable[[Tensor], Tensor], data: TrainingData, trainer: L.Trainer
    ) -> LatentStore:
        """The store of the trainer's data; the first process of each machine makes it where it is not there yet.

        All processes call this. `encode` gives the latents that the first stage makes of images n c *s.
        """
        path = cls.address(first_stage, data)
        if trainer.local_rank == 0:
            cls.make(encode, data, path)
        trainer.strategy.barrier("latents")
        store = cls(path)
        say(f"latents of {len(store.rows)} images: {path}")
        return store

    @staticmethod
    def address(first_stage: nn.Module, data: TrainingData) -> Path:
        """The file of the latents that a first stage makes of a data set."""
        keys = sorted([*data.people("train"), *data.people("val")])
        made_from = f"{weights_hash(first_stage)} {data.digest} {keys}"
        return data.cache / "latents" / f"latents-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.npz"

    @classmethod
    def make(cls, encode: Callable[[Tensor], Tensor], data: TrainingData, path: Path) -> None:
        """Writes the file unless a whole one is there."""
        with suppress(Exception):  # no file, or a damaged zip, which may fail in any way: the latents are made (again)
            cls(path)
            return
        latents: list[Tensor] = []
        images: list[tuple[str, int]] = []
        for batch in chain(data.stored("train"), data.stored("val")):
            latents.append(encode(batch.image).cpu())
            images += images_of(batch)
        keys, slices = zip(*images, strict=True)
        content = io.BytesIO()
        np.savez(content, latents=torch.cat(latents).numpy(), keys=np.array(keys), slices=np.array(slices))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())


@torch.no_grad()
def encoded(encode: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """Latents of n c *s images, few at a time; in float32 whatever the run's precision, so they are equal everywhere.

    Args:
        encode: some images to their latents, b *z codes or b d *z.
        images: n c *s in [-1, 1].
        device: that of the encoder.
    """
    with torch.autocast(device.type, enabled=False):
        return torch.cat([encode(sent(part, device)) for part in images.float().split(ENCODED_AT_ONCE)])


def images_of(batch: Batch) -> list[tuple[str, int]]:
    """Store key and slice index of every image of a batch; slice -1 where images are no slices."""
    index = batch.condition.slice_index
    slices = [-1] * len(batch.key) if index is None else index[:, 0].tolist()
    return list(zip(batch.key, slices, strict=True))
