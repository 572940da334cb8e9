"""Two processes, one fault at a random moment: all end soon, one line says what and where, a whole checkpoint is there.

The faults come from outside (signals) or from `Witness`, a callback that the commands name; the package has no hook
for them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from tiny_run import ROOT, TinyRun

from lit_medgen.checkpoints import newest
from lit_medgen.errors import NonFiniteError

pytestmark = [
    pytest.mark.xdist_group("two"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment (Linux)"),
]

EVERY = 4  # steps between two checkpoints
LIMIT_S = 30.0  # from the fault until the last process is gone
SIGNALLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Witness(Callback):
    """Writes down the steps that each process has taken, and raises where it is told to.

    Args:
        folder: where the notes go.
        rank: the process that raises.
        step: the step at whose begin it raises; -1: never.
        ours: an error of the package, with an exit code of its own, or any other.
    """

    def __init__(self, folder: str, rank: int = 0, step: int = -1, ours: bool = False) -> None:
        self.folder, self.rank, self.step, self.ours = Path(folder), rank, step, ours

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            raise NonFiniteError("planted fault") if self.ours else RuntimeError("planted fault")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        (self.folder / f"step.{trainer.global_rank}").write_text(str(trainer.global_step))


@dataclass(frozen=True)
class Fault:
    """What happens: a signal to these ranks, or an exception (no signal).

    Attributes:
        signum: the signal, None for an exception.
        ranks: who gets it.
        start: while the processes start, before they train.
        torchrun: started by torchrun, not by Lightning.
        ours: the exception is one of the package's.
        seed: of the moment.
    """

    signum: signal.Signals | None
    ranks: tuple[int, ...]
    start: bool = False
    torchrun: bool = False
    ours: bool = False
    seed: int = 0

    def __str__(self) -> str:
        what = self.signum.name if self.signum else "NonFiniteError" if self.ours else "RuntimeError"
        return "-".join(
            [
                "torchrun" if self.torchrun else "lightning",
                *(["start"] if self.start else []),
                what,
                "and".join(map(str, self.ranks)),
                str(self.seed),
            ]
        )

    @property
    def saves(self) -> bool:
        """The run saves, then ends."""
        return self.signum in SIGNALLED and not self.start


class Run:
    """One run on two processes."""

    def __init__(self, folder: Path, phantoms: Path, fault: Fault) -> None:
        self.folder, self.fault, self.mark = folder, fault, uuid.uuid4().hex
        self.random = np.random.default_rng([fault.seed, *map(int, fault.ranks), int(fault.signum or 0)])
        self.tiny = TinyRun(folder, phantoms)
        step = -1 if fault.signum else int(self.random.integers(EVERY + 1, 5 * EVERY))
        witness = f'"folder": "{folder}", "rank": {fault.ranks[0]}, "step": {step}, "ours": {str(fault.ours).lower()}'
        callbacks = (
            '[{"class_path": "lit_medgen.callbacks.EMA"}, {"class_path": "lit_medgen.callbacks.Checkpoints", '
            f'"init_args": {{"every_n_steps": {EVERY}}}}}, '
            f'{{"class_path": "test_ddp_faults.Witness", "init_args": {{{witness}}}}}]'
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        start = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"] if fault.torchrun else []
        self.started = subprocess.Popen(
            [
                *(sys.executable, *start, "-m", "lit_medgen", "fit", *self.tiny.configs, *self.tiny.options),
                *(f"--trainer.default_root_dir={folder}", f"--trainer.callbacks={callbacks}"),
                *("--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"),
                "--trainer.max_steps=100000",
            ],
            cwd=ROOT,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "FAULT_RUN": self.mark}
            | {"PYTHONPATH": str(ROOT / "tests")},
            stdout=(folder / "stdout").open("w"),
            stderr=(folder / "stderr").open("w"),
            start_new_session=True,
        )

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def processes(self) -> dict[int, dict[str, str]]:
        """Those alive, of whatever session, with the environment that each was started with."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has just ended
                continue
            if f"FAULT_RUN={self.mark}" in variables:
                found[int(path.name)] = dict(text.split("=", 1) for text in variables if "=" in text)
        return found

    def pids(self) -> dict[int, int]:
        """Rank -> process."""
        if self.fault.torchrun:
            return {int(there["RANK"]): pid for pid, there in self.processes().items() if "RANK" in there}
        return {int(there.get("LOCAL_RANK", 0)): pid for pid, there in self.processes().items()}

    def step(self, rank: int) -> int:
        """The last step that a process has ended."""
        try:
            return int((self.folder / f"step.{rank}").read_text() or -1)
        except FileNotFoundError:
            return -1

    def wait_for(self, what: Any, seconds: float) -> bool:
        """Whether it came true in time, while the run went on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.started.poll() is None:
            if what():
                return True
            time.sleep(0.01)
        return bool(what())

    def strike(self) -> float:
        """Does the deed at a random moment; returns the seconds from it to the end of the last process."""
        fault = self.fault
        if fault.start:
            assert self.wait_for(lambda: self.pids().keys() >= {0, 1}, 120), self.stderr
            time.sleep(self.random.uniform(0, 6))
        else:
            assert self.wait_for(lambda: min(self.step(0), self.step(1)) > EVERY, 120), self.stderr
            if fault.signum:
                time.sleep(self.random.uniform(0, 1.5))
        if fault.signum:
            pids = self.pids()
            assert self.started.poll() is None, self.stderr
            for rank in fault.ranks:
                os.kill(pids[rank], fault.signum)
        struck = time.monotonic()
        while self.started.poll() is None or self.processes():
            assert time.monotonic() - struck < LIMIT_S, f"still there: {self.processes().keys()}\n{self.stderr}"
            time.sleep(0.02)
        return time.monotonic() - struck

    def end(self) -> None:
        """Leaves nothing behind, whatever a test found."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.started.wait()


