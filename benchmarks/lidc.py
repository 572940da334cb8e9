"""Preparing phantom LIDC scans: slices per second and core, the gain of a second core, memory of a worker.

Writes 20 scans of about 133 slices (a minute or more), then prepares them with one process and with two, label maps
included. The last rows are the label maps of the kept slices alone, and what reading costs: every file's pixels with
pydicom, and nothing done with them. Seconds of processor time are comparable on a busy machine, too.

    python -m benchmarks.lidc
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from joblib.externals.loky import get_reusable_executor
from rich.console import Console
from rich.table import Table

from data_modules import LIDCDataModule
from data_modules.lidc.semantic_maps import label_map
from data_modules.phantoms.lidc_tree import write_lidc
from data_modules.store import Store

NUM_SCANS = 20


def main() -> None:
    table = Table("processes", "seconds", "slices kept", "slices / s / core", "slices / CPU s", "times one process")
    with tempfile.TemporaryDirectory() as name:
        root, stores = Path(name) / "raw", Path(name)
        write_lidc(str(root), NUM_SCANS)
        get_reusable_executor().shutdown(wait=True)  # so that its time is not that of the first preparation
        slowest = None
        for num_jobs in (1, 2):
            seconds, cpu, num_slices = prepare(root, stores / f"store{num_jobs}", num_jobs)
            slowest = slowest or seconds
            rates = (f"{num_slices / seconds / num_jobs:.1f}", f"{num_slices / cpu:.1f}")
            table.add_row(str(num_jobs), f"{seconds:.1f}", str(num_slices), *rates, f"{slowest / seconds:.2f}")
        seconds, cpu, num_slices = make_maps(LIDCDataModule(str(root), store_dir=str(stores / "store1")))
        rates = (f"{num_slices / seconds:.1f}", f"{num_slices / cpu:.1f}")
        table.add_row("maps alone", f"{seconds:.1f}", str(num_slices), *rates, "")
        table.add_row("pydicom alone", f"{read_all(root):.1f}", "", "", "", "")
    Console(width=110).print(table)
    one, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"greatest memory: {one:.0f} MiB with one process, {workers:.0f} MiB a worker with two")


def prepare(root: Path, store: Path, num_jobs: int) -> tuple[float, float, int]:
    """Seconds, workers' start included, seconds of processor time of all processes, and slices kept."""
    data = LIDCDataModule(str(root), store_dir=str(store), num_jobs=num_jobs)
    start, cpu = time.perf_counter(), cpu_seconds()
    data.prepare_data()
    seconds = time.perf_counter() - start
    get_reusable_executor().shutdown(wait=True)  # so that its time and memory are known
    return seconds, cpu_seconds() - cpu, len(Store(data.address).records)


def make_maps(data: LIDCDataModule) -> tuple[float, float, int]:
    """Seconds and seconds of processor time to make the maps of all slices of a store again, and their number."""
    start, cpu, num_slices = time.perf_counter(), cpu_seconds(), 0
    store = Store(data.address)
    for path in sorted((store.folder / "volumes").glob("*.json")):
        spacing_mm = json.loads(path.read_text())["spacing_mm"]
        for image in np.load(path.with_suffix(".npy")):
            label_map(image.astype(np.float32), spacing_mm, data.ct.numbers)
            num_slices += 1
    return time.perf_counter() - start, cpu_seconds() - cpu, num_slices


def cpu_seconds() -> float:
    """Processor time that this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def read_all(root: Path) -> float:
    """Seconds to read every slice's pixels."""
    start = time.perf_counter()
    for path in root.rglob("*.dcm"):
        pydicom.dcmread(path).pixel_array.sum()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
