"""What exact resume, agreement between processes and the finite guard cost a training step.

The same tiny cDPM on the same batches, trained in turns by our Trainer and by Lightning's own with its own clipping;
medians over all steps but the first ones of each run. On two processes both run under DDP (gloo).

    python -m benchmarks.overhead                # one process
    python -m benchmarks.overhead --devices 2
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from data_modules import ADNIDataModule, FDMDraw
from data_modules.phantoms import phantom
from data_modules.recipes.volumes import Preprocessing
from lit_medgen.callbacks import EMA
from lit_medgen.methods import CDPM
from lit_medgen.networks import SliceUNet
from lit_medgen.trainer import Trainer

NUM_TURNS, NUM_STEPS, NUM_SKIPPED = 6, 60, 10


class Bare(CDPM):
    """cDPM without the guard, clipped as Lightning's own trainer clips."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """The norm and the clipping, no more."""
        self._suspects.clear()
        self.log("train/gradient_norm", torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0))


class Clock(L.Callback):
    """Notes when each step starts."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Called by Lightning."""
        self.times.append(time.perf_counter())


def run(kind: str, data: ADNIDataModule, folder: Path, devices: int) -> list[float]:
    """Seconds of each step of one short run."""
    torch.manual_seed(0)
    network = SliceUNet((16, 32), (True, True), (False, True), num_res_blocks=1, head_channels=16)
    model = (CDPM if kind == "ours" else Bare)(network)
    clock = Clock()
    trainer = (Trainer if kind == "ours" else L.Trainer)(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=NUM_STEPS,
        max_epochs=-1,
        limit_val_batches=0,
        gradient_clip_val=1.0 if kind == "ours" else None,
        callbacks=[EMA(), clock],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data)
    return list(np.diff(clock.times)[NUM_SKIPPED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1)
    devices = parser.parse_args().devices
    torch.set_num_threads(1)
    folder = Path(os.environ.setdefault("LIT_MEDGEN_BENCHMARK", tempfile.mkdtemp()))
    if not (folder / "phantoms").exists():
        phantom(["adni", "--out", str(folder / "phantoms"), "--num_subjects", "6"])
    data = ADNIDataModule(
        str(folder / "phantoms"),
        preprocessing=Preprocessing(size=(16, 24, 16)),
        view=FDMDraw(8),
        store_dir=str(folder),
        fractions=(0.8, 0.2, 0.0),
        num_jobs=1,
    )
    times: dict[str, list[float]] = {"ours": [], "Lightning": []}
    for turn in range(2 * NUM_TURNS):
        kind = list(times)[turn % 2]
        times[kind] += run(kind, data, folder, devices)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        ours, theirs = (1e3 * float(np.median(times[kind])) for kind in times)
        print(f"processes {devices}; step: ours {ours:.2f} ms, Lightning {theirs:.2f} ms")
        print(f"difference {ours - theirs:+.2f} ms, ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    main()
