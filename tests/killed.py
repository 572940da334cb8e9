"""Runs in a child process that can be killed at any moment; the parent has imported everything, so a start is quick."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_medgen import files
from lit_medgen.__main__ import main
from lit_medgen.trainer import Trainer

Aim = Callable[[], None]
"""Arms the child to kill itself at a chosen moment."""


def run_in_child(args: list[str], log: Path, aim: Aim | None = None, after: float | None = None) -> int:
    """Exit code of the command line, negative for a signal; SIGKILL after some seconds if asked for."""
    child = _forked(args, log, aim or (lambda: None))
    timer = threading.Timer(after, os.kill, (child, signal.SIGKILL)) if after is not None else None
    if timer:
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer:
        timer.cancel()
    return os.waitstatus_to_exitcode(status)


def run_on_two(args: list[str], log: Path, port: str, seconds: float = 300) -> list[int]:
    """Exit codes of the command line on two processes that train together, as torchrun would start them.

    If one fails, or both take longer than so many seconds, all are killed.
    """
    children = {_forked(args, log, partial(_take_rank, rank, port)): rank for rank in range(2)}
    codes, end = [0, 0], time.monotonic() + seconds
    while children:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if any(codes) or time.monotonic() > end:
            for child in children:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return codes


def _take_rank(rank: int, port: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    rank_zero_only.rank = rank  # as an import with this environment sets it


def _forked(args: list[str], log: Path, aim: Aim) -> int:
    child = os.fork()
    if child == 0:
        _child(args, log, aim)
    return child


def _child(args: list[str], log: Path, aim: Aim) -> NoReturn:
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
        os.setsid()  # data workers go with it
        torch.set_num_threads(1)
        aim()
        code = main(args)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_write(name: str, num_bytes: float) -> Aim:
    """Dies in the middle of writing a file of that name, once so many bytes are out."""

    def aim() -> None:
        write = files.HashingFile.write

        def deadly(self: files.HashingFile, content: bytes | memoryview) -> int:
            written = write(self, content)
            self._file.flush()
            if name in str(self._file.name) and self._file.tell() >= num_bytes:
                die()
            return written

        files.HashingFile.write = deadly  # type: ignore[method-assign]

    return aim


def at_rename(name: str, before: bool) -> Aim:
    """Dies just before or after a file gets its final name."""

    def aim() -> None:
        replace = Path.replace

        def deadly(self: Path, target: str | Path) -> Path:
            if Path(target).name == name and before:
                die()
            renamed = replace(self, target)
            if Path(target).name == name:
                die()
            return renamed

        Path.replace = deadly  # type: ignore[method-assign, assignment]

    return aim


def at_boundary(step: int, before: bool) -> Aim:
    """Dies between two steps, before or after the boundary does its work."""

    def aim() -> None:
        boundary = Trainer.step_boundary

        def deadly(self: Trainer) -> None:
            if self.global_step == step and before:
                die()
            boundary(self)
            if self.global_step == step:
                die()

        Trainer.step_boundary = deadly  # type: ignore[method-assign]

    return aim