def check(fault: Fault, folder: Path, phantoms: Path) -> Run:
    """The laws that hold after any fault."""
    run = Run(folder, phantoms, fault)
    try:
        seconds = run.strike()
    finally:
        run.end()
    lines = run.stderr.splitlines()
    print(f"{fault}: exit {run.started.returncode} after {seconds:.1f} s; {' | '.join(lines[-3:])}"[:600])
    reached = max(run.step(0), run.step(1))
    checkpoints = folder / "cdpm" / "checkpoints"
    best = newest(checkpoints) if checkpoints.is_dir() else None
    step = int(best.stem.removeprefix("step_")) if best else 0
    assert reached - step <= EVERY
    assert run.started.returncode != 0
    # A kill in the middle of a save leaves one temporary file, which the next start removes.
    assert len(list(folder.rglob("*.part"))) <= (fault.signum == signal.SIGKILL)
    if fault.saves:
        assert fault.signum
        if not fault.torchrun:  # whose code and traceback are its own
            assert run.started.returncode == 128 + fault.signum
            assert "Traceback" not in run.stderr
        assert run.step(0) == run.step(1) == step
        assert [line for line in lines if line.startswith("stopped:")] == [
            f"stopped: {fault.signum.name} after step {step}; saved as {best}; the same command "
            "with --ckpt_path last continues."
        ]
    elif fault.signum is None:
        assert any(f"rank {fault.ranks[0]}" in line and "planted fault" in line for line in lines), run.stderr
        assert run.started.returncode == (1 if fault.torchrun or not fault.ours else 4)
    elif not fault.start and not fault.torchrun:
        (lost,) = fault.ranks
        assert any(f"rank {lost} was lost" in line or f"[rank: {lost}]" in line for line in lines), run.stderr
    return run


REPRESENTATIVE = [
    pytest.param(fault, marks=marks, id=str(fault))
    for fault, marks in (
        (Fault(signal.SIGTERM, (1,)), ()),  # both save and end
        (Fault(signal.SIGKILL, (0,)), ()),  # one is lost
        (Fault(None, (1,)), pytest.mark.slow),
        (Fault(signal.SIGKILL, (0,), start=True), pytest.mark.slow),
    )
]


@pytest.mark.parametrize("fault", REPRESENTATIVE)
def test_a_fault_ends_all_processes(fault: Fault, tmp_path: Path, phantoms: Path) -> None:
    run = check(fault, tmp_path, phantoms)
    if not fault.start:
        checkpoints = tmp_path / "cdpm" / "checkpoints"
        before = newest(checkpoints)
        assert before is not None
        more = int(before.stem.removeprefix("step_")) + 1
        assert run.tiny.fit("--ckpt_path=last", f"--trainer.max_steps={more}", "--trainer.val_check_interval=1") == 0
        assert newest(checkpoints) == checkpoints / f"step_{more:07d}.ckpt"
        assert not list(tmp_path.rglob("*.part"))


def many() -> list[Fault]:
    """Forty-six more: with those above, fifty."""
    faults = [
        Fault(signum, ranks, seed=seed)
        for signum, ranks, num in (
            (signal.SIGTERM, (0,), 4),
            (signal.SIGTERM, (1,), 4),
            (signal.SIGTERM, (0, 1), 4),
            (signal.SIGUSR1, (0,), 2),
            (signal.SIGUSR1, (1,), 2),
            (signal.SIGINT, (0,), 1),
            (signal.SIGINT, (1,), 2),
            (signal.SIGINT, (0, 1), 2),
            (signal.SIGKILL, (0,), 3),
            (signal.SIGKILL, (1,), 4),
        )
        for seed in range(1, num + 1)
    ]
    faults += [
        Fault(None, (rank,), ours=ours, seed=seed) for rank in (0, 1) for ours in (False, True) for seed in (1, 2)
    ]
    faults += [Fault(signal.SIGKILL, (rank,), start=True, seed=seed) for rank in (0, 1) for seed in (1, 2)]
    faults += [
        Fault(signum, ranks, torchrun=True)
        for signum, ranks in (
            (signal.SIGTERM, (0,)),
            (signal.SIGTERM, (1,)),
            (signal.SIGUSR1, (1,)),
            (signal.SIGKILL, (0,)),
            (signal.SIGKILL, (1,)),
            (None, (1,)),
        )
    ]
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("fault", many(), ids=str)
def test_many_faults(fault: Fault, tmp_path: Path, phantoms: Path) -> None:
    check(fault, tmp_path, phantoms)
