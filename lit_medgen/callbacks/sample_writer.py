"""Writes samples as they are made, and a manifest that says how each came to be."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.checkpoints import config_hash
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.files import file_hash, write_atomically
from lit_medgen.images.nifti import read_nifti, write_nifti
from lit_medgen.images.png import read_png, write_png
from lit_medgen.methods.base import Generator, Requests

Format = Literal["nifti", "png"]


class SampleWriter(BasePredictionWriter):
    """One file for each sample, named by its seed, and at the end `manifest.csv`, `config.yaml`, `spec.json`.

    Args:
        folder: where to.
        format: nifti (volumes) or png (2D images); None: whichever fits.
        asked: all that was asked for, over all processes.
        checkpoint: the checkpoint the model came from.
    """

    def __init__(self, folder: Path, format: Format | None, asked: Requests, checkpoint: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.format, self.asked, self.checkpoint = folder, format, asked, checkpoint
        self.seconds, self._start = 0.0, time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """InputError if the format cannot hold what the model makes."""
        assert isinstance(pl_module, Generator)
        dim = len(pl_module.needed_spec().size)
        fits: Format = "nifti" if dim == 3 else "png"
        if self.format not in (None, fits):
            raise InputError(f"--format {self.format}: the model makes {dim}D images; use {fits}.")
        self.format = fits
        if trainer.is_global_zero:
            self._clear()
        self._start = time.perf_counter()

    def _clear(self) -> None:
        """A folder holds one set of samples: those of an earlier run, as its manifest lists them, go."""
        manifest = self.folder / "manifest.csv"
        if manifest.is_file():
            for name in listed(manifest):
                (self.folder / Path(name).name).unlink(missing_ok=True)
            manifest.unlink()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Requests,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the samples of one batch."""
        assert isinstance(pl_module, Generator)
        for seed, image in zip(batch.seeds, prediction, strict=True):
            write_sample(self.folder / self.file_name(seed), image, pl_module.needed_spec())

    def file_name(self, seed: int) -> str:
        """The file of a seed."""
        return f"sample_{seed:08d}" + (".png" if self.format == "png" else ".nii.gz")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The manifest, by the first process; all files follow from the seeds."""
        self.seconds = time.perf_counter() - self._start
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Generator)
        config = pl_module.config
        made_by = {
            "checkpoint_sha256": file_hash(self.checkpoint),
            "config_sha256": config_hash(config),
            "audit": "none",
        }
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["file", "seed", "condition", *made_by])
        writer.writeheader()
        for place, seed in enumerate(self.asked.seeds):
            shown = {name: value for name, (value,) in self.asked.some([place]).attributes.items() if value == value}
            condition = json.dumps(shown) if shown else ""  # NaN is asked for nothing
            writer.writerow({"file": self.file_name(seed), "seed": seed, "condition": condition, **made_by})
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_atomically(self.folder / "spec.json", json.dumps(pl_module.needed_spec().plain(), indent=2))
        write_atomically(self.folder / "manifest.csv", table.getvalue())  # last: it says that all is there


def write_sample(path: Path, image: Tensor, spec: DataSpec) -> None:
    """One image (c *s in [-1, 1]) in the intensity window of its data."""
    values = spec.to_window(image)[0].numpy().astype(np.float32)
    if path.suffix == ".png":
        low, high = spec.intensity_window
        write_png(path, (values - low) / (high - low))
    else:
        write_nifti(path, values, spec.affine().numpy(), "SYNTHETIC lit_medgen")


def listed(manifest: Path) -> list[str]:
    """The files that a manifest lists; InputError if it is none of ours."""
    with manifest.open(newline="") as file:
        names = [row.get("file", "") for row in csv.DictReader(file)]
    if not all(names) or not names:
        raise InputError(f"{manifest}: no rows, or no column 'file'; give a folder that `sample` wrote.")
    return names


def read_samples(folder: Path, spec: DataSpec) -> Tensor:
    """The samples a manifest lists: n c *s in [-1, 1].

    MissingDataError without a manifest, InputError for a file that does not match the spec.
    """
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise MissingDataError(f"--samples: no {manifest}; give a folder that `sample` wrote.")
    images = []
    for name in listed(manifest):
        path = folder / Path(name).name
        try:
            values: Any = (read_png if path.suffix == ".png" else read_nifti)(path)[0]
        except ValueError as error:
            raise InputError(f"{path}: {error}.") from error
        if values.shape != tuple(spec.size):
            raise InputError(
                f"{path}: size {values.shape}, but the data has {tuple(spec.size)}; use the data it was trained on."
            )
        low, high = (0.0, 255.0) if path.suffix == ".png" else spec.intensity_window
        images.append(torch.from_numpy((values - low) / (high - low) * 2 - 1))
    return torch.stack(images)[:, None].float().clamp(-1, 1)
