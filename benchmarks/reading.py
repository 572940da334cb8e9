"""Reading 20 random slices of a 128 x 128 x 128 volume: our store against MONAI's PersistentDataset and nibabel.

All readers give the same slices, float32 in [-1, 1]; this is checked. The peers read the whole volume, then take the
slices: MONAI from its cache of tensors, nibabel from the .nii.gz. A store is made for one slice axis and reads only
what is asked for; one row asks an axial store for coronal slices, which it can only cut from the whole volume. Files
are in the page cache, so those rows show the work of reading; the last row reads from the disk, as a training set
larger than the memory does. Readers take turns; figures are medians.

Last it opens a store of as many images as ChestX-ray14 has, each with 20 numbers known of it.

    python -m benchmarks.reading
"""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data.dataset import PersistentDataset
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.io.array import LoadImage
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from data_modules import Preprocessing, Scan
from data_modules.preparing import prepare
from data_modules.records import Record, read_records, write_records
from data_modules.store import Store, StoreAddress
from lit_medgen.axes import AXES

SIDE, NUM_VOLUMES, NUM_SLICES, NUM_TURNS = 128, 6, 20, 60
NUM_RADIOGRAPHS = 112_120
TOP = 1000.0  # the raw value that becomes 1; 0 becomes -1

Reader = Callable[[int, np.ndarray], np.ndarray]
"""Number of the volume and n slice indices -> n a b."""


def main() -> None:
    table = Table("slices", "ours, ms", "MONAI, ms", "nibabel, ms", "MONAI / ours", "nibabel / ours")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_volumes(folder)
        cache = fill_cache(folder / "monai", paths)
        for axis in ("axial", "coronal", "sagittal"):
            ours = own_axis(open_store(folder, paths, axis))
            table.add_row(axis, *row([ours, cached(cache, axis), raw(paths, axis)]))
        ours = other_axis(open_store(folder, paths, "axial"), "coronal")
        table.add_row("coronal, axial store", *row([ours, cached(cache, "coronal"), raw(paths, "coronal")]))
        if hasattr(os, "posix_fadvise"):
            ours = own_axis(open_store(folder, paths, "axial"))
            table.add_row("axial, disk", *row([ours, cached(cache, "axial"), raw(paths, "axial")], uncache=folder))
    print(f"{NUM_SLICES} random slices of {SIDE}^3, medians of {NUM_TURNS} turns; above 1 ours is faster")
    Console(width=100).print(table)
    seconds, mib = opening(NUM_RADIOGRAPHS)
    print(f"a store of {NUM_RADIOGRAPHS:,} images opens in {seconds:.2f} s and takes {mib:.0f} MiB")


def opening(num: int) -> tuple[float, float]:
    """Seconds to open a store of so many images, and the memory that it takes at most, MiB."""
    with tempfile.TemporaryDirectory() as name:
        random = np.random.default_rng(0)
        attributes = random.normal(size=(num, 20)).tolist()
        names = [f"finding_{k}" for k in range(20)]
        known = [dict(zip(names, values, strict=True)) for values in attributes]
        records = [
            Record(f"{k:016x}", f"{k // 4:016x}", "", "0" * 64, np.nan, np.eye(4), each) for k, each in enumerate(known)
        ]
        write_records(Path(name), records)
        start = time.perf_counter()
        assert len(read_records(Path(name))[1]) == num
        seconds = time.perf_counter() - start
        tracemalloc.start()  # which slows it down
        read_records(Path(name))
        return seconds, tracemalloc.get_traced_memory()[1] / 1024**2


