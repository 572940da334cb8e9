"""Validation and test losses: their noise levels are spread over all images, so that a loss hangs on no seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import DPMSolverPP2M, LogitNormal
from lit_medgen.methods import CDPM
from lit_medgen.networks import SliceUNet
from lit_medgen.trainer import Trainer
from lit_medgen.training.method import MIN_TIMES, Method


class Timed(Method):
    """Notes its times; its loss rises steeply at small ones, as that of a denoiser does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        t = self.times(len(batch.image), 0.001)
        self.seen.append(t)
        return {"loss": (1 / (0.05 + t)).mean()}


class Timeless(Timed):
    """Has no times."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(torch.zeros(len(batch.image)))
        return {"loss": self.weight.sum()}


def batches(num: int, size: int, **more: Any) -> list[Batch]:
    return [
        Batch(torch.zeros(size, 1, 4, 8, 8), ["key"] * size, torch.eye(4).expand(size, 4, 4), Condition(**more))
    ] * num


def evaluated(method: Method, loader: list[Batch], verb: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """The loss that is logged."""
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    wrapped = DataLoader(loader, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    (found,) = getattr(trainer, verb)(method, wrapped, verbose=False)
    return float(found[f"{'val' if verb == 'validate' else 'test'}/loss"])


@pytest.mark.parametrize("verb", ["validate", "test"])
@pytest.mark.parametrize(("num", "size"), [(2, 2), (50, 2), (7, 16)])
def test_times_of_all_batches_together_leave_no_gap(
    num: int, size: int, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Timed()
    evaluated(method, batches(num, size), verb, 3, monkeypatch)
    times = torch.cat(method.seen).sort().values
    assert len(times) >= MIN_TIMES
    gaps = torch.cat([torch.tensor([0.001]), times, torch.tensor([1.0])]).diff()
    assert gaps.max() < 3 / len(times)
    assert len(method.seen) == num * -(-MIN_TIMES // (num * size))  # many images are seen once each


def test_times_depend_on_no_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Timed(), Timed()
    evaluated(one, batches(32, 2), "validate", 0, monkeypatch)
    evaluated(other, batches(8, 8), "validate", 0, monkeypatch)
    assert torch.equal(torch.cat(one.seen), torch.cat(other.seen))


def test_where_training_looks_changes_no_evaluation() -> None:
    """Training times are quantiles of the strata; a validation loss is a mean over the same times for all."""
    method, density = Timed(), LogitNormal(0.5, 0.8)
    t, share = method.times_and_shares(64, 0.001, density)
    even, _ = method.times_and_shares(64, 0.0)
    assert torch.equal(t, density(even, 0.001))
    assert share.tolist() == [1] * 64
    method.eval()
    for plain, found in zip(
        method.times_and_shares(64, 0.001), method.times_and_shares(64, 0.001, density), strict=True
    ):
        assert torch.equal(plain, found)


def test_what_has_no_times_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Timeless()
    evaluated(method, batches(2, 2), "validate", 0, monkeypatch)
    assert len(method.seen) == 2


def test_few_images_give_the_same_loss_for_any_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """cDPM with a network that says nothing, whose loss is |eps|^2, times a weight that is steep at small times."""
    method = CDPM(SliceUNet((8,), (False,), (False,), 1, 8), sampler=DPMSolverPP2M(2))
    method.spec = DataSpec(channels=1, size=(8, 8, 4), spacing_mm=(1.0, 1.0, 1.0), slice_axis="axial")
    monkeypatch.setattr(method.denoiser, "weight", lambda t, schedule, _: 1 / (1e-3 + schedule.sigma(t)))
    index = torch.arange(4).expand(2, -1)
    loader = batches(2, 2, slice_index=index, observed=torch.zeros(2, 4, dtype=torch.bool))
    losses = [evaluated(method, loader, "validate", seed, monkeypatch) for seed in range(8)]
    assert max(losses) - min(losses) < sum(losses) / len(losses) / 3
    method.train()
    torch.manual_seed(0)
    many = batches(1, 2000, slice_index=index[:1].expand(2000, -1), observed=torch.zeros(2000, 4, dtype=torch.bool))
    with torch.no_grad():
        exact = method.loss(many[0])["loss"].item()  # training's mean, even over all times
    assert sum(losses) / len(losses) == pytest.approx(exact, rel=0.05)
