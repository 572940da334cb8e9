"""docs/shared_machines.md: a run that stops early, and one whose batches come in parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_run import ROOT, TinyRun

PAGE = (ROOT / "docs" / "shared_machines.md").read_text()
EVERY_BATCH = "--trainer.val_check_interval=1"


@pytest.mark.slow  # two trainings
def test_a_run_stops_early_and_goes_on(tmp_path: Path, phantoms: Path) -> None:
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "# early.yaml" in block]
    # No loss is lower than the one before by this much.
    early = tmp_path / "early.yaml"
    early.write_text(block.replace("patience: 5", "patience: 1, min_delta: 1000"))
    run = TinyRun(tmp_path, phantoms)
    words = "--config", str(early), EVERY_BATCH, "--trainer.max_steps=5", "--data.init_args.fractions=[0.4,0.4,0.2]"
    assert run.fit(*words) == 0
    stopped = read_step(run)
    assert 1 < stopped < 5
    early.write_text(early.read_text().replace("patience: 1", "patience: 9"))
    assert run.fit(*words, "--ckpt_path=last") == 0
    assert read_step(run) == 5


@pytest.mark.slow  # a training
def test_batches_in_parts_make_one_step(tmp_path: Path, phantoms: Path) -> None:
    words = [word for line in re.findall(r"--data.init_args.batch_size .*", PAGE) for word in line.split()]
    run = TinyRun(tmp_path, phantoms)
    assert run.fit(*words, EVERY_BATCH) == 0
    assert read_step(run) == 2
    batches = torch.load(run.last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert batches["ready"] == 4


def read_step(run: TinyRun) -> int:
    """The step that the newest checkpoint of a run was saved at."""
    step: int = torch.load(run.last, weights_only=True)["global_step"]
    return step
