"""A data loader that names the sample its workers failed on.

PyTorch names the process of a worker that died, and nothing at all when one hangs. Here every worker notes in shared
memory which sample it is reading, so the training process can say which it was.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_modules.augmenter import Augmenter
from data_modules.items import Items, Latents
from data_modules.order import Sample
from data_modules.records import Record
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError, WorkerError, describe
from lit_medgen.seeds import mix

IDLE = -1
CHECK_S = 0.5
"""How often the training process looks after its workers while it waits for a batch."""


class StoreDataset(Dataset[Batch]):
    """Records of a store as batches of one; the sample being read is known to the training process too.

    Args:
        items: reads them.
        records: the records of one split.
        seed: with the position it decides what the view shows.
        latents: gives the latents of a batch, whose images are then not read; None: they are.
        draws_texts: whether any text of an image that has several may be read, or the first alone.
        augmenter: draws what is done to each item; None: nothing.
    """

    def __init__(
        self,
        items: Items,
        records: Sequence[Record],
        seed: int,
        latents: Latents | None = None,
        draws_texts: bool = False,
        augmenter: Augmenter | None = None,
    ) -> None:
        self.items, self.records, self.seed, self.latents = items, list(records), seed, latents
        self.draws_texts, self.augmenter = draws_texts, augmenter
        self._reading = torch.empty(0, 3, dtype=torch.int64)  # for each worker: its process, position, index

    def __len__(self) -> int:
        return len(self.records)

    def read(self, sample: Sample) -> Batch:
        """The sample at a position of the order."""
        position, index = sample
        random = np.random.default_rng(mix("slices", self.seed, position))
        record = self.records[index]
        choice = mix("text", self.seed, position) if self.draws_texts else 0
        selection = self.items.view.draw(self.items.grid, record, random)
        drawn = self.augmenter.at(position) if self.augmenter else None
        return self.items.batch(record, selection, self.latents, choice, drawn)

    def name(self, sample: Sample) -> str:
        """The file of the store that a sample is read from, which an error names."""
        return str(self.items.store.path(self.records[sample[1]]))

    def __getitem__(self, sample: Sample) -> Batch:
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = torch.tensor([os.getpid(), *sample])
        try:
            batch = self.read(sample)
        except InputError:  # the store's, which names the file
            raise
        except Exception as error:
            if worker is None:
                raise
            # By the time the training process hears of it, this worker reads another sample.
            raise WorkerError(
                f"a data worker failed ({type(error).__name__}: {describe(error)}); being read: {self.name(sample)}. "
                "--debug shows the traceback."
            ) from error
        if worker is not None:
            self._reading[worker.id, 1] = IDLE
        return batch

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
        assert isinstance(self.dataset, StoreDataset)
        self.dataset.watch(self.num_workers)
        return self._watched(super().__iter__())

    def _get_iterator(self) -> Any:
        return _Batches(self) if self.num_workers else super()._get_iterator()

    def _watched(self, batches: Any) -> Iterator[Batch]:
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except (InputError, WorkerError, RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
                named = self._named(error)
                batches._shutdown_workers()
                self._iterator = None  # workers that persist have ended, so a next epoch starts others
                raise named from error

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, (InputError, WorkerError)):
            # PyTorch puts the worker's whole traceback into the text, with the error itself at its end.
            return type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2])
        # Where a worker dies while it hands over a batch, PyTorch says nothing of a worker.
        broken = f"its connection broke off: {type(error).__name__}"
        text = describe(error) if isinstance(error, RuntimeError) else broken
        assert isinstance(self.dataset, StoreDataset)
        reading = self.dataset.being_read()
        dead = {int(pid) for pids in re.findall(r"pid(?:\(s\))? ([\d, ]+)", text) for pid in pids.split(",")}
        names = ", ".join(sorted({name for pid, name in reading if pid in dead or not dead})) or "no sample"
        what = "hangs" if "timed out" in text else "died"
        return WorkerError(
            f"a data worker {what} ({text[:200]}); being read: {names}. Continue with --ckpt_path last; "
            "data.init_args.num_workers=0 reads in the training process."
        )


class _Batches(_MultiProcessingDataLoaderIter):
    """PyTorch's batches of workers, where a death is told only to who waits for a batch.

    PyTorch tells it in a signal handler, in the middle of any line of the training process. If another worker is just
    handing over a batch there, its connection breaks and it prints a traceback of its own.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        super().__init__(loader)
        _remove_worker_pids(id(self))  # of what the handler looks after
        self._worker_pids_set = False

    def _try_get_data(self, timeout: float = CHECK_S) -> tuple[bool, Any]:
        """Looks after the workers each time that no batch has come for `CHECK_S`."""
        end = time.monotonic() + timeout
        while True:
            come, batch = super()._try_get_data(min(CHECK_S, max(0, end - time.monotonic())))
            if come or time.monotonic() >= end:
                return come, batch
