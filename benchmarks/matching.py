"""The most similar of many volumes by MS-SSIM, exactly, at 128 x 128 x 128: ours against MONAI's metric.

Peng et al. 2023 matched 200 of their 500 samples with real brains, since all would have taken days. Here 50 drawn heads
are matched with 50 others; times for 500 x 500 are extrapolated from that, MONAI's from a few pairs, whose values are
compared too. The memory that matching takes is printed.

    python -m benchmarks.matching [--num 50]
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from torch import Tensor

from data_modules import ADNIDataModule, Preprocessing
from data_modules.phantoms import phantom
from data_modules.store import Store
from lit_medgen.metrics import nearest_by_ms_ssim
from lit_medgen.metrics.ms_ssim import BETAS, scales_and_window

SIDE, NUM_PAIRS, WANTED = 128, 3, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=50)
    num = parser.parse_args().num
    with tempfile.TemporaryDirectory() as name:
        x, y = volumes(Path(os.environ.get("LIT_MEDGEN_BENCHMARK", name)), 2 * num).split(num)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
        start = time.perf_counter()
        places, values = nearest_by_ms_ssim(x, y)
        ours = (time.perf_counter() - start) / num**2
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        theirs, difference = monai(x, y, places, values)
    print(f"{num} x {num} volumes of {SIDE}^3, {torch.get_num_threads()} threads: {ours * num**2:.1f} s")
    print(f"a pair: ours {1e3 * ours:.2f} ms, MONAI {1e3 * theirs:.0f} ms, ratio {theirs / ours:.0f}")
    print(
        f"{WANTED} x {WANTED}, extrapolated: ours {ours * WANTED**2 / 60:.1f} min, "
        f"MONAI {theirs * WANTED**2 / 3600:.0f} h"
    )
    grown = (after - before) / 2**20
    print(f"largest difference from MONAI's value: {difference:.1e}; memory while matching: +{grown:.2f} GiB")


def volumes(folder: Path, num: int) -> Tensor:
    """num 1 x y z in [-1, 1]: drawn heads."""
    raw = folder / f"heads-{num}"
    if not raw.exists():
        phantom(["adni", "--out", str(raw), "--num_subjects", str(num), "--seed", "0"])
    data = ADNIDataModule(str(raw), preprocessing=Preprocessing(size=(SIDE,) * 3), store_dir=str(folder))
    records, _ = data.prepare()
    store = Store(data.address)
    one_each = {record.person: record for record in records}.values()
    return torch.stack([torch.from_numpy(np.ascontiguousarray(store.read(record)))[None] for record in one_each])


def monai(x: Tensor, y: Tensor, places: Tensor, values: Tensor) -> tuple[float, float]:
    """Seconds a pair, and the largest difference in value, over a few of the pairs found."""
    scales, window = scales_and_window((SIDE,) * 3)
    weights = np.array(BETAS[:scales]) / sum(BETAS[:scales])
    metric = MultiScaleSSIMMetric(
        3, data_range=1.0, kernel_type="gaussian", kernel_size=window, kernel_sigma=1.5, weights=weights.tolist()
    )
    seconds, differences = [], []
    for i in range(NUM_PAIRS):
        start = time.perf_counter()
        value = metric((x[[i]] + 1) / 2, (y[[int(places[i])]] + 1) / 2)
        seconds.append(time.perf_counter() - start)
        differences.append(abs(float(value) - float(values[i])))
    return float(np.median(seconds)), max(differences)


if __name__ == "__main__":
    main()
