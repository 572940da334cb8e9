"""Numerical precision: what a run may be given works or is refused in one line; averages stay in float32."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from callbacks.test_ema import Line
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.plugins import MixedPrecision
from tiny_run import TinyRun, one_line
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_medgen.batch import Batch
from lit_medgen.callbacks import EMA
from lit_medgen.diffusion import BlurSchedule
from lit_medgen.errors import InputError
from lit_medgen.methods import CDPM, VQGAN
from lit_medgen.networks import Autoencoder, SliceUNet
from lit_medgen.trainer import Trainer
from lit_medgen.training.method import Method


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_one_line(
    precision: str, tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TinyRun(tmp_path, phantoms).fit(f"--trainer.precision={precision}") == 2
    assert f"trainer.precision is {precision}; give one of 32-true" in one_line(capsys)


class Slope(Method):
    """One weight, whose gradient is 3 times the loss scale; fused, as in the shipped configs."""

    def __init__(self, fused: bool) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=1.0, fused=fused))
        self.weight = nn.Parameter(torch.zeros(1))
        self.factor = 3.0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.factor * self.weight).sum()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("clip", "algorithm", "moved"), [(None, None, 3.0), (0.5, "norm", 0.5), (2.0, "value", 2.0)])
def test_fp16_clips_what_is_unscaled(fused: bool, clip: float | None, algorithm: str | None, moved: float) -> None:
    """The CPU has no fp16 of Lightning's choosing, but its plugin and scaler are the same."""
    model = Slope(fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = Trainer(
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)], accelerator="cpu", max_steps=1, logger=False,
        gradient_clip_val=clip, gradient_clip_algorithm=algorithm, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    batch = Batch(torch.zeros(1, 1), ["key"], torch.eye(4)[None])
    trainer.fit(model, DataLoader([batch], batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    assert model.weight.item() == pytest.approx(-moved)


@pytest.mark.parametrize("fused", [True, False])
def test_fp16_skips_a_step_of_infinite_gradients(fused: bool) -> None:
    model = Slope(fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    model.factor = 1e30  # times the scale beyond float32
    trainer = Trainer(
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)], accelerator="cpu", max_steps=1, logger=False,
        gradient_clip_val=1.0, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    batch = Batch(torch.zeros(1, 1), ["key"], torch.eye(4)[None])
    trainer.fit(model, DataLoader([batch], batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    assert model.weight.item() == 0
    assert scaler.get_scale() < 2.0**60


def test_the_average_of_bfloat16_weights_is_float32() -> None:
    model, ema = Line().to(torch.bfloat16), EMA(decay=0.999, warmup=False)
    trainer = L.Trainer(
        max_epochs=1, callbacks=[ema], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.zeros(4, 1)), DataLoader(torch.zeros(1, 1)))
    average = 0.0
    for step in range(1, 5):
        average = 0.999 * average + 0.001 * step
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].item() == pytest.approx(average, rel=1e-5)
    assert model.weight.dtype == torch.bfloat16


def test_a_mac_trains_on_its_cpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has no float64."""
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    assert Trainer(logger=False).strategy.root_device.type == "cpu"
    with pytest.raises(InputError, match=r"trainer\.accelerator is mps.*no float64"):
        Trainer(logger=False, accelerator="mps")


def test_no_buffer_is_float64() -> None:
    for module in (
        CDPM(SliceUNet((8,), (False,), (False,), 1, 8)),
        VQGAN(Autoencoder(2, 1, 4, (8,), (False,), 1, 8)),
        BlurSchedule(),
    ):
        assert not [name for name, buffer in module.named_buffers() if buffer.dtype == torch.float64]
