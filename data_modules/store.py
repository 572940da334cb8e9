"""The prepared store: images on one grid, written once, of which any slices are read and nothing else.

    <store>/volumes/<key>.npy             the image in its native type, the slice axis first (float16 in [-1, 1] for
                                          volumes, int16 HU for CT slices, several in a file)
    <store>/volumes/<key>.<name>.npy      each other channel of the image, such as flair or green, in the same form
    <store>/volumes/<key>.label_map.npy   classes, uint8, where there are some; so <key>.<name>.npy of other sources
    <store>/volumes/<key>.json            SHA-256, affine and cut of that volume, and how it was moved
    <store>/manifest.csv                  what was accepted: key, person (hashed), session, SHA-256, attributes; of
                                          raw heads, the tools that treated them and their versions
    <store>/facts.npz                     affines and all other numbers of all images
    <store>/rejected.csv                  what was not accepted, and why
    <store>/keys.json                     the keys of raw files by path, size and time, so that they are not read again
    <store>/preprocessing.json            how it was made
    <store>/left_out.json                 the list (its hash) of people of whom nothing is left; see `withdrawals`
    <store>/figures/<key>.png             raw and prepared image, if asked for

A store belongs to one root and one way of listing its images: preparing another changes nothing in it. A key is the
hash of the raw bytes and of everything done to them (but for the versions of tools), so work already done is found
again after an interruption, and changed settings make a new store beside the old one. Stores that differ in the root
alone share their volumes' files by hard links, so a root that has moved is prepared quickly. Every file is written
under a temporary name, synced and renamed: a file at its final name is whole.
"""

from __future__ import annotations

import glob
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import DTypeLike

from data_modules.records import Record, read_records, sha256
from data_modules.sources import ANY_NAME, IMAGE, Scan
from data_modules.volume_files import array_path
from lit_medgen.axes import AXES
from lit_medgen.errors import InputError, describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 3  # raised when the files of volumes change, so that old ones are not read as new ones


@dataclass(frozen=True)
class Array:
    """How one array of every image is stored."""

    size: tuple[int, ...]  # voxels of an image along x, y, z, or along x, y
    dtype: str  # "float16", "int16" or "uint8"
    order: tuple[int, ...]  # the image's axes in the order in which they are stored, 0 for x
    window: tuple[float, float] | None = None
    """The stored values that become -1 and 1; None: what is stored needs no scaling (values in [-1, 1], classes)."""
    is_channel: bool = False
    """Whether it is a channel of the image: the image's own array, and those of its other channels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image as stored."""
        return tuple(self.size[axis] for axis in self.order)

    def read(self, path: Path, index: int | None, num_images: int, slices: np.ndarray | None = None) -> np.ndarray:
        """An image x y z or x y, or n of its slices, n a b with (a, b) the axes left, in x y z order.

        float32 in [-1, 1]; of classes as stored. Arguments: see `Record`.
        """
        if index is not None:
            stored = read_array(path, (num_images, *self.shape), self.dtype, [index])[0]
        else:
            stored = read_array(path, self.shape, self.dtype, slices)
        values = self._scaled(stored)
        return values.transpose(np.argsort(self.order)) if slices is None else values

    def filled(self, value: float, slices: np.ndarray | None = None) -> np.ndarray:
        """An image, or n of its slices, of one value: what stands for one that is absent."""
        return np.full(self.size if slices is None else (len(slices), *self.shape[1:]), value, dtype=np.float32)

    def _scaled(self, stored: np.ndarray) -> np.ndarray:
        if self.window is not None:
            low, high = self.window
            scaled: np.ndarray = (stored.astype(np.float32).clip(low, high) - low) * (2 / (high - low)) - 1
            return scaled
        if self.dtype != "float16":
            return stored
        import torch  # workers of `prepare` need not wait for it

        return torch.from_numpy(stored).float().numpy()  # torch widens faster than numpy


def stored_first(axis: int, dim: int) -> tuple[int, ...]:
    """The order of axes with one of them first."""
    return (axis, *(other for other in range(dim) if other != axis))


