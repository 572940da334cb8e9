"""Averaged weights: the formula, and what checkpoints hold."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_medgen.callbacks import EMA


class Line(L.LightningModule):
    """One weight, pushed by 1 in every step; an integer buffer that nothing may average."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.tensor(3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.seen = self.weight.item()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(ema: EMA, steps: int, **more: object) -> Line:
    model = Line()
    loader = DataLoader(torch.zeros(steps, 1))
    trainer = L.Trainer(
        max_epochs=1, callbacks=[ema], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", **more,
    )  # fmt: skip
    trainer.fit(model, loader, DataLoader(torch.zeros(1, 1)))
    return model


@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_its_formula(warmup: bool) -> None:
    ema = EMA(decay=0.5, warmup=warmup)
    model = fit(ema, 4)
    average = 0.0
    for step in range(1, 5):
        decay = min(0.5, (1 + step) / (10 + step)) if warmup else 0.5
        average = decay * average + (1 - decay) * step
    assert ema.average["weight"].item() == pytest.approx(average)
    assert model.weight.item() == 4  # training goes on with the raw weights
    assert model.seen == pytest.approx(average)  # validation sees the averaged ones
    assert model.count.item() == 3


def test_accumulated_batches_count_once() -> None:
    ema = EMA(decay=0.5, warmup=False)
    fit(ema, 4, accumulate_grad_batches=2)
    assert ema.num_updates == 2


def test_swapping_twice_is_swapping_once() -> None:
    ema = EMA(decay=0.5, warmup=False)
    model = fit(ema, 2)
    for _ in range(2):
        ema.swap_in(model)
    assert model.weight.item() == ema.average["weight"].item()
    for _ in range(2):
        ema.swap_out(model)
    assert model.weight.item() == 2
