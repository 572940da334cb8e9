"""Preparing phantom LIDC scans: slices per second and core, the gain of a second core, memory of a worker.

Writes 20 scans of about 133 slices (a minute or more), then prepares them with one process and with two, label maps
included. The last row is what reading alone costs: every file's pixels with pydicom, and nothing done with them.

    python -m benchmarks.lidc
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import pydicom
from joblib.externals.loky import get_reusable_executor
from rich.console import Console
from rich.table import Table

from data_modules import LIDCDataModule
from data_modules.phantoms.lidc_tree import write_lidc
from data_modules.store import Store

NUM_SCANS = 20


def main() -> None:
    table = Table("processes", "seconds", "slices kept", "slices / s / core", "times one process")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "raw"
        write_lidc(str(root), NUM_SCANS)
        slowest = None
        for num_jobs in (1, 2):
            seconds, num_slices = prepare(root, Path(name) / f"store{num_jobs}", num_jobs)
            slowest = slowest or seconds
            rate = num_slices / seconds / num_jobs
            table.add_row(str(num_jobs), f"{seconds:.1f}", str(num_slices), f"{rate:.1f}", f"{slowest / seconds:.2f}")
        table.add_row("pydicom alone", f"{read_all(root):.1f}", "", "", "")
    Console(width=100).print(table)
    one, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"greatest memory: {one:.0f} MiB with one process, {workers:.0f} MiB a worker with two")


def prepare(root: Path, store: Path, num_jobs: int) -> tuple[float, int]:
    """Seconds, workers' start included, and slices kept."""
    data = LIDCDataModule(str(root), store_dir=str(store), num_jobs=num_jobs)
    start = time.perf_counter()
    data.prepare_data()
    seconds = time.perf_counter() - start
    get_reusable_executor().shutdown(wait=True)  # so that its memory is known
    return seconds, len(Store(data.address).records)


def read_all(root: Path) -> float:
    """Seconds to read every slice's pixels."""
    start = time.perf_counter()
    for path in root.rglob("*.dcm"):
        pydicom.dcmread(path).pixel_array.sum()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
