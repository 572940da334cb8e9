"""Loaders of a data module in an order that is a function of (seed, position), from the position a run has reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.loader import StoreDataset, WatchedLoader
from data_modules.order import Order, PositionBatches, balanced
from data_modules.records import Record, known_values
from data_modules.splits import Split
from data_modules.views import View
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError

MAX_VALUES = 50
"""Of an attribute by which training samples are balanced; one with more is no code but a measure."""


class ResumableLoaders(L.LightningDataModule, ABC):
    """Training batches without an end, and those of validation and test in order; arguments: `MedicalDataModule`'s."""

    batch_size: int  # public, so that Lightning's batch size scaling finds it

    def __init__(
        self,
        view: View[Any],
        batch_size: int,
        num_workers: int,
        worker_timeout_s: float,
        seed: int,
        balance: str | None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.init_args.batch_size is {batch_size}; give at least 1.")
        if num_workers < 0:
            raise InputError(f"data.init_args.num_workers is {num_workers}; give 0 (no worker processes) or more.")
        self.view, self.batch_size, self.num_workers = view, batch_size, num_workers
        self.worker_timeout_s, self.seed, self.balance = worker_timeout_s, seed, balance
        self.records: dict[Split, list[Record]] = {}
        self._first_position = self._first_batch = 0

    @abstractmethod
    def dataset(self, split: Split) -> StoreDataset:
        """The data set of a split."""

    def weights(self, records: Sequence[Record]) -> np.ndarray | None:
        """How often each training image is shown, as shares; None: each as often. By `balance` unless overridden.

        Images of which the attribute is not known are together one value more.
        """
        if self.balance is None:
            return None
        if self.balance not in records[0].attributes:
            known = ", ".join(records[0].attributes) or "none"
            raise InputError(f"data.init_args.balance is '{self.balance}'; attributes of this data set: {known}.")
        if (num := len(known_values(records).get(self.balance, ()))) > MAX_VALUES:
            raise InputError(
                f"data.init_args.balance is '{self.balance}', which has {num} values; give an attribute of at most "
                f"{MAX_VALUES}."
            )
        return balanced([record.attributes[self.balance] for record in records])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless batches, from the position that the run has reached."""
        self._first_batch = self._num_batches()
        dataset = self.dataset("train")
        order = Order(len(dataset), self.seed, self.weights(dataset.records))
        rank, world_size = self._rank_and_world_size()
        batches = PositionBatches(order, self.batch_size, rank, world_size, self._first_position)
        return self._loader(dataset, batch_sampler=batches)

    def state_dict(self) -> dict[str, int]:
        """Position in the order of samples, which is what a resumed run needs, on however many processes."""
        batches = self._num_batches() - self._first_batch
        return {"position": self._first_position + batches * self._rank_and_world_size()[1] * self.batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Starts from a saved position; called before the loaders are made."""
        self._first_position = state_dict["position"]

    def order(self) -> dict[str, Any]:
        """What decides, with the position in the run, which samples a step sees."""
        decisive = {"seed": self.seed, "batch_size": self.batch_size, "view": self.view, "balance": self.balance}
        return {**decisive, "images": len(self.records["train"])}

    def _num_batches(self) -> int:
        """Batches that the run has taken since its beginning."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed if self.trainer else 0

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation people, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test people, in order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> DataLoader[Batch]:
        rank, world_size = self._rank_and_world_size()
        samples = [(index, index) for index in range(rank, len(self.records[split]), world_size)]
        return self._loader(self.dataset(split), batch_size=self.batch_size, sampler=samples)

    def _loader(self, dataset: StoreDataset, **order: Any) -> DataLoader[Batch]:
        """The batches of a data set, in an order given by a sampler."""
        return WatchedLoader(
            dataset,
            **order,
            num_workers=self.num_workers,
            collate_fn=Batch.join,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=self.worker_timeout_s if self.num_workers else 0,
        )
