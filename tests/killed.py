"""Runs in a child process that can be killed at any moment; the parent has imported everything, so a start is quick."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from lit_medgen import files
from lit_medgen.__main__ import main
from lit_medgen.trainer import Trainer

Aim = Callable[[], None]
"""Arms the child to kill itself at a chosen moment."""


def run_in_child(args: list[str], log: Path, aim: Aim | None = None, after: float | None = None) -> int:
    """Exit code of the command line, negative for a signal; SIGKILL after some seconds if asked for."""
    child = os.fork()
    if child == 0:
        _child(args, log, aim)
    timer = threading.Timer(after, os.kill, (child, signal.SIGKILL)) if after is not None else None
    if timer:
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer:
        timer.cancel()
    return os.waitstatus_to_exitcode(status)


def _child(args: list[str], log: Path, aim: Aim | None) -> NoReturn:
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.setsid()  # data workers go with it
        torch.set_num_threads(1)
        if aim:
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
