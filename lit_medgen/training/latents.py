"""The latent store: what a first stage keeps of all images of a data set, made once, beside the prepared data.

    <prepared store>/latents/latents-<hash>.npy         what `FirstStage.kept` gives of each image, one row each
    <prepared store>/latents/latents-<hash>.index.npz   keys, counts, slices: whose row each is; the above's sha256
    <prepared store>/latents/.latents-<hash>.npy.*.part while it is made

The hash is that of all that the latents depend on: the first stage's weights, the prepared data, who is left out of it,
the view, and whose images they are. So a store is never changed; one of an earlier address stays until it is deleted.
Rows are memory-mapped and read by the loader's workers, whose batches then hold no images. Shapes: b batch, c channels,
*s spatial axes of images, d latent channels, *z spatial axes of latents.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Batch, Split, TrainingData, sent
from lit_medgen.files import file_hash, growing, write_atomically
from lit_medgen.output import say
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import weights_hash

IMAGES_AT_ONCE = 16
VOXELS_AT_ONCE = 2**20
"""Of the images that are encoded together: a batch of slices, or one volume."""
BYTES_AT_ONCE = 2**26
"""Of latents that are read together to be measured."""
TURN_S = 60.0
"""Processes that wait for latents are told so often that these are being made; none waits longer than `PATIENCE`."""


class LatentStore:
    """What a first stage keeps of training and validation images, by store key and slice.

    Args:
        path: the file of the rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _index_of(path).open("rb") as file, np.load(file) as index:
            keys, counts = index["keys"].tolist(), index["counts"]
            self.slices, self._sha256 = index["slices"], str(index["sha256"])
        self.array = np.load(path, mmap_mode="r")
        if len(self.array) != len(self.slices):
            raise ValueError(f"{path}: {len(self.array)} rows of {len(self.slices)} images")
        ends = np.cumsum(counts)
        self._records = dict(zip(keys, zip((ends - counts).tolist(), ends.tolist(), strict=True), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file itself."""
        return type(self), (self.path,)

    def __len__(self) -> int:
        return len(self.array)

    def __call__(self, batch: Batch) -> Tensor:
        """The rows of a batch's images: codes b *z, means and log-variances b 2d *z, or latents b d *z."""
        return self.read([self._row(*image) for image in images_of(batch)])

    def _row(self, key: str, index: int) -> int:
        first, end = self._records[key]
        return first + int(np.flatnonzero(self.slices[first:end] == index)[0])

    def read(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Some rows, in memory."""
        return torch.from_numpy(np.array(self.array[rows]))

    def rows(self, keys: Iterable[str]) -> np.ndarray:
        """The rows of all images of some records, in the order of the keys."""
        return np.concatenate([np.arange(*self._records[key]) for key in keys])

    def pieces(self, keys: Iterable[str]) -> Iterator[Tensor]:
        """The same rows, a few megabytes at a time."""
        rows, size = self.rows(keys), max(1, BYTES_AT_ONCE // max(1, self.array[:1].nbytes))
        for first in range(0, len(rows), size):
            yield self.read(rows[first : first + size])

    @property
    def whole(self) -> bool:
        """Whether the rows are those that were written; reads all of them."""
        return file_hash(self.path) == self._sha256

    # Making one.

    @classmethod
    def of_data(cls, first_stage: FirstStage, data: TrainingData, trainer: L.Trainer) -> LatentStore:
        """The store of the trainer's data; the first process of each machine makes it where it is not there yet.

        All processes call this.
        """
        path = cls.address(first_stage, data)
        work = cls.making(first_stage, data, path) if trainer.local_rank == 0 else iter(())
        while not trainer.strategy.reduce_boolean_decision(_ended(work, TURN_S)):
            pass
        store = cls(path)
        say(f"latents of {len(store)} images: {path}")
        return store

    @staticmethod
    def address(first_stage: FirstStage, data: TrainingData) -> Path:
        """The file of the latents that a first stage makes of a data set."""
        keys = sorted([*data.people("train"), *data.people("val")])
        made_from = f"{type(first_stage).__qualname__} {weights_hash(first_stage)} {data.digest} {keys}"
        return data.cache / "latents" / f"latents-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.npy"

    @classmethod
    def make(cls, first_stage: FirstStage, data: TrainingData, path: Path) -> None:
        """Writes the files unless whole ones are there."""
        for _ in cls.making(first_stage, data, path):
            pass

    @classmethod
    def making(cls, first_stage: FirstStage, data: TrainingData, path: Path) -> Iterator[int]:
        """Writes the files unless whole ones are there; gives the number of images encoded, now and then.

        What a killed process has encoded is not encoded again.
        """
        with suppress(Exception):  # no file, or a damaged one, which may fail in any way: latents are made (again)
            if cls(path).whole:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [*data.seen("train"), *data.seen("val")]
        image = next(data.stored("train")).image[:1]
        row, size = encoded(first_stage, image).cpu().numpy(), at_once(image[0, 0].numel())
        header = _header(row, len(images))
        with growing(path, len(header) + len(images) * row.nbytes) as file:
            done = _rows_done(file, header, row.nbytes, size)
            say(
                f"latents: encoding {len(images) - done} of {len(images)} images once, "
                f"{len(images) * row.nbytes / 2**20:,.1f} MiB; a run that is stopped goes on from there"
            )
            for part in _in_pieces(_images_from(data, done), size):
                file.write(encoded(first_stage, part).cpu().numpy().tobytes())
                done += len(part)
                yield done
            file.flush()
            _write_index(path, images, file_hash(Path(file.name)))


@torch.no_grad()
def encoded(first_stage: FirstStage, images: Tensor) -> Tensor:
    """What a latent store keeps of images b c *s in [-1, 1], on the first stage's device; see `FirstStage.kept`.

    Bit-equal whatever other images are encoded with them: always in float32 and as many at once, the last repeated,
    since libraries choose another algorithm for another batch size.
    """
    size, device = at_once(math.prod(images.shape[2:])), first_stage.device
    found = []
    with torch.autocast(device.type, enabled=False):
        for part in images.float().split(size):
            filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
            found.append(first_stage.kept(sent(filled, device))[: len(part)])
    kept = torch.cat(found)
    return kept.float() if kept.is_floating_point() else kept


def kept_of(first_stage: FirstStage, batch: Batch) -> Tensor:
    """What a latent store keeps of a batch's images: what the batch holds of it, or else what is encoded now."""
    return encoded(first_stage, batch.image) if batch.latent is None else batch.latent


def without_images(batch: Batch, first_stage: FirstStage) -> Batch:
    """The batch as the data gives it once it reads latents: with what is kept of its images, and none of these."""
    return replace(batch, image=batch.image.new_empty(len(batch.image), 0), latent=kept_of(first_stage, batch))


def at_once(voxels: int) -> int:
    """How many images of so many voxels are encoded at once."""
    return max(1, min(IMAGES_AT_ONCE, VOXELS_AT_ONCE // voxels))


def images_of(batch: Batch) -> list[tuple[str, int]]:
    """Store key and slice index of every image of a batch; slice -1 where images are no slices."""
    index = batch.condition.slice_index
    slices = [-1] * len(batch.key) if index is None else index[:, 0].tolist()
    return list(zip(batch.key, slices, strict=True))


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index.npz")


def _write_index(path: Path, images: Sequence[tuple[str, int]], sha256: str) -> None:
    counts: dict[str, int] = {}
    for key, _ in images:
        counts[key] = counts.get(key, 0) + 1
    content = io.BytesIO()
    np.savez(
        content,
        keys=np.array(list(counts)),
        counts=np.array(list(counts.values())),
        slices=np.array([index for _, index in images], dtype=np.int32),
        sha256=np.array(sha256),
    )
    write_atomically(_index_of(path), content.getvalue())


def _ended(work: Iterator[int], seconds: float) -> bool:
    """Works for so long; whether the work is done."""
    end = time.monotonic() + seconds
    return all(time.monotonic() < end for _ in work)


def _header(row: np.ndarray, num: int) -> bytes:
    """What stands before the rows in a .npy file."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(row.dtype), "fortran_order": False, "shape": (num, *row.shape[1:])}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def _rows_done(file: Any, header: bytes, num_bytes: int, size: int) -> int:
    """How many rows a file holds that a killed process has begun, in whole pieces; what comes after is cut off."""
    file.seek(0)
    if file.read(len(header)) != header:
        file.truncate(0)
        file.write(header)
        return 0
    done = (file.seek(0, io.SEEK_END) - len(header)) // num_bytes // size * size
    file.truncate(len(header) + done * num_bytes)
    return int(done)


def _images_from(data: TrainingData, first: int) -> Iterator[Tensor]:
    """Training and validation images from the one of that number on, those of a record at a time: n c *s."""
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        keys = [key for key, _ in data.seen(split)]
        if first >= len(keys):
            first -= len(keys)
            continue
        skipped = first - keys.index(keys[first])
        for batch in data.stored(split, len(dict.fromkeys(keys[: first + 1])) - 1):
            yield batch.image[skipped:]
            skipped = 0
        first = 0


def _in_pieces(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same images, n at a time; the last ones may be fewer."""
    rest = torch.empty(0)
    for part in parts:
        rest = torch.cat([rest, part]) if len(rest) else part
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if len(rest):
        yield rest