def row(readers: list[Reader], uncache: Path | None = None) -> list[str]:
    """Times of ours and the peers, then the peers' times over ours; `uncache` is a folder to read from the disk."""
    random = np.random.default_rng(1)
    seconds = np.empty((NUM_TURNS + 1, len(readers)))
    for turn in range(NUM_TURNS + 1):
        number, slices = int(random.integers(NUM_VOLUMES)), random.permutation(SIDE)[:NUM_SLICES]
        read = []
        for place, reader in enumerate(readers):
            if uncache is not None:
                drop_pages(uncache)
            start = time.perf_counter()
            read.append(reader(number, slices))
            seconds[turn, place] = time.perf_counter() - start
        for other in read[1:]:
            np.testing.assert_allclose(read[0], other, atol=2e-3)  # the store keeps 16 bits
    ms = 1e3 * np.median(seconds[1:], axis=0)  # the first turn warms up
    return [f"{time:.2f}" for time in ms] + [f"{time / ms[0]:.1f}" for time in ms[1:]]


def drop_pages(folder: Path) -> None:
    """Puts the files below a folder out of the page cache."""
    for path in folder.rglob("*.*"):
        with path.open("rb") as file:
            os.fsync(file)  # only clean pages can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_axis(store: Store) -> Reader:
    """What training a cDPM reads."""
    return lambda number, slices: store.read(store.records[number], slices)


def other_axis(store: Store, axis: str) -> Reader:
    """Slices along another axis than the store's."""
    return lambda number, slices: cut(store.read(store.records[number]), slices, axis)


def cached(dataset: PersistentDataset, axis: str) -> Reader:
    """Slices of a tensor in MONAI's cache."""
    return lambda number, slices: cut(dataset[number].numpy(), slices, axis)


def raw(paths: list[Path], axis: str) -> Reader:
    """Slices of a .nii.gz file; only they are scaled."""

    def read(number: int, slices: np.ndarray) -> np.ndarray:
        chosen = cut(np.asanyarray(nib.load(paths[number]).dataobj), slices, axis)
        return chosen.astype(np.float32) * np.float32(2 / TOP) - 1

    return read


def cut(volume: np.ndarray, slices: np.ndarray, axis: str) -> np.ndarray:
    """Slices of a volume x y z: n a b, contiguous."""
    return np.moveaxis(volume, AXES[axis], 0)[slices].copy(order="C")


def write_volumes(folder: Path) -> list[Path]:
    """Smooth random heads as 16-bit .nii.gz at 1 mm."""
    random = np.random.default_rng(0)
    x, y, z = np.mgrid[[slice(-1, 1, SIDE * 1j)] * 3]
    head = x**2 / 0.6 + y**2 / 0.8 + z**2 / 0.6 < 1
    paths = [folder / f"{number}.nii.gz" for number in range(NUM_VOLUMES)]
    for path in paths:
        texture = gaussian_filter(random.standard_normal(head.shape), 2)
        voxels = 0.5 * TOP + 0.15 * TOP * texture / texture.std() + random.normal(0, 0.01 * TOP, head.shape)
        nib.save(nib.Nifti1Image((voxels.clip(0, TOP) * head).astype(np.int16), np.eye(4)), path)
    return paths


def open_store(folder: Path, paths: list[Path], axis: str) -> Store:
    """The volumes on their own grid, stacked along an axis; made once for each axis."""
    as_they_are = Preprocessing((SIDE,) * 3, (float(SIDE),) * 3, "grid", "window", window=(0.0, TOP))
    address = StoreAddress(folder / "stores", "benchmark", as_they_are, axis)
    if not address.folder.exists():
        # Visits of one person are sorted by session, so record k is volume k.
        prepare(address, [Scan(path, "person", f"{number:02}") for number, path in enumerate(paths)], num_jobs=1)
    return Store(address)


def fill_cache(folder: Path, paths: list[Path]) -> PersistentDataset:
    """Whole volumes in MONAI's cache of tensors."""
    transform = Compose([LoadImage(image_only=True), ScaleIntensityRange(0, TOP, -1, 1, clip=True)])
    dataset = PersistentDataset([str(path) for path in paths], transform, cache_dir=folder)
    for number in range(len(paths)):
        dataset[number]
    return dataset


if __name__ == "__main__":
    main()
