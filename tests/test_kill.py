"""`kill -9` at any moment costs nothing: the same command ends with the same bits as a run that was left alone."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import Aim, at_boundary, at_rename, at_write, run_in_child
from test_resume import assert_equal, losses
from tiny_run import TinyRun

pytestmark = pytest.mark.xdist_group("kill")

STEPS, EVERY = 12, 3
NUM_RANDOM = 60  # of the slow suite, with 10 more in a save, 10 at boundaries of the order, 20 that are hit twice


@dataclass
class Reference:
    """A run that was left alone."""

    checkpoint: dict[str, object]
    losses: list[str]
    num_bytes: int
    seconds: float


def command(folder: Path, phantoms: Path, *more: str) -> list[str]:
    run = TinyRun(folder, phantoms)
    callbacks = '[{"class_path": "lit_medgen.callbacks.EMA"}, {"class_path": "lit_medgen.callbacks.Checkpoints",'
    return [
        *("fit", *run.configs, *run.options, f"--trainer.default_root_dir={folder}", "--ckpt_path=last"),
        *(f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=4"),
        f'--trainer.callbacks={callbacks} "init_args": {{"every_n_steps": {EVERY}}}}}]',
        *more,
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    start = time.monotonic()
    assert run_in_child(command(folder, phantoms), folder / "log") == 0, (folder / "log").read_text()
    seconds = time.monotonic() - start
    checkpoint = last(folder)
    return Reference(torch.load(checkpoint, weights_only=True), losses(folder), checkpoint.stat().st_size, seconds)


def last(folder: Path) -> Path:
    return TinyRun(folder, folder).last


def check(folder: Path, phantoms: Path, reference: Reference, kills: list[float | Aim], *more: str) -> None:
    """Kills a run as told, lets it end, and compares."""
    log, args = folder / "log", command(folder, phantoms, *more)
    for kill in kills:
        if callable(kill):
            assert run_in_child(args, log, aim=kill) == -9, f"the aim missed\n{log.read_text()}"
        else:
            kill_in_time(args, log, kill)
    assert run_in_child(args, log) == 0, log.read_text()
    ended = torch.load(last(folder), weights_only=True)
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(reference.checkpoint[part], ended[part])
    assert losses(folder) == reference.losses
    assert len(reference.losses) >= STEPS
    assert not list(folder.rglob("*.part"))


def kill_in_time(args: list[str], log: Path, seconds: float) -> None:
    """Kills a run after some seconds, sooner if the run was faster than that."""
    before = log.parent.with_name(f"{log.parent.name}-before")
    shutil.rmtree(before, ignore_errors=True)
    shutil.copytree(log.parent, before, symlinks=True)
    while (code := run_in_child(args, log, after=seconds)) != -9:
        assert code == 0, log.read_text()
        shutil.rmtree(log.parent)
        shutil.copytree(before, log.parent, symlinks=True)
        seconds *= 0.7
        assert seconds > 0.1, "the run cannot be hit"


def moments(seed: int, num: int, seconds: float) -> list[float]:
    """Random moments of a run; nothing happens in its first half second."""
    return list(0.5 + np.random.default_rng(seed).random(num) * max(seconds - 0.5, 0.5))


WORKERS = ("--data.init_args.num_workers=2",)


@pytest.mark.parametrize("more", [(), WORKERS], ids=["0 workers", "2 workers"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_a_random_moment(
    seed: int, more: tuple[str, ...], tmp_path: Path, phantoms: Path, reference: Reference
) -> None:
    check(tmp_path, phantoms, reference, [*moments(seed, 1, reference.seconds)], *more)


@pytest.mark.parametrize(
    "aim",
    [
        at_write("step_0000006.ckpt", 100_000),
        at_rename("step_0000006.ckpt", before=False),
        at_rename("last.ckpt", before=True),
        at_boundary(4, before=False),
    ],
    ids=["half written", "no hash yet", "not the last yet", "end of a pass over the data"],
)
def test_killed_where_it_hurts(aim: Aim, tmp_path: Path, phantoms: Path, reference: Reference) -> None:
    check(tmp_path, phantoms, reference, [aim])


def test_killed_twice(tmp_path: Path, phantoms: Path, reference: Reference) -> None:
    check(tmp_path, phantoms, reference, [at_boundary(5, before=True), at_write("step_0000009.ckpt", 1)], *WORKERS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + NUM_RANDOM))
def test_killed_at_many_moments(seed: int, tmp_path: Path, phantoms: Path, reference: Reference) -> None:
    check(tmp_path, phantoms, reference, [*moments(seed, 1, reference.seconds)], *(WORKERS if seed % 2 else ()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_twice_at_many_moments(seed: int, tmp_path: Path, phantoms: Path, reference: Reference) -> None:
    check(tmp_path, phantoms, reference, moments(seed, 2, reference.seconds), *(WORKERS if seed % 2 else ()))


@pytest.mark.slow
@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 10))
@pytest.mark.parametrize("step", [6])
def test_killed_in_the_middle_of_a_save(
    step: int, share: float, tmp_path: Path, phantoms: Path, reference: Reference
) -> None:
    check(tmp_path, phantoms, reference, [at_write(f"step_{step:07d}.ckpt", share * reference.num_bytes)])


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", [3, 4, 6, 8, 9])
def test_killed_at_boundarys_of_the_order(
    step: int, before: bool, tmp_path: Path, phantoms: Path, reference: Reference
) -> None:
    check(tmp_path, phantoms, reference, [at_boundary(step, before)])
