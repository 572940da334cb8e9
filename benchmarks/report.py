"""The report of `evaluate`: how long it takes, and against another checkout, how much faster and how equal it is.

Samples, test people and training people are smooth random brains of one anatomy, in files that are read in blocks, so
that the peak of memory is that of the report. Features are learned once before the clock starts, since `evaluate` keeps
them beside the data. Each checkout is a process of its own.

    python -m benchmarks.report [--num 100] [--train 100] [--size 64 64 64] [--against ../before]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Images

HERE = Path(__file__).parents[1]
INTERVAL, LIMITS = "ci95", (-1.0, 0.0, 1.0)


@dataclass
class People:
    """Real images of two splits, as `evaluate` asks for them."""

    train: Images
    test: Images
    cache: Path
    anatomy: str = "brain"
    digest: str = ""

    def images(self, split: Literal["train", "test"], one_per_person: bool = False, limit: int | None = None) -> Images:
        """n 1 *s in [-1, 1]."""
        images = {"train": self.train, "test": self.test}[split]
        return Images(images.keys[:limit], images.people[:limit], images.read)


def brains(num: int, size: Sequence[int], seed: int, folder: Path, blur: int = 5) -> Images:
    """num 1 *size in [-1, 1]: bright ellipsoids of their own size, with smooth texture of their own."""
    random = torch.Generator().manual_seed(seed)
    radius = torch.tensor(size) * (0.35 + 0.03 * torch.randn(num, len(size), generator=random))
    axes = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2 for side in size], indexing="ij")
    pool = functional.avg_pool3d if len(size) == 3 else functional.avg_pool2d
    files = [folder / f"{seed}-{i}.npy" for i in range(num)]
    for file, extent in zip(files, radius, strict=True):
        squares = sum((axis / length) ** 2 for axis, length in zip(axes, extent, strict=True))
        texture = pool(torch.randn(1, *size, generator=random), blur, stride=1, padding=blur // 2) * blur
        image = torch.sigmoid(8 * (1 - squares)) * (1.3 + 0.3 * texture) - 1
        np.save(file, image.clamp(-1, 1).numpy())

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([torch.from_numpy(np.load(files[index])) for index in indices])

    names = [file.stem for file in files]
    return Images(names, names, read)


def one(num: int, train: int, size: list[int], cache: Path) -> dict[str, Any]:
    """Times one report of the `lit_medgen` that this process imports; the first of a cache trains the features."""
    from lit_medgen.evaluation.report import evaluate
    from lit_medgen.metrics.extractors import extractors

    people: Any = People(brains(train, size, 1, cache), brains(num, size, 2, cache), cache)
    samples = brains(num, size, 3, cache, blur=7)
    extractors("learned", people.train, num, cache / "features")
    wall, processor = time.perf_counter(), time.process_time()
    report = evaluate(samples, people, Path(tempfile.mkdtemp(dir=cache)))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"wall_s": wall, "processor_s": processor, "peak_gib": peak, "report": report}


def in_checkout(checkout: Path, options: list[str]) -> dict[str, Any]:
    """The same in a process that imports `lit_medgen` from a checkout."""
    script = "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", f"import sys; sys.argv = sys.argv[1:]; {script}", __file__, str(checkout), *options]
    found = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": ""})
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    print(
        f"{checkout}: {result['wall_s']:.1f} s, of processors {result['processor_s']:.1f} s; "
        f"peak {result['peak_gib']:.1f} GiB",
        flush=True,
    )
    return result


def numbers(report: Any, name: str = "") -> dict[str, float]:
    """Name -> number, of all scores, intervals, floors, nulls and rankings."""
    if isinstance(report, dict):
        return {key: value for part in report for key, value in numbers(report[part], f"{name}.{part}").items()}
    if isinstance(report, list):
        return {key: value for i, part in enumerate(report) for key, value in numbers(part, f"{name}.{i}").items()}
    return {name: report} if isinstance(report, int | float) else {}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Prints the ratio of times and the largest difference of numbers that both reports have."""
    for clock in ("wall_s", "processor_s"):
        print(f"{clock}: {theirs[clock]:.1f} / {ours[clock]:.1f} = {theirs[clock] / ours[clock]:.1f} times faster")
    both = [numbers(found["report"]) for found in (ours, theirs)]
    names = both[0].keys() & both[1].keys()
    clipped = {name for name in names if INTERVAL in name and both[0][name] in LIMITS}
    off = {name: abs(both[0][name] - both[1][name]) / max(1.0, abs(both[1][name])) for name in names - clipped}
    worst = max(off, key=lambda name: off[name])
    print(
        f"{len(off)} numbers differ by {off[worst]:.1e} at most ({worst.lstrip('.')}); "
        f"{len(clipped)} ends of intervals lie at the limit of a score"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100, help="samples, and test people")
    parser.add_argument("--train", type=int, default=100, help="training people")
    parser.add_argument("--size", type=int, nargs="+", default=[64, 64, 64], help="of images: 2 or 3 sides")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cache:
        print(json.dumps(one(options.num, options.train, options.size, options.cache)))
        return
    with tempfile.TemporaryDirectory() as name:
        words = [f"--num={options.num}", f"--train={options.train}", f"--cache={name}"]
        words += ["--size", *map(str, options.size)]
        theirs = in_checkout(options.against, words) if options.against else None
        ours = in_checkout(HERE, words)
    if theirs:
        compare(ours, theirs)


if __name__ == "__main__":
    main()
