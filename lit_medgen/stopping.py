"""Ending a run in order: signals, agreement between processes, lost processes, the cluster's requeue.

A signal only sets a flag. At the border after every step all processes agree on the highest flag and on whether a
checkpoint is due, so that all of them save and end at the same step, whichever of them was signalled (Lightning saves
inside the handler, in the middle of a step, and hangs when one process alone gets the signal).

Each process also listens to the next one, in a ring. When a process ends without a farewell, its listener ends too,
and so on around the ring: a lost process ends all within moments, whatever collective the others are waiting in.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_medgen.errors import Interrupted, RunError, describe

STOPPING = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""In rising order: of several signals at once, SIGTERM decides."""

FOREVER = timedelta(days=365)
PATIENCE = timedelta(hours=2)
"""How long processes wait for one that works alone: it draws a sample grid, makes codes, writes a report. PyTorch's own
10 to 30 minutes would end the run. A process that is lost needs no timeout: its listener tells all."""
FAULT = "lit_medgen/fault"
PARENT = "LIT_MEDGEN_PARENT"
"""Environment variable: the process that Lightning's launcher runs in."""


class Signals(_SignalConnector):
    """Notes a signal while a run trains; the step goes on to its end, then the run saves, however often it comes."""

    received: int = 0
    owner: int = 0
    """The process that trains; its data workers inherit the handler."""

    def register_signal_handlers(self) -> None:
        """Called by Lightning before the first step."""
        if self.trainer.state.fn == "fit":
            self.owner = os.getpid()
            self._original_handlers = {signum: signal.getsignal(signum) for signum in STOPPING}
            for signum in STOPPING:
                self._register_signal(signum, self._note)

    def expect_requeue(self) -> None:
        """Under SLURM, a signal that comes while the run is still being set up requeues it after the first step."""
        if isinstance(self.trainer._accelerator_connector.cluster_environment, SLURMEnvironment):
            self._register_signal(signal.SIGUSR1, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self.owner and not self.received and self.trainer.is_global_zero:
            message = (
                f"{signal.Signals(signum).name}: the step ends, then the run saves and stops; no need to repeat it"
            )
            hurry = " (Ctrl-\\ ends it at once, unsaved)" if signum == signal.SIGINT else ""
            os.write(2, f"{message}{hurry}.\n".encode())  # print may be interrupted in itself
        self.received = max(self.received, signum)


class Peers:
    """The other processes of a run: agreement with them, and a watch over them. Alone, it does nothing."""

    def __init__(self) -> None:
        self.together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._failing = False
        if self.together:
            self.rank, num = dist.get_rank(), dist.get_world_size()
            self._next, self._previous = (self.rank + 1) % num, (self.rank - 1) % num
            # gloo on the CPU, whatever the gradients use: no accelerator waits for these few bytes.
            self._agreement = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._ring = dist.new_group(backend="gloo", timeout=FOREVER)
            self._listener = threading.Thread(target=self._listen, daemon=True, name="peers")

    def max(self, flags: Sequence[int]) -> list[int]:
        """The highest value of each flag over all processes."""
        if not self.together:
            return list(flags)
        values = torch.tensor(flags)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._agreement)
        return [int(value) for value in values]

    def __enter__(self) -> Self:
        if self.together:
            self._listener.start()
            _end_with_parent(False)  # the listener ends this process too, and says why
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.together:
            self._part(error)
            # Not before: a process that is being killed closes its connections first, and would take its children
            # with it before they have said why they end.
            _end_with_parent(True)

    def _part(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, Interrupted):  # all processes end here, at the same step
            dist.send(torch.zeros(1), self._previous, group=self._ring)
            self._listener.join()
            return
        if not isinstance(error, RunError):
            # A collective fails when a peer is lost: then the listener has the better words, and ends this process.
            self._listener.join(timeout=2)
        self._failing = True
        code, what = 1, describe(error)[:200]
        if isinstance(error, RunError):  # of these, the command line tells; the store may end with this process
            code = error.exit_code
        else:
            what = f"{type(error).__name__}: {what}"
            print(f"error: rank {self.rank}: {what}", file=sys.stderr, flush=True)
        dist.distributed_c10d._get_default_store().set(FAULT, f"{self.rank} {code} {what}")

    def _listen(self) -> None:
        try:
            dist.recv(torch.zeros(1), self._next, group=self._ring)
        except RuntimeError:
            if not self._failing:
                self._end()

    def _end(self) -> None:
        rank, code, what = self._next, 1, "was lost"
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set_timeout(timedelta(seconds=1))
            if store.check([FAULT]):
                first, second, text = store.get(FAULT).decode().split(" ", 2)
                rank, code, what = int(first), int(second), f"failed ({text})"
        except (RuntimeError, ValueError):
            pass  # the store lived in the process that was lost
        print(
            f"error: rank {self.rank}: rank {rank} {what}; ending. The run continues from its newest checkpoint with "
            "--ckpt_path last.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(code or 1)


def interrupted(trainer: Trainer, signum: int, saved: str) -> Interrupted:
    """What ends a run after a signal; under SLURM, SIGUSR1 (before the time limit) and preemption requeue the job."""
    environment = trainer._accelerator_connector.cluster_environment
    code, then = 128 + signum, "the same command with --ckpt_path last continues"
    if isinstance(environment, SLURMEnvironment) and trainer.is_global_zero:
        if signum == signal.SIGUSR1 or (signum == signal.SIGTERM and preempted()):
            fault = requeue()
            then = "the job is requeued" if fault is None else f"the job could not be requeued: {fault}"
            code = 0 if fault is None else code
    elif isinstance(environment, LightningEnvironment | SLURMEnvironment) and trainer.global_rank > 0:
        code = 0  # Lightning's launcher and `srun` would kill the first process, whose code counts, for any other
    return Interrupted(f"{signal.Signals(signum).name} after step {trainer.global_step}; {saved}; {then}.", code)


def preempted() -> bool:
    """Whether this job has a time of grace before it is preempted; SLURM requeues only a job that outlives it."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", _job()], check=True, capture_output=True, text=True, timeout=60
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return False
    return "JobState=RUNNING" in shown and "PreemptTime=None" not in shown


def requeue() -> str | None:
    """Has SLURM start this job again; returns what went wrong, if anything did."""
    job = _job()
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        return f"SLURM_JOB_ID is {job!r}"
    # SLURM signals all of the job, this command too, which may not have heard by then that it succeeded.
    command = ["sh", "-c", 'trap "" TERM; exec scontrol requeue "$0"', job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        return describe(RuntimeError(error.stderr))
    except (OSError, subprocess.TimeoutExpired) as error:
        return describe(error)
    return None


def _job() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def die_with_parent() -> None:
    """A process that Lightning's launcher started ends with it, also before they are connected (Linux)."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        os.environ[PARENT] = str(os.getpid())  # for those that this process will start
    elif PARENT in os.environ:
        _end_with_parent(True)
        if os.getppid() != int(os.environ[PARENT]):  # lost before the line above
            os.kill(os.getpid(), signal.SIGKILL)


def _end_with_parent(on: bool) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and PARENT in os.environ:
        end_with_parent(on)


def end_with_parent(on: bool = True) -> None:
    """This process is killed as soon as the one that started it ends (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL if on else 0)
