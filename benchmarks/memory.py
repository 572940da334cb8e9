"""Peak memory of a training step of cDPM's paper network, fp32: 1 volume x 20 slices of 128 x 128, and its batch of 3.

Each case is a process of its own, whose largest resident size is taken after two steps, less that before the network
was made. When a step holds most, at the start of the backward pass, weights and the two averages of AdamW (12 bytes a
parameter) are there beside what grows with the batch: three times the latter and once the former is the estimate for
the paper's batch.

    python -m benchmarks.memory
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from benchmarks.training_step import random_batch, training_step
from lit_medgen.methods import CDPM
from lit_medgen.networks import SliceUNet

GIB = 2**30
PAPERS_BATCH = 3


def main() -> None:
    if len(sys.argv) > 1:
        return one(sys.argv[1] == "checkpointing")
    for kind in ("plain", "checkpointing"):
        words = [sys.executable, "-m", "benchmarks.memory", kind]
        print(f"fp32, {kind}: {subprocess.check_output(words, text=True).strip()}", flush=True)


def one(checkpointing: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    network = SliceUNet(
        (128, 128, 256, 512),
        (False, False, True, True),
        (False, False, True, True),
        num_res_blocks=2,
        head_channels=64,
        gradient_checkpointing=checkpointing,
    )
    kept = 12 * sum(parameter.numel() for parameter in network.parameters())
    step = training_step(CDPM(network), random_batch(1, 20, 128), half=False)
    step()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    estimate = kept + PAPERS_BATCH * (grown - kept)
    print(
        f"{grown / GIB:.1f} GiB, {kept / GIB:.1f} of them weights and averages; {seconds:.0f} s a step; "
        f"the paper's batch of {PAPERS_BATCH}, estimated: {estimate / GIB:.0f} GiB"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
