"""Two processes: training, resuming and sampling under DDP.

`python -m lit_medgen` starts those of the first run and those that sample; the others are forks of the test's own
process, which has imported everything.
"""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from killed import run_on_two
from recorder import recorded
from test_resume import assert_equal, losses
from tiny_run import ROOT, TinyRun

pytestmark = pytest.mark.xdist_group("two")

SEEDS = (7, 0, 4)
DDP = ("strategy=ddp", "devices=2", "accelerator=cpu")


def on_two(*words: str) -> str:
    """Runs a command on two processes; returns all it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "lit_medgen", *words, *(f"--trainer.{key}" for key in DDP)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def free_port() -> str:
    """A port that no process listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


class TwoRun(TinyRun):
    """A tiny run on two processes."""

    def start(self, *more: str) -> None:
        """Trains as a user starts it."""
        assert "MEMBER: 2/2" in on_two(*self._fit(*more))

    def fit(self, *more: str) -> int:
        """Trains two steps unless told otherwise."""
        log = self.folder.with_name(f"{self.folder.name}.log")
        words = [*self._fit(*more), *(f"--trainer.{key}" for key in DDP)]
        assert run_on_two(words, log, free_port()) == [0, 0], log.read_text()
        return 0

    def _fit(self, *more: str) -> list[str]:
        return ["fit", *self.configs, *self.options, f"--trainer.default_root_dir={self.folder}", *more]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> TwoRun:
    """Three steps at one go, with a checkpoint after each."""
    run = TwoRun(tmp_path_factory.mktemp("straight"), phantoms)
    run.start("--trainer.max_steps=3")
    return run


def test_a_killed_run_ends_bit_equal(straight: TwoRun) -> None:
    a, logged = torch.load(straight.last, weights_only=True), losses(straight.folder)
    third = straight.last.with_name("step_0000003.ckpt")
    third.unlink()  # what a run leaves that is killed after two steps
    straight.fit("--ckpt_path=last", "--trainer.max_steps=3")
    b = torch.load(straight.last, weights_only=True)
    assert third.exists()
    assert a["global_step"] == b["global_step"] == 3
    assert_equal(a["state_dict"], b["state_dict"])
    assert_equal(a["callbacks"]["EMA"], b["callbacks"]["EMA"])
    assert_equal(a["optimizer_states"], b["optimizer_states"])
    assert losses(straight.folder) == logged
    raw = a["callbacks"]["EMA"]["raw"]
    assert any(not torch.equal(raw[name], a["state_dict"][name]) for name in raw)  # the average is one


@pytest.mark.parametrize(
    "config", ["vqgan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ihdm", "lsdm"))]
)
def test_two_stages_on_two_processes(config: str, tmp_path: Path, phantoms: Path) -> None:
    """Codebook, code tables and validation agree between processes, and a resumed run is the same run."""
    a, b = (TwoRun(tmp_path / name, phantoms, (f"configs/{config}.yaml",)) for name in "ab")
    watched = ["--trainer.callbacks+", f'{{"class_path": "recorder.Buffers", "init_args": {{"folder": "{tmp_path}"}}}}']
    report = ["--config", "configs/with/report.yaml"]
    more = []
    if config == "vqgan":  # scores need the images of all processes, a codebook of averages their vectors
        more = ["--model.init_args.features=learned", "--model.init_args.quantizer.init_args.ema_decay=0.9"]
    a.fit("--trainer.max_steps=3", "--trainer.val_check_interval=1", *report, *more, *watched)
    assert next(a.folder.glob("*/report/report.json")).is_file()
    hashes = [(tmp_path / f"rank_{rank}").read_text().split() for rank in range(2)]
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]  # after every step, without the first process sending its own
    for steps in (2, 3):
        b.fit("--ckpt_path=last", f"--trainer.max_steps={steps}", "--trainer.val_check_interval=1", *more)
    one, other = (torch.load(run.last, weights_only=True) for run in (a, b))
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers"):
        assert_equal(one[part], other[part])
    assert losses(a.folder) == losses(b.folder)


GANS = ("vaegan", "alpha_wgan", "ccegan", "hagan", "spade_gan")


@pytest.mark.parametrize("config", ["wgan", *(pytest.param(name, marks=pytest.mark.slow) for name in GANS)])
def test_players_on_two_processes(config: str, tmp_path: Path, phantoms: Path) -> None:
    """Processes agree on the weights of all players, and on a bank of codes, after every batch; a batch moves somebody.

    That a resumed run is the same run is asked of all but the first, whose test is a single run of two steps.
    """
    a, b = (TwoRun(tmp_path / name, phantoms, (f"configs/{config}.yaml",)) for name in "ab")
    watched = f'{{"class_path": "recorder.Buffers", "init_args": {{"folder": "{tmp_path}"}}}}'
    num_steps = 2 if config == "wgan" else 3
    a.fit(f"--trainer.max_steps={num_steps}", "--trainer.callbacks+", watched)
    hashes = [(tmp_path / f"rank_{rank}").read_text().split() for rank in range(2)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == len(hashes[0]) >= num_steps
    if config == "wgan":
        return
    for steps in (2, 3):
        b.fit("--ckpt_path=last", f"--trainer.max_steps={steps}")
    one, other = (torch.load(run.last, weights_only=True) for run in (a, b))
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers"):
        assert_equal(one[part], other[part])


def test_no_sample_is_lost_or_repeated_on_two_one_and_two_processes(tmp_path: Path, phantoms: Path) -> None:
    keys = tmp_path / "keys"
    callbacks = (
        '[{"class_path": "lit_medgen.callbacks.Checkpoints", "init_args": {"every_n_steps": 100}}, '
        f'{{"class_path": "recorder.Recorder", "init_args": {{"folder": "{keys}"}}}}]'
    )
    two, common = TwoRun(tmp_path, phantoms), (f"--trainer.callbacks={callbacks}", "--ckpt_path=last")
    two.fit(*common, "--trainer.max_steps=2")  # 2 steps of 2 x 2 samples
    assert TinyRun.fit(two, *common, "--trainer.max_steps=5") == 0  # 3 of 2
    two.fit(*common, "--trainer.max_steps=6", "--data.init_args.batch_size=1")  # 1 of 2 x 1
    straight = TinyRun(tmp_path / "straight", phantoms)
    alone = f"--trainer.callbacks={callbacks.replace(str(keys), str(tmp_path / 'alone'))}"
    assert straight.fit(alone, "--trainer.max_steps=8") == 0  # 8 of 2
    assert len(recorded(keys)) == 8 + 6 + 2
    assert recorded(keys) == recorded(tmp_path / "alone")


def test_samples_are_those_of_one_process(straight: TwoRun, tmp_path: Path) -> None:
    words = ["--ckpt_path", str(straight.last), f"--seeds={list(SEEDS)}", "--batch_size=1"]
    on_two("sample", *words, f"--out={tmp_path / 'two'}")
    assert straight.on_checkpoint("sample", *words[2:], f"--out={tmp_path / 'one'}", "--trainer.devices=1") == 0
    two, one = (list(csv.DictReader((tmp_path / name / "manifest.csv").open())) for name in ("two", "one"))
    assert two == one
    assert [int(row["seed"]) for row in two] == list(SEEDS)
    assert sorted(path.name for path in (tmp_path / "two").glob("*.nii.gz")) == sorted(row["file"] for row in two)
    for row in two:
        a, b = (nib.load(tmp_path / name / row["file"]).get_fdata() for name in ("two", "one"))
        np.testing.assert_allclose(a, b, atol=1e-4)
