"""The report of `evaluate`: how long it takes, and against another checkout, how much faster and how equal it is.

Samples, test people and training people are smooth random brains of one anatomy, in memory. Features are learned once
before the clock starts, since `evaluate` keeps them beside the data. Each checkout is a process of its own.

    python -m benchmarks.report [--num 100] [--train 100] [--side 64] [--against ../before]
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).parents[1]
INTERVAL, LIMITS = "ci95", (-1.0, 0.0, 1.0)


@dataclass
class People:
    """Real images of two splits, as `evaluate` asks for them."""

    train: Tensor
    test: Tensor
    anatomy: str = "brain"
    images_per_person: int = 1

    def images(self, split: Literal["train", "test"], one_per_person: bool = False, limit: int | None = None) -> Any:
        """As a data module gives them, n 1 *s in [-1, 1]."""
        from lit_medgen.batch import Images

        images = {"train": self.train, "test": self.test}[split][:limit]
        names = [f"{split} {number}" for number in range(len(images))]
        return Images(names, names, lambda indices: images[list(indices)])


def brains(num: int, side: int, seed: int, blur: int = 5) -> Tensor:
    """num 1 side side side in [-1, 1]: bright ellipsoids of their own size, with smooth texture of their own."""
    random = torch.Generator().manual_seed(seed)
    radius = side * (0.35 + 0.03 * torch.randn(num, 3, 1, 1, 1, generator=random))
    index = torch.stack(torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * 3, indexing="ij"))
    made = torch.empty(num, 1, side, side, side)
    for image, extent in zip(made, radius, strict=True):
        inside = torch.sigmoid(8 * (1 - (index / extent).square().sum(0, keepdim=True)))
        noise = torch.randn(1, side, side, side, generator=random)
        texture = functional.avg_pool3d(noise, blur, stride=1, padding=blur // 2) * blur
        image.copy_((inside * (1.3 + 0.3 * texture) - 1).clamp(-1, 1))
    return made


def one(num: int, train: int, side: int, cache: Path) -> dict[str, Any]:
    """Times one report of the `lit_medgen` that this process imports; the first of a cache trains the features."""
    from lit_medgen.evaluation.evaluate import evaluate
    from lit_medgen.metrics.extractors import extractors

    people = People(brains(train, side, 1), brains(num, side, 2))
    samples = brains(num, side, 3, blur=7)
    extractors("learned", people.train, num, cache)
    wall, processor = time.perf_counter(), time.process_time()
    report = evaluate(samples, people, Path(tempfile.mkdtemp(dir=cache)), cache=cache)
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
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cache:
        print(json.dumps(one(options.num, options.train, options.side, options.cache)))
        return
    with tempfile.TemporaryDirectory() as name:
        words = [f"--num={options.num}", f"--train={options.train}", f"--side={options.side}", f"--cache={name}"]
        theirs = in_checkout(options.against, words) if options.against else None
        ours = in_checkout(HERE, words)
    if theirs:
        compare(ours, theirs)


if __name__ == "__main__":
    main()
