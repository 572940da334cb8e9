"""One step of Discrete VQ-IHDM against 256 of absorbing diffusion, at the paper's sizes: a code map, and an image.

python -m benchmarks.code_sampling [--num_maps N]

Weights are untrained: the time does not depend on them. Both walk the same transformer (512 wide, 24 layers) over
11 x 11 codes of 1,024; an image of 176 x 176 is decoded from each map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from lit_medgen.batch import Condition, DataSpec
from lit_medgen.methods import IHDM, VQGAN, Absorbing
from lit_medgen.methods.code_maps import CodeDiffusion
from lit_medgen.networks import Autoencoder


def built(method: CodeDiffusion, first_stage: VQGAN) -> CodeDiffusion:
    """A second stage on a first one, untrained."""
    method.spec = first_stage.spec
    method.take_parts(first_stage=first_stage)
    return method.eval()


def seconds(call: Callable[[], object]) -> float:
    """Of one call, after nothing else."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Prints the seconds and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_maps", type=int, default=1)
    seeds = range(parser.parse_args().num_maps)
    torch.manual_seed(0)
    first_stage = VQGAN(Autoencoder(channels=(128, 128, 256, 256, 512)), features="none").eval()
    first_stage.spec = DataSpec(1, (176, 176), (1.0, 1.0))
    single, many = built(IHDM(""), first_stage), built(Absorbing(""), first_stage)
    assert isinstance(single, IHDM)
    single.prior = torch.randn(1, 256, 11, 11)
    with torch.no_grad():
        maps = {}
        for name, method in (("1 step", single), ("256 steps", many)):
            for _ in method.walk(Condition(), [0]):  # warm
                break
            maps[name] = seconds(lambda method=method: list(method.walk(Condition(), seeds)))  # type: ignore[misc]
        decoding = seconds(lambda: first_stage.decode_codes(torch.zeros(len(seeds), 11, 11, dtype=torch.int64)))
        images = {name: spent + decoding for name, spent in maps.items()}
    for what, spent in (("code map", maps), ("image, decoding included", images)):
        each = ", ".join(f"{name} {value / len(seeds):.3f} s" for name, value in spent.items())
        print(f"{what}: {each}; ratio {spent['256 steps'] / spent['1 step']:.0f}")


if __name__ == "__main__":
    main()
