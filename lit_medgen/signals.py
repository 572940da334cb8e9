"""Ctrl-C and SIGTERM have one meaning everywhere: end in order, say so in one line, exit with 128 + the signal.

While modules are imported there is nothing to end, so the process exits at once; temporary folders go with it. While a
verb works, `Stop` unwinds it, so that files are whole or not there. While a run trains, `stopping.Signals` takes over:
the step ends, the run saves.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn

HEEDED = (signal.SIGINT, signal.SIGTERM)

_TEMPORARY: set[str] = set()
"""Temporary folders that are there."""

Handler = Callable[[int, FrameType | None], object]


class Stop(BaseException):
    """Raised in the main thread by a signal; no `except Exception` on its way takes it for a fault of an image."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def end_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """Handler while modules are imported: an exception would show as a traceback, and leave half a module behind."""
    for folder in _TEMPORARY:
        shutil.rmtree(folder, ignore_errors=True)
    os.write(2, f"stopped: {signal.Signals(signum).name}; give the same command again.\n".encode())
    os._exit(128 + signum)


def raise_stop() -> Handler:
    """A handler that raises `Stop`, once: a second signal must not disturb what the first one tidies up."""
    owner = os.getpid()

    def handler(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data worker, which ends with its owner
            return
        if _imports(frame):
            end_at_once(signum, frame)
        for heeded in HEEDED:
            signal.signal(heeded, signal.SIG_IGN)
        raise Stop(signum)

    return handler


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported somewhere below."""
    return any(each.f_code.co_filename == "<frozen importlib._bootstrap>" for each, _ in traceback.walk_stack(frame))


@contextmanager
def heeding(handler: Handler | signal.Handlers, signums: Sequence[signal.Signals] = HEEDED) -> Iterator[None]:
    """Inside, this handler takes these signals, but not those ignored before (in a shell's background job)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in signums}
    heeded = [signum for signum, known in before.items() if known != signal.SIG_IGN]
    for signum in heeded:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum in heeded:
            signal.signal(signum, before[signum])


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder that is gone at the end, also where a signal ends the process while modules are imported.

    Args:
        prefix: of its name.
        parent: where it lies; None: where the system puts temporary files.
    """
    with TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        _TEMPORARY.add(folder)
        try:
            yield Path(folder)
        finally:
            _TEMPORARY.discard(folder)


def unheard_by_children() -> AbstractContextManager[None]:
    """Processes that are started inside never hear of Ctrl-C, which a terminal sends to all; their owner ends them."""
    # Ignored, which processes inherit; to block the signal does not last, since joblib unblocks it on its way.
    return heeding(signal.SIG_IGN, [signal.SIGINT])
