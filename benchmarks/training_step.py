"""One training step of cDPM: our slice U-Net against MONAI's 2D DiffusionModelUNet in its place.

Both get the same batch, loss and optimizer (forward, backward, AdamW); MONAI's network sees the set of
slices as a batch of single slices. Widths are chosen so that the parameters agree within 5 %: ours spends a part of
them on attention across slices, which MONAI's lacks. Variants take turns; figures are medians.

    python -m benchmarks.training_step
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from einops import rearrange, repeat
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from data_modules import UniformDraw
from lit_medgen.batch import Batch, Condition
from lit_medgen.methods import CDPM
from lit_medgen.networks import SliceUNet

SIDE, NUM_VOLUMES, NUM_SLICES, NUM_TURNS = 64, 1, 10, 9


class MonaiSliceUNet(nn.Module):
    """MONAI's U-Net, called like ours: network(x, t, condition) with x: b c n y x."""

    divisor = 4

    def __init__(self) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=2,
            out_channels=1,
            channels=(32, 64, 144),
            attention_levels=(False, False, True),
            num_res_blocks=1,
            num_head_channels=36,
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Condition slices enter clean, and one more channel says which they are, as in ours."""
        b, _, n = x.shape[:3]
        given = condition.observed[:, None, :, None, None]
        x = torch.cat([torch.where(given, condition.image, x), given.expand_as(x).to(x)], dim=1)
        h = self.unet(rearrange(x, "b c n y x -> (b n) c y x"), repeat(1000 * t, "b -> (b n)", n=n))
        return rearrange(h, "(b n) c y x -> b c n y x", b=b)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    networks = {
        "ours": SliceUNet(
            (32, 64, 128), (False, False, True), (False, False, True), num_res_blocks=1, head_channels=32
        ),
        "MONAI": MonaiSliceUNet(),
    }
    num_parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert abs(num_parameters["ours"] / num_parameters["MONAI"] - 1) < 0.05
    batch = random_batch().to(device)
    steps = {
        f"{name}, {precision}": training_step(CDPM(network).to(device), batch, precision == "bf16")
        for name, network in networks.items()
        for precision in ("fp32", "bf16")
    }
    ms = {name: 1e3 * seconds for name, seconds in medians(steps).items()}
    print(f"{NUM_VOLUMES} x {NUM_SLICES} slices of {SIDE} x {SIDE} on {device}, medians of {NUM_TURNS} turns")
    print("parameters: " + ", ".join(f"{name} {num:,}" for name, num in num_parameters.items()))
    print("ms a step: " + "; ".join(f"{name} {time:.0f}" for name, time in ms.items()))
    for mine, peer in (("bf16", "fp32"), ("bf16", "bf16"), ("fp32", "fp32")):
        print(f"ours, {mine} / MONAI, {peer}: {ms[f'ours, {mine}'] / ms[f'MONAI, {peer}']:.2f}")


def random_batch(num_volumes: int = NUM_VOLUMES, num_slices: int = NUM_SLICES, side: int = SIDE) -> Batch:
    """Noise in place of images: the time of a step does not depend on them."""
    drawn = [UniformDraw(num_slices).sets(side, np.random.default_rng(seed)) for seed in range(num_volumes)]
    return Batch(
        image=torch.rand(num_volumes, 1, num_slices, side, side) * 2 - 1,
        key=[str(number) for number in range(num_volumes)],
        affine=torch.eye(4).expand(num_volumes, 4, 4),
        condition=Condition(
            slice_index=torch.stack([torch.from_numpy(slices.index) for slices in drawn]),
            observed=torch.stack([torch.from_numpy(slices.observed) for slices in drawn]),
        ),
    )


def training_step(model: CDPM, batch: Batch, half: bool) -> Callable[[], None]:
    """Loss, gradients and update of a model, in fp32 or under bf16 autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    autocast: Callable[[], AbstractContextManager] = partial(
        torch.autocast, batch.image.device.type, torch.bfloat16, enabled=half
    )

    def step() -> None:
        with autocast():
            loss = model.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the accelerator

    return step


def medians(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of every step; they take turns, and the first two turns warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(NUM_TURNS + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times[2:])) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
