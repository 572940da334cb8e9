"""A data loader that names the sample its workers failed on.

PyTorch names the process of a worker that died, and nothing at all when one hangs. Here every worker notes in shared
memory which sample it is reading, so the training process can say which it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_modules.order import Place
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError, WorkerError, describe

IDLE = -1


class WatchedDataset(Dataset[Batch], ABC):
    """Samples by place; the place being read is known to the training process too."""

    def __init__(self) -> None:
        self._reading = torch.empty(0, 2, dtype=torch.int64)

    @abstractmethod
    def read(self, place: Place) -> Batch:
        """One sample."""

    @abstractmethod
    def name(self, place: Place) -> str:
        """What an error calls it: a file of the store."""

    def __getitem__(self, place: Place) -> Batch:
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = torch.tensor(place)
        try:
            return self.read(place)
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.name(place)}: cannot be read ({describe(error)}); run `prepare --verify`."
            ) from None
        finally:
            if worker is not None:
                self._reading[worker.id] = IDLE

    def watch(self, num_workers: int) -> None:
        """Called before the workers start: makes room for their notes."""
        self._reading = torch.full((num_workers, 2), IDLE).share_memory_()

    def being_read(self) -> list[str]:
        """Names of the samples that workers are at."""
        return [self.name((position, index)) for position, index in self._reading.tolist() if position != IDLE]


class WatchedLoader(DataLoader[Batch]):
    """PyTorch's loader; a worker that dies or hangs is a `WorkerError` that names the sample."""

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        assert isinstance(self.dataset, WatchedDataset)
        self.dataset.watch(self.num_workers)
        return self._watched(super().__iter__())

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except InputError:
                raise
            except RuntimeError as error:
                raise self._named(error) from error

    def _named(self, error: RuntimeError) -> WorkerError:
        assert isinstance(self.dataset, WatchedDataset)
        reading = ", ".join(self.dataset.being_read()) or "no sample"
        what = "hangs" if "timed out" in str(error) else "died"
        return WorkerError(
            f"a data worker {what} ({describe(error)[:200]}); being read: {reading}. Continue with --ckpt_path last; "
            "data.init_args.num_workers=0 reads in the training process."
        )
