"""A resumed run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_run import TinyRun


def test_interrupted_run_ends_bit_equal(tmp_path: Path, phantoms: Path) -> None:
    straight, interrupted = TinyRun(tmp_path / "a", phantoms), TinyRun(tmp_path / "b", phantoms)
    assert straight.fit("--trainer.max_steps=5") == 0
    assert interrupted.fit("--trainer.max_steps=2", "--ckpt_path=last") == 0
    assert interrupted.fit("--trainer.max_steps=5", "--ckpt_path=last") == 0
    a, b = (torch.load(run.last, weights_only=True) for run in (straight, interrupted))
    assert_equal(a["state_dict"], b["state_dict"])
    assert_equal(a["callbacks"]["EMA"], b["callbacks"]["EMA"])
    assert_equal(a["optimizer_states"], b["optimizer_states"])
    assert_equal(losses(straight.folder), losses(interrupted.folder))


def losses(folder: Path) -> list[str]:
    """The logged training losses, in order."""
    lines = [line.split(",") for line in next(folder.glob("*/metrics.csv")).read_text().splitlines()]
    step, loss = lines[0].index("step"), lines[0].index("train/loss")
    return [f"{line[step]}: {line[loss]}" for line in lines[1:] if line[loss]]


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
