"""A data loader that names the sample its workers failed on.

PyTorch names the process of a worker that died, and nothing at all when one hangs. Here every worker notes in shared
memory which sample it is reading, so the training process can say which it was.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_modules.order import Place
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError, WorkerError, describe

IDLE = -1


class WatchedDataset(Dataset[Batch], ABC):
    """Samples by place; the place being read is known to the training process too."""

    def __init__(self) -> None:
        self._reading = torch.empty(0, 3, dtype=torch.int64)  # for each worker: its process, position, index

    @abstractmethod
    def read(self, place: Place) -> Batch:
        """One sample."""

    @abstractmethod
    def name(self, place: Place) -> str:
        """What an error calls it: a file of the store."""

    def __getitem__(self, place: Place) -> Batch:
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = torch.tensor([os.getpid(), *place])
        try:
            sample = self.read(place)
        except InputError:  # the store's, which names the file
            raise
        except Exception as error:
            if worker is None:
                raise
            # By the time the training process hears of it, this worker reads another sample.
            raise WorkerError(
                f"a data worker failed ({type(error).__name__}: {describe(error)}); being read: {self.name(place)}. "
                "--debug shows the traceback."
            ) from error
        if worker is not None:
            self._reading[worker.id, 1] = IDLE
        return sample

    def watch(self, num_workers: int) -> None:
        """Called before the workers start: makes room for their notes, once, since they may outlive an epoch."""
        if len(self._reading) != num_workers:
            self._reading = torch.full((num_workers, 3), IDLE).share_memory_()

    def being_read(self) -> list[tuple[int, str]]:
        """Process of a worker and name of the sample it is at."""
        return [(pid, self.name((position, index))) for pid, position, index in self._reading.tolist() if position >= 0]


class WatchedLoader(DataLoader[Batch]):
    """PyTorch's loader; a worker that dies or hangs is a `WorkerError` that names the sample."""

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        assert isinstance(self.dataset, WatchedDataset)
        self.dataset.watch(self.num_workers)
        _watched.add(self.dataset)
        batches = super().__iter__()
        _name_dead_workers()
        return self._watched(batches)

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except (InputError, WorkerError) as error:
                # PyTorch puts the worker's whole traceback into the text, with the error itself at its end.
                raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2]) from error
            except RuntimeError as error:
                assert isinstance(self.dataset, WatchedDataset)
                raise _named(error, [self.dataset]) from error
            except (EOFError, ConnectionError, FileNotFoundError) as error:  # it died while handing over a batch
                assert isinstance(self.dataset, WatchedDataset)
                broken = RuntimeError(f"its connection broke off: {type(error).__name__}")
                raise _named(broken, [self.dataset]) from error


_watched: WeakSet[WatchedDataset] = WeakSet()


def _named(error: RuntimeError, datasets: Iterable[WatchedDataset]) -> WorkerError:
    text = describe(error)
    reading = [note for dataset in datasets for note in dataset.being_read()]
    dead = {int(pid) for pids in re.findall(r"pid(?:\(s\))? ([\d, ]+)", text) for pid in pids.split(",")}
    names = ", ".join(sorted({name for pid, name in reading if pid in dead or not dead})) or "no sample"
    what = "hangs" if "timed out" in text else "died"
    return WorkerError(
        f"a data worker {what} ({text[:200]}); being read: {names}. Continue with --ckpt_path last; "
        "data.init_args.num_workers=0 reads in the training process."
    )


def _name_dead_workers() -> None:
    """PyTorch raises in its handler of SIGCHLD, so in the middle of any line of a step: that error gets a name too."""
    theirs: Any = getattr(signal, "SIGCHLD", None) and signal.getsignal(signal.SIGCHLD)
    if not callable(theirs) or isinstance(theirs, _Handler) or threading.current_thread() != threading.main_thread():
        return
    signal.signal(signal.SIGCHLD, _Handler(theirs))


class _Handler:
    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        try:
            self.theirs(signum, frame)
        except RuntimeError as error:
            raise _named(error, _watched) from error
