"""The largest resident set of `prepare` and `fit` on 1,000 scans of 128^3 voxels, each in a process of its own.

Scans are drawn fast: a ball in which one line of voxels differs from scan to scan. What is trained is a small network
on crops of 32^3, so that nearly all that is resident is the program and what it reads. A mapped file is resident as far
as it was read, and the system takes such pages back when it needs them, so the peak of what is the process's own is
told as well (Linux alone).

    python -m benchmarks.resident [number of scans]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

MIB, SIDE, NUM_STEPS = 2**20, 128, 100
CONFIG: dict[str, Any] = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": NUM_STEPS,
        "val_check_interval": NUM_STEPS,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 10,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
    },
    "model": {
        "class_path": "lit_medgen.methods.DDPM",
        "init_args": {
            "network": {
                "class_path": "lit_medgen.networks.UNet",
                "init_args": {"dim": 3, "channels": [8, 8], "attention": [False, False], "head_channels": 8},
            }
        },
    },
    "data": {
        "class_path": "data_modules.FolderDataModule",
        "init_args": {
            "pattern": "*.nii",
            "preprocessing": {"size": [SIDE] * 3, "field_of_view_mm": [float(SIDE)] * 3, "intensity": "percentile"},
            "view": {"class_path": "data_modules.Crop", "init_args": {"size": [32, 32, 32]}},
            "batch_size": 4,
            "num_jobs": 1,
        },
    },
}


def main() -> None:
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        write_scans(Path(folder, "scans"), num)
        config = Path(folder, "config.yaml")
        paths = {"root": f"{folder}/scans", "store_dir": f"{folder}/store"}
        data = {**CONFIG["data"], "init_args": {**CONFIG["data"]["init_args"], **paths}}
        trainer = {**CONFIG["trainer"], "default_root_dir": f"{folder}/runs"}
        config.write_text(yaml.safe_dump({**CONFIG, "data": data, "trainer": trainer}))
        for verb in ("prepare", "fit"):
            start = time.perf_counter()
            resident, own = watched([sys.executable, "-m", "lit_medgen", verb, "--config", str(config)])
            print(
                f"{verb}, {num} scans of {SIDE}^3: {resident / MIB:,.0f} MiB resident at most, {own / MIB:,.0f} of the "
                f"process's own; {time.perf_counter() - start:.0f} s",
                flush=True,
            )


def write_scans(folder: Path, num: int) -> None:
    """Uncompressed NIfTI files of 8 bits, all different."""
    folder.mkdir()
    axis = np.arange(SIDE) - SIDE / 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2)
    ball = np.where(radius < 0.4 * SIDE, 200 - radius, 0).astype(np.uint8)
    for number in range(num):
        scan = ball.copy()
        scan[SIDE // 2, SIDE // 2, SIDE // 4 : 3 * SIDE // 4] = 100 + 10 * np.array([*f"{number:064b}"], dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), folder / f"{number:05d}.nii")


def watched(words: list[str]) -> tuple[int, int]:
    """Runs a command; bytes that were resident at most, and those of them that map no file."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        own = [0]
        watcher = threading.Thread(target=_watch, args=(process, own))
        watcher.start()
        process.wait()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, own[0]


def _watch(process: subprocess.Popen[bytes], own: list[int]) -> None:
    """Notes the most memory of a process's own, looked at five times a second."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        own[0] = max([own[0], *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.2)


if __name__ == "__main__":
    main()
