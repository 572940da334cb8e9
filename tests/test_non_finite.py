"""A NaN or an infinity ends a run before it reaches the weights, and costs nothing that was learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import assert_equal, losses
from tiny_run import TinyRun
from torch import Tensor

from lit_medgen.batch import Batch
from lit_medgen.methods import CDPM

HONEST = CDPM.loss


def poisoned(step: int, how: str) -> object:
    """cDPM's loss, spoilt at one step: the loss itself, or its gradient alone."""

    def loss(self: CDPM, batch: Batch) -> dict[str, Tensor]:
        losses = HONEST(self, batch)
        if self.training and self._step == step:
            if how == "gradient":
                losses["loss"].register_hook(lambda gradient: gradient * float("inf"))
            else:
                losses["loss"] = losses["loss"] * float(how)
        return losses

    return loss


def survive(
    steps: list[int], folder: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run that is spoilt at each of the steps, and one that is not."""
    total = f"--trainer.max_steps={max(steps) + 2}"
    straight, spoilt = TinyRun(folder / "a", phantoms), TinyRun(folder / "b", phantoms)
    assert straight.fit(total) == 0
    keys = {path.stem for path in phantoms.glob("store/*/volumes/*.npy")}
    for n, step in enumerate(steps):
        how = ("nan", "inf", "gradient")[n % 3]
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(CDPM, "loss", poisoned(step, how))
            assert spoilt.fit(total, "--ckpt_path=last") == 4
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert f"step {step + 1}: " in line
        assert {"nan": "loss = nan", "inf": "loss = inf", "gradient": "gradient norm = "}[how] in line
        assert sum(key in line for key in keys) == len({*line.split("batch: ")[1].split(";")[0].split()})
        if step:
            checkpoint = torch.load(spoilt.last, weights_only=True)
            assert checkpoint["global_step"] == step
            assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert spoilt.fit(total, "--ckpt_path=last") == 0
    a, b = (torch.load(run.last, weights_only=True) for run in (straight, spoilt))
    for part in ("state_dict", "callbacks", "optimizer_states"):
        assert_equal(a[part], b[part])
    assert losses(straight.folder) == losses(spoilt.folder)


def test_poison_at_some_steps(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    survive([0, 1, 2, 5], tmp_path, phantoms, monkeypatch, capfd)


@pytest.mark.slow
def test_poison_at_a_hundred_random_steps(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = sorted(np.random.default_rng(0).choice(130, 100, replace=False).tolist())
    survive(steps, tmp_path, phantoms, monkeypatch, capfd)
