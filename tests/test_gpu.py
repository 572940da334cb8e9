"""On a GPU: the demo in bf16-mixed, resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import ROOT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_demo_in_mixed_precision_resumes(tmp_path: Path, phantoms: Path) -> None:
    words = ["-m", "lit_medgen", "fit", "--config", "configs/cdpm.yaml", "--config", "configs/demo/cdpm.yaml"]
    options = [
        f"--data.init_args.root={phantoms}",
        f"--data.init_args.store_dir={tmp_path / 'store'}",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.precision=bf16-mixed",
        "--model.init_args.num_factors=1",  # of a few people
        "--trainer.accelerator=gpu",
        "--trainer.devices=1",
    ]
    for steps in (32, 64):
        subprocess.run(
            [sys.executable, *words, "--ckpt_path=last", *options, f"--trainer.max_steps={steps}"],
            check=True,
            cwd=ROOT,
            env=os.environ,
        )
    last = torch.load(next(tmp_path.glob("*/checkpoints/last.ckpt")), weights_only=True)
    assert last["global_step"] == 64
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())
