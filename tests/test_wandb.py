"""The overlay for Weights & Biases, on this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import ROOT, TinyRun

wandb = pytest.importorskip("wandb")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """W&B writes to this folder and talks to nobody."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield tmp_path
    wandb.finish()  # an open run would be taken for that of the next test
    wandb.teardown()


def test_an_offline_run_holds_the_grid(offline: Path, phantoms: Path) -> None:
    before = set(ROOT.iterdir())
    run = TinyRun(offline, phantoms, ("configs/cdpm.yaml", "configs/with/wandb.yaml"))
    assert run.fit(f"--trainer.logger.init_args.save_dir={offline}") == 0
    wandb.finish()
    (folder,) = offline.glob("wandb/offline-run-*")
    assert list(folder.glob("run-*.wandb"))
    (logged,) = folder.glob("files/media/images/samples_*.png")
    (written,) = offline.glob("*/grids/step_0000002.png")
    a, b = (np.asarray(Image.open(path).convert("L"), dtype=float) for path in (logged, written))
    np.testing.assert_allclose(a, b, atol=1)  # one rounds, the other cuts
    strays = {path.name for path in set(ROOT.iterdir()) - before}
    assert not strays & {"wandb", "runs", "lightning_logs", "checkpoints", "samples"}


def test_a_resumed_run_is_the_same_run(offline: Path, phantoms: Path) -> None:
    run = TinyRun(offline, phantoms, ("configs/cdpm.yaml", "configs/with/wandb.yaml"))
    save_dir = f"--trainer.logger.init_args.save_dir={offline}"
    for steps in (1, 2):
        assert (
            run.fit(save_dir, "--ckpt_path=last", f"--trainer.max_steps={steps}", "--trainer.val_check_interval=1") == 0
        )
        wandb.finish()
    (written,) = offline.glob("*/wandb_id")
    files = list(offline.glob("wandb/offline-run-*/*.wandb"))  # W&B writes one for each start
    assert len(files) == 2
    assert {path.name for path in files} == {f"run-{written.read_text()}.wandb"}
    assert run.fit(save_dir, "--name=other", "--trainer.max_steps=1", "--trainer.val_check_interval=1") == 0
    assert len({path.read_text() for path in offline.glob("*/wandb_id")}) == 2
