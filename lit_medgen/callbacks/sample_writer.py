"""Writes samples as they are made, and a manifest that says how each came to be."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lit_medgen.batch import Request, Requests
from lit_medgen.callbacks.sample_audit import FOLDER, SampleAudit
from lit_medgen.evaluation.audit import output_files
from lit_medgen.files import file_hash
from lit_medgen.loading import config_hash
from lit_medgen.sample_files import (
    Format,
    SampleFile,
    categories_by_name,
    format_for,
    sample_files,
    sample_names,
    write_manifest,
)
from lit_medgen.sampling import origin
from lit_medgen.training.generator import Generator

UNFINISHED = "none: unfinished"
"""What the manifest says while the audit is being made."""


class SampleWriter(BasePredictionWriter):
    """One file for each sample (in DICOM one folder), named by its seed; at the end manifest, config and spec.

    What is made from a patient's image is called so in names, manifest and headers.

    Args:
        folder: where to.
        format: nifti (volumes), png (2D images) or dicom (either); None: nifti or png, whichever fits.
        requests: all that is asked for, over all processes.
        checkpoint: the checkpoint the model came from.
        audit: looks for copies of training people among the files; what the manifest says where it is not made.

    Attributes:
        seconds: that all samples took, their files included.
    """

    def __init__(
        self,
        folder: Path,
        format: Format | None,
        requests: Requests,
        checkpoint: Path,
        audit: SampleAudit | str = "none",
    ) -> None:
        super().__init__(write_interval="batch")
        self.audit = audit
        self.folder, self.format, self.requests, self.checkpoint = folder, format, requests, checkpoint
        self.origin = origin(requests.of_patients)
        self.names = sample_names(requests.seeds, self.origin)
        self.seconds, self._start, self._num_written = 0.0, time.perf_counter(), 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """InputError if the format cannot hold what the model makes, or the folder holds what `sample` did not write.

        A folder holds one set of samples: those of an earlier run go.
        """
        assert isinstance(pl_module, Generator)
        self.format = format_for(pl_module.needed_spec(), self.format)
        if trainer.is_global_zero:
            outputs = sample_files(self.folder, self.names, self.format)
            earlier_audit = output_files(self.folder / FOLDER)
            earlier_audit.check()
            outputs.claim()
            earlier_audit.clear()
            outputs.clear()
        _meet()  # no process writes before the folder is cleared
        self._start = time.perf_counter()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Request,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the samples of one batch."""
        assert isinstance(pl_module, Generator)
        assert self.format is not None
        self.folder.mkdir(parents=True, exist_ok=True)  # a process on another machine may have a disk of its own
        file = self._file(pl_module)
        for number, image in enumerate(prediction):
            index = trainer.global_rank + trainer.world_size * self._num_written
            file.write(self.folder, self.names[index], image, None if batch.affine is None else batch.affine[number])
            self._num_written += 1

    def _file(self, model: Generator) -> SampleFile:
        """How an image of the model becomes a file."""
        assert self.format is not None
        return SampleFile(self.format, model.needed_spec(), self.origin, self.checkpoint_hash)

    @cached_property
    def checkpoint_hash(self) -> str:
        """SHA-256 of the checkpoint, read once."""
        return file_hash(self.checkpoint)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The manifest, by the first process; all files follow from the requests."""
        self.seconds = time.perf_counter() - self._start
        _meet()  # the files of all processes are there
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Generator)
        assert self.format is not None
        self._write_manifest(pl_module, UNFINISHED if isinstance(self.audit, SampleAudit) else self.audit)
        if isinstance(self.audit, SampleAudit):
            self._write_manifest(pl_module, self.audit(self.folder))
        sample_files(self.folder, self.names, self.format).end()

    def _write_manifest(self, model: Generator, audit: str) -> None:
        same = {
            "checkpoint_sha256": self.checkpoint_hash,
            "config_sha256": config_hash(model.config),
            "audit": audit,
        }
        file = self._file(model)
        rows = [
            {
                "file": file.named(name),
                "seed": seed,
                "kind": self.origin,
                "condition": json.dumps(made_from) if made_from else "",
                "categories": json.dumps(named) if (named := categories_by_name(made_from, file.spec)) else "",
            }
            | same
            for name, seed, made_from in zip(self.names, self.requests.seeds, self.requests.made_from, strict=True)
        ]
        write_manifest(self.folder, rows, model.config, model.needed_spec())


def _meet() -> None:
    """Waits for the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