class Recipe(Protocol):
    """What makes a store's files of scans; a frozen dataclass, whose fields are part of the store's address."""

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels of an image."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what scans should have beside their images; if no scan has it, preparing is refused."""

    def arrays(self, stacked: int) -> dict[str, Array]:
        """Name -> how it is stored, the image first; those beside it may be missing for some."""

    def write(self, scan: Scan, path: Path, stacked: int) -> dict[str, Any]:
        """Writes the image's .npy file, slices along axis `stacked` first, and what lies beside it.

        Returns:
            facts: sha256 and bytes of the file; affine (4 4), cut (of a grid), tools (if any treated it) and what else
            is kept; facts: name -> other numbers of the image; beside: name -> sha256 and bytes of files beside it. Of
            a file with several images, images: for each affine, attributes and facts.

        Raises:
            ValueError: the scan cannot be used.
        """

    def plot(self, scan: Scan, path: Path, stacked: int, facts: dict[str, Any]) -> Figure:
        """A figure of the scan as it came and as it is in the file."""


@dataclass(frozen=True)
class StoreAddress:
    """Where a store lies and what makes it."""

    parent: Path  # folder of all stores
    name: str  # of the kind of data set
    preprocessing: Recipe  # what is done to each image
    axis: str  # along which slices are stacked
    listing: str = ""  # what decides which images are listed, the root above all; only its hash is kept

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that is done to the raw bytes, as plain data; what is left out does nothing."""
        every = asdict(cast(Any, self.preprocessing)).items()
        steps = {name: value for name, value in every if value is not None and value != ()}
        return {"format": FORMAT, "axis": self.axis, **steps}

    @property
    def stacked(self) -> int:
        """The axis along which slices are stacked; 0 for 2D images, whose axes are left as they are."""
        if len(self.preprocessing.size) == 2:
            return 0
        return AXES[self.axis]

    @property
    def folder(self) -> Path:
        """The store's folder: the data set's name, the hash of the recipe, and that of the listing."""
        listing = f"-{sha256(self.listing.encode(errors=ANY_NAME))[:12]}" if self.listing else ""
        return self.parent / f"{self._shared}{listing}"

    @property
    def others(self) -> list[Path]:
        """The folders of volumes of other stores with this recipe, which may hold the same volumes."""
        found = self.parent.glob(f"{glob.escape(self._shared)}*/volumes")
        return sorted(volumes for volumes in found if volumes.parent != self.folder)

    @property
    def _shared(self) -> str:
        return f"{self.name}-{sha256(json.dumps(self.recipe, sort_keys=True).encode())[:12]}"


class Store:
    """A prepared store, opened for reading.

    Attributes:
        folder: where it lies.
        axis: along which slices are stacked, "" for 2D images.
        arrays: name -> how it is stored.
        digest: hash of the manifest.
        records: its images.
    """

    def __init__(self, address: StoreAddress) -> None:
        self.folder = address.folder
        self.axis = address.axis if len(address.preprocessing.size) == 3 else ""
        self.arrays = address.preprocessing.arrays(address.stacked)
        self.digest, self.records = read_records(self.folder)

    @property
    def channels(self) -> list[str]:
        """Names of the arrays of an image's channels, its own first."""
        return [IMAGE, *(name for name, array in self.arrays.items() if array.is_channel and name != IMAGE)]

    def read(self, record: Record, slices: np.ndarray | None = None, name: str = IMAGE) -> np.ndarray:
        """An image, or what lies beside it: x y z or x y, or n of its slices, n a b with (a, b) in x y z order.

        float32 in [-1, 1], label maps uint8; InputError if the file is not whole.
        """
        return self.arrays[name].read(self.path(record, name), record.index, record.num_images, slices)

    def path(self, record: Record, name: str = IMAGE) -> Path:
        """The file of an image, or of what lies beside it."""
        path = self.folder / "volumes" / f"{record.file}.npy"
        return path if name == IMAGE else array_path(path, name)


def read_array(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, parts: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """The array in a .npy file, or some of its parts along the first axis; InputError if the file is not whole."""
    # Not through a memory map: its page faults and header take longer than to read 20 slices of 128 x 128, and a
    # file that was cut off would end the process instead of being an error.
    header = _header(shape, np.dtype(dtype))
    stored = np.empty(shape if parts is None else (len(parts), *shape[1:]), dtype)
    stride = stored.itemsize * math.prod(shape[1:])
    try:
        # Slices without a buffer, which is a copy more; a volume with one: a bare read ends at 2 GiB.
        with path.open("rb") if parts is None else path.open("rb", buffering=0) as file:
            if file.read(len(header)) != header:
                raise ValueError(f"its header is not that of {np.dtype(dtype)} {shape}")
            for part, index in [(stored, 0)] if parts is None else zip(stored, parts, strict=True):
                file.seek(len(header) + int(index) * stride)
                if file.readinto(part.data) != part.nbytes:
                    raise ValueError("it ends early")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({describe(error)}); run `prepare --verify`.") from error
    return stored


@lru_cache
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What stands before the numbers in a .npy file."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()
