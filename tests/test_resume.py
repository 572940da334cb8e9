"""A resumed run is the same run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ROOT, TinyRun

METHODS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", METHODS)
def test_interrupted_run_ends_bit_equal(config: str, tmp_path: Path, phantoms: Path) -> None:
    straight, interrupted = (TinyRun(tmp_path / name, phantoms, (f"configs/{config}",)) for name in "ab")
    assert straight.fit("--trainer.max_steps=5") == 0
    for steps in (2, 4, 4, 5):  # 4 twice: a run that is done already
        assert interrupted.fit(f"--trainer.max_steps={steps}", "--ckpt_path=last") == 0
    a, b = (torch.load(run.last, weights_only=True) for run in (straight, interrupted))
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "loops"):
        assert_equal(a[part], b[part])
    assert losses(straight.folder) == losses(interrupted.folder)


def losses(folder: Path) -> list[str]:
    """The logged losses and gradient norms, in order: all that a run logs but its speed."""
    with next(folder.glob("*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [{name: row[name] for name in sorted(row) if "_norm" in name or "loss" in name} for row in rows]
    return [f"{row['step']}: {logged}" for row, logged in zip(rows, kept, strict=True) if any(logged.values())]


def assert_equal(a: Any, b: Any) -> None:
    """Bit-equal, all the way down."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b
