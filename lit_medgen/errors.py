"""The one-line error: what was found, what was expected, what to do.

A `RunError` ends the program with its own exit code and its text as one line; a traceback appears only with
``--debug``. A mistake in a config, a file or a command is an `InputError`. Everything else is a fault of ours and
keeps its traceback.
"""

from __future__ import annotations

import errno
import math
import re
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")


class RunError(Exception):
    """Ends the program with one line."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(RunError, ValueError):
    """Bad input: a key, value or file that the user can mend."""

    exit_code = 2


class MissingDataError(InputError, FileNotFoundError):
    """Data that is not where the config says; the text names the way to get it."""

    def __str__(self) -> str:
        # OSError formats its own arguments, which would hide ours.
        return str(self.args[0])


class NoSpaceError(RunError):
    """No room for a file; what stood there before is untouched."""

    exit_code = 3


class NonFiniteError(RunError):
    """A loss or gradient is NaN or infinite; raised before the weights have changed."""

    exit_code = 4


class WorkerError(RunError):
    """A data worker died, failed or hangs; the text names the sample it was reading."""


class Interrupted(RunError):  # noqa: N818 (no error)
    """Stopped by a signal, after a save: 128 and the signal's number; 0 if the cluster will start the job again."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def space_for(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """`NoSpaceError`, naming the file and the bytes it needs, if disk, quota or file size limit is exhausted."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        needed = "" if num_bytes is None else f", {num_bytes:,} bytes needed"
        raise NoSpaceError(
            f"{error.filename or path}: no space ({errno.errorcode[error.errno]}{needed}); free some, then give the "
            "same command again."
        ) from error


def raise_fault_of_machine(error: Exception, image: Path, written: Path | None = None) -> None:
    """Raises what an image cannot be blamed for: a full or broken disk, no memory, a folder that cannot be written.

    The error was raised while an image (or a folder of images) was looked for, read, prepared and perhaps `written`.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            raise cause
        if isinstance(cause, OSError) and cause.errno in OF_MACHINE:
            raise RunError(f"{image}: the disk or the system fails ({describe(cause)}); mend that first.") from error
        path = cause.filename if isinstance(cause, OSError) and isinstance(cause.filename, str) else ""
        if written and written in Path(path).parents:
            raise RunError(f"{path}: cannot be written ({describe(error)}); mend that first.") from error
        if isinstance(cause, MemoryError) and _num_bytes(cause) <= CLAIM:
            raise RunError(
                f"no memory left while {image} was prepared ({describe(cause)}); free some, or give a smaller "
                "data.init_args.num_jobs, then give the same command again."
            ) from error
        cause = cause.__cause__ or cause.__context__


def _num_bytes(error: MemoryError) -> int:
    """What was asked for where NumPy says it; 0 where nothing does."""
    shape, dtype = getattr(error, "shape", ()), getattr(error, "dtype", None)
    return math.prod(shape) * dtype.itemsize if dtype is not None else 0


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OF_MACHINE = (errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
"""Error numbers of a disk, a share or a system that fails."""
CLAIM = 8 * 1024**3
"""Bytes: an image that asks for more at once claims a size that it does not have."""


def describe(error: BaseException) -> str:
    """The text of any exception as one line; its class name if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def constructed(make: Callable[[], Made]) -> Made:
    """What `make` makes; a value that a constructor refuses is one line, its own, which jsonargparse buries."""
    try:
        return make()
    except RunError:
        raise
    except (ValueError, TypeError) as error:
        refusal: BaseException = error
        while _is_of_parser(refusal) and (deeper := refusal.__cause__ or refusal.__context__) is not None:
            refusal = deeper
        if isinstance(refusal, RunError):
            raise refusal from error
        raise InputError(describe(refusal)) from error


def _is_of_parser(error: BaseException) -> bool:
    """Whether jsonargparse raised it; what a constructor says from an error of its own is not looked through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]  # none of a cause that was never raised
    return bool(frames) and str(frames[-1].f_globals["__name__"]).startswith("jsonargparse")


def with_nearest(message: str, parser: ArgumentParser) -> str:
    """A parser's message; where it is of an option that there is not, with the nearest that there is."""
    mistyped = re.search(r"unrecognized arguments: (--[\w.-]+)", message)
    known = [option for action in parser._actions for option in action.option_strings]
    near = get_close_matches(mistyped[1], known, 1) if mistyped else []
    return f"{message}; did you mean {near[0]}?" if near else message
