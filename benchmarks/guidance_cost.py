"""What guidance by a classifier costs: its share of an unguided step of LSDM, in operations and on this machine.

    python -m benchmarks.guidance_cost [--narrower N]

The networks are those of configs/lsdm.yaml, crop_classifier.yaml and autoencoder_kl_ct.yaml. A step is one evaluation
of the denoiser at the latents of an image. One group of guidance decodes the 16 x 16 latents of a crop, classifies its
64 x 64 pixels, and takes the gradient back to them. Operations (multiplications and additions, by PyTorch's counter)
follow from shapes alone, so that no weights are made. What a CPU manages in seconds is N times narrower (4), at the
same sizes of images; attention, whose operations fall with the width rather than its square, then is more of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_medgen.batch import Condition, DataSpec
from lit_medgen.diffusion import Denoiser, LikelihoodGuidance, Term
from lit_medgen.loading import build_method
from lit_medgen.methods import CropClassifier

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTHS = ("channels", "modulation_channels", "hidden")
"""Arguments of the networks that are divided to make them narrow; heads keep their width, so that they are fewer."""
NUM_TURNS = 3
IMAGE, CROP, FACTOR = 512, 64, 4
"""Pixels along a side of an image and of a crop, and pixels for one latent."""
WANTED = {"malignant": 1.0, "lobulation": 4.0, "spiculation": 4.0, "texture": 2.0}


def main() -> None:
    """Prints operations, seconds and shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--narrower", type=int, default=4)
    narrower = parser.parse_args().narrower
    for width in dict.fromkeys((1, narrower)):
        unguided, added = counted(width)
        what = f"step {unguided / 1e9:.0f} GFLOP, guidance {added / 1e9:.0f} GFLOP"
        report(f"{width} times narrower: {what}", added / unguided)
    step, guidance = in_turns(*calls(narrower))
    report(f"{narrower} times narrower, measured: step {step:.2f} s, guidance {guidance:.2f} s", guidance / step)


def report(what: str, share: float) -> None:
    """One line."""
    print(f"{what}: {share:.1%}")


def calls(narrower: int) -> tuple[Any, Any]:
    """An unguided step, and what one group of guidance adds to it, as functions without arguments."""
    lsdm, classifier = method("lsdm", narrower), guide(narrower)
    size = IMAGE // FACTOR
    z_t, t = torch.zeros(1, 3, size, size), torch.full((1,), 0.5)
    condition = Condition(label_map=torch.zeros(1, 1, IMAGE, IMAGE, dtype=torch.int64))
    wanted = {name: torch.full((1,), value) for name, value in WANTED.items()}

    def log_likelihood(x_t: Tensor, t: Tensor) -> Tensor:
        side = CROP // FACTOR
        return torch.stack([*classifier.log_likelihoods(x_t[..., :side, :side], t, wanted).values()]).sum(0)

    denoiser: Denoiser = lsdm.denoiser
    added = LikelihoodGuidance(Free(denoiser), [[Term(log_likelihood)]])
    no_grad = torch.no_grad()
    return no_grad(lambda: denoiser(z_t, t, condition)), no_grad(lambda: added(z_t, t, condition))


class Free:
    """A denoiser that costs nothing, so that what is around it can be measured by itself."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x_t itself, b c *s."""
        return x_t


def guide(narrower: int) -> CropClassifier:
    """The crop classifier on its first stage, frozen as in LSDM."""
    classifier, first_stage = method("crop_classifier", narrower), method("autoencoder_kl_ct", narrower)
    within = {name: (1.0, 5.0) for name in WANTED} | {"malignant": (0.0, 1.0)}
    first_stage.spec = DataSpec(1, (IMAGE, IMAGE), (0.7, 0.7))
    classifier.spec = DataSpec(1, (CROP, CROP), (0.7, 0.7), attributes=within)
    classifier.take_parts(first_stage=first_stage)
    frozen: CropClassifier = classifier.requires_grad_(False).eval()
    return frozen


def method(name: str, narrower: int) -> Any:
    """The method of a shipped config, untrained, its networks so many times narrower."""
    model = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    arguments = model["init_args"]["network"]["init_args"]
    for key in WIDTHS:
        if key in arguments:
            width = arguments[key]
            arguments[key] = [each // narrower for each in width] if isinstance(width, list) else width // narrower
    return build_method({"model": model}).eval()


def counted(narrower: int) -> list[int]:
    """Multiplications and additions of a step, and of what guidance adds to it."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without values
        return [operations(call) for call in calls(narrower)]


def operations(call: Any) -> int:
    """Multiplications and additions of one call."""
    # Attention as matrix products: the counter overlooks what a CPU has in one piece.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def in_turns(*functions: Any) -> list[float]:
    """Median seconds of each, in turns, after one call that is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(NUM_TURNS + 1):
        for function, spent in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            spent += [time.perf_counter() - start] if turn else []
    return [statistics.median(spent) for spent in seconds]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
