"""A resumed run is the same run."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from tiny_run import BASES, TWINS, TinyRun, group_of, run_of


def each_base() -> Iterator[ParameterSet]:
    """The shipped methods, each on the worker of its other tests."""
    for base in BASES:
        slow = [pytest.mark.slow] if Path(base).stem in TWINS else []
        yield pytest.param(base, marks=[pytest.mark.xdist_group(group_of(base)), *slow])


@pytest.mark.parametrize("base", each_base())
def test_interrupted_run_ends_bit_equal(base: str, tmp_path: Path, phantoms: Path) -> None:
    """With all that a checkpoint holds, so that a second interruption is one of the straight run."""
    straight = TinyRun(tmp_path / "straight", phantoms, (base,))
    assert straight.fit("--trainer.max_steps=4") == 0
    interrupted = run_of(phantoms, (base,)).copied(tmp_path / "interrupted")
    assert interrupted.fit("--trainer.max_steps=4", "--ckpt_path=last") == 0
    assert_same_run(straight, interrupted)


@pytest.mark.parametrize("base", ["configs/cdpm.yaml", pytest.param("configs/vqgan.yaml", marks=pytest.mark.slow)])
def test_a_run_that_is_interrupted_twice_and_done_already_ends_bit_equal(
    base: str, tmp_path: Path, phantoms: Path
) -> None:
    straight, interrupted = (TinyRun(tmp_path / name, phantoms, (base,)) for name in "ab")
    assert straight.fit("--trainer.max_steps=5") == 0
    for steps in (2, 4, 4, 5):
        assert interrupted.fit(f"--trainer.max_steps={steps}", "--ckpt_path=last") == 0
    assert_same_run(straight, interrupted)


def assert_same_run(straight: TinyRun, interrupted: TinyRun) -> None:
    """Bit-equal checkpoints and logs; only what a user may call a run (`config`) and how long it took may differ."""
    a, b = (torch.load(run.last, weights_only=True) for run in (straight, interrupted))
    for found in (a, b):
        del found["lit_medgen"]["config"]
    assert_equal(a, b)
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
