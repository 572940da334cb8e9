"""Writes samples as they are made, and a manifest that says how each came to be."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.checkpoints import config_hash
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.files import Outputs, file_hash, write_atomically
from lit_medgen.images.dicom import read_series
from lit_medgen.images.dicom_writer import PATIENTS, Series, write_series
from lit_medgen.images.nifti import read_nifti, whole_numbers, write_nifti
from lit_medgen.images.origin import FILE_NAMES, SHORT, STATEMENTS, Origin
from lit_medgen.images.png import read_png, write_png
from lit_medgen.training.method import Generator, Requests

Format = Literal["nifti", "png", "dicom"]
SUFFIXES: dict[Format, str] = {"nifti": ".nii.gz", "png": ".png", "dicom": ""}  # in DICOM, a folder of slices
WINDOW_TOLERANCE = 0.01
"""Share of the window by which a sample's values may lie outside it; they are then cut off."""
MIN_STEPS = 16
"""A window narrower than that is not filled by whole numbers."""
DICOM_WHITE = 4095  # values without a unit are stored from 0 to this, 12 bits as scanners have


class SampleWriter(BasePredictionWriter):
    """One file for each sample (in DICOM one folder), named by its seed; at the end manifest, config and spec.

    What is made from a patient's image is called so in names, manifest and headers (`Generator.makes`).

    Args:
        folder: where to.
        format: nifti (volumes), png (2D images) or dicom (either); None: nifti or png, whichever fits.
        asked: all that was asked for, over all processes.
        checkpoint: the checkpoint the model came from.
    """

    def __init__(self, folder: Path, format: Format | None, asked: Requests, checkpoint: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.format, self.asked, self.checkpoint = folder, format, asked, checkpoint
        self.seconds, self._start = 0.0, time.perf_counter()
        self.makes: Origin = "synthetic"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """InputError if the format cannot hold what the model makes, or the folder holds what `sample` did not write.

        A folder holds one set of samples: those of an earlier run go.
        """
        assert isinstance(pl_module, Generator)
        dim = len(pl_module.needed_spec().size)
        fits: Format = "nifti" if dim == 3 else "png"
        if self.format not in (None, fits, "dicom"):
            raise InputError(f"--format {self.format}: the model makes {dim}D images; use {fits} or dicom.")
        self.format, self.makes = self.format or fits, pl_module.makes
        if trainer.is_global_zero:
            outputs = sample_files(self.folder, self.makes, self.asked.seeds, self.format)
            outputs.claim()
            outputs.clear()
        _meet()  # no process writes before the folder is cleared
        self._start = time.perf_counter()

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
        self.makes = pl_module.makes
        self.folder.mkdir(parents=True, exist_ok=True)  # a process on another machine may have a disk of its own
        for seed, image in zip(batch.seeds, prediction, strict=True):
            path = self.folder / self.file_name(seed)
            if self.format == "dicom":
                person = f"{PATIENTS[self.makes]}-{self.checkpoint_hash[:12]}-{seed}"
                write_dicom_sample(path, image, pl_module.needed_spec(), person, self.checkpoint_hash, self.makes)
            else:
                write_sample(path, image, pl_module.needed_spec(), self.makes)

    def file_name(self, seed: int) -> str:
        """The file of a seed, or in DICOM its folder."""
        return f"{FILE_NAMES[self.makes]}_{seed:08d}" + SUFFIXES[self.format or "nifti"]

    @cached_property
    def checkpoint_hash(self) -> str:
        """SHA-256 of the checkpoint, read once."""
        return file_hash(self.checkpoint)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The manifest, by the first process; all files follow from the seeds."""
        self.seconds = time.perf_counter() - self._start
        _meet()  # the files of all processes are there
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Generator)
        config = pl_module.config
        made_by = {
            "checkpoint_sha256": self.checkpoint_hash,
            "config_sha256": config_hash(config),
            "audit": "none",
        }
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["file", "seed", "kind", "condition", *made_by])
        writer.writeheader()
        for place, seed in enumerate(self.asked.seeds):
            shown = {name: value for name, (value,) in self.asked.some([place]).attributes.items() if value == value}
            condition = json.dumps(shown) if shown else ""  # NaN is asked for nothing
            row = {"file": self.file_name(seed), "seed": seed, "kind": self.makes, "condition": condition}
            writer.writerow(row | made_by)
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_atomically(self.folder / "spec.json", json.dumps(pl_module.needed_spec().plain(), indent=2))
        write_atomically(self.folder / "manifest.csv", table.getvalue())  # last: it says that all is there
        sample_files(self.folder, self.makes, self.asked.seeds, self.format).end()


def _meet() -> None:
    """Waits for the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def sample_files(folder: Path, makes: Origin, seeds: Iterable[int], format: Format | None = None) -> Outputs:
    """What `sample` writes into a folder; InputError if that is the folder of a run.

    Args:
        folder: where to.
        makes: what the samples come from.
        seeds: theirs.
        format: theirs; None: it is not known yet, and may be any.
    """
    if (folder / "checkpoints").exists():
        raise InputError(f"{folder}: a run folder, with its own config.yaml; give another --out.")
    suffixes = [SUFFIXES[known] + "/*.dcm" * (known == "dicom") for known in ([format] if format else SUFFIXES)]
    names = [f"{FILE_NAMES[makes]}_{seed:08d}{suffix}" for seed in seeds for suffix in suffixes]
    return Outputs(folder, "sample", ["config.yaml", "spec.json", "manifest.csv", *names])


def write_sample(path: Path, image: Tensor, spec: DataSpec, origin: Origin = "synthetic") -> None:
    """One image (c *s in [-1, 1]) in the intensity window of its data."""
    values = spec.to_window(image)[0].numpy().astype(np.float32)
    if path.suffix == ".png":
        low, high = spec.intensity_window
        write_png(path, (values - low) / (high - low), STATEMENTS[origin])
    else:
        write_nifti(path, values, spec.affine().numpy(), SHORT[origin])


def write_dicom_sample(
    folder: Path, image: Tensor, spec: DataSpec, person: str, model_hash: str, origin: Origin = "synthetic"
) -> None:
    """One image (c *s in [-1, 1]) as slices: HU as they are, other values, whose unit says nothing, from 0 to 4095.

    A 2D image is one file, and secondary capture even in HU: its place in the patient is not known.
    """
    for file in folder.glob("*.dcm"):
        file.unlink()  # a run that was killed may have left slices of another series
    in_hu = spec.intensity_unit == "HU"
    scaled = spec.to_window(image) if in_hu else (image.clamp(-1, 1) + 1) / 2 * DICOM_WHITE
    dim = len(spec.size)
    axes = [*range(dim), 3]  # the affine of a 2D image has a third axis that means nothing
    series = Series(
        patient_id=person,
        origin=origin,
        kind="ct" if in_hu and dim == 3 else "sc",
        model_hash=model_hash,
        window=_dicom_window(spec),
    )
    write_series(folder, scaled[0].round().numpy(), spec.affine().numpy()[np.ix_(axes, axes)], series)


def _dicom_window(spec: DataSpec) -> tuple[float, float]:
    """The values that -1 and 1 have in DICOM."""
    return spec.intensity_window if spec.intensity_unit == "HU" else (0.0, float(DICOM_WHITE))


def listed(manifest: Path) -> list[str]:
    """The files that a manifest lists, all in its own folder; InputError if it is none of ours."""
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            names = [row.get("file") or "" for row in csv.DictReader(file)]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{manifest}: no CSV file ({describe(error)}); give a folder that `sample` wrote.") from error
    if not names or any(Path(name).name != name for name in names):
        raise InputError(
            f"{manifest}: no rows, or no column 'file' of names in this folder; give a folder that `sample` wrote."
        )
    return names


def read_samples(folder: Path, spec: DataSpec) -> Tensor:
    """The samples a manifest lists: n c *s in [-1, 1].

    MissingDataError without a manifest; InputError for a file that cannot be read, has another grid than the data, or
    values that are not finite or outside the data's window: a unit that was mistaken must not become white images.
    """
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise MissingDataError(f"--samples: no {manifest}; give a folder that `sample` wrote.")
    images = []
    for name in listed(manifest):
        try:
            images.append(_read_sample(folder / name, spec))
        except FileNotFoundError as error:
            raise MissingDataError(f"{folder / name}: listed in manifest.csv, but not there; sample again.") from error
        except ValueError as error:
            raise InputError(f"{folder / name}: {error}.") from error
    return torch.stack(images)[:, None]


def spec_of(folder: Path) -> DataSpec | None:
    """The spec that `sample` has written beside samples; None where there is none."""
    path = folder / "spec.json"
    if not path.is_file():
        return None
    try:
        return DataSpec.from_plain(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: not a spec that `sample` wrote ({describe(error)}); sample again.") from error


def _read_sample(path: Path, spec: DataSpec) -> Tensor:
    """*s in [-1, 1], of a file or a folder of slices; ValueError if it is no sample of this data."""
    values, affine, (low, high) = _read_values(path, spec)
    if values.shape != tuple(spec.size):
        raise ValueError(f"size {values.shape}, but the data has {tuple(spec.size)}; use the data it was trained on")
    expected = spec.affine().numpy()
    if len(spec.size) == 3 and not np.allclose(affine[:3, :3], expected[:3, :3], atol=1e-2 * min(spec.spacing_mm)):
        axes = " ".join(str(column.round(3).tolist()) for column in affine[:3, :3].T)
        raise ValueError(
            f"its affine has axes {axes} mm, but the data has voxels of {spec.spacing_mm} mm along {spec.orientation}; "
            "put it on the data's grid"
        )
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ValueError(f"{bad} of {values.size} voxels are NaN or infinite; expected finite values, so make it again")
    tolerance = WINDOW_TOLERANCE * (high - low)
    if values.min() < low - tolerance or values.max() > high + tolerance:
        raise ValueError(
            f"values from {values.min():.6g} to {values.max():.6g}, but samples of this data lie from {low:g} to "
            f"{high:g} ({spec.intensity_unit}), give or take {tolerance:.3g}; scale them to that, as `sample` does"
        )
    scaled = (torch.from_numpy(np.ascontiguousarray(values)).double() - low) / (high - low) * 2 - 1
    return scaled.clamp(-1, 1).float()


def _read_values(path: Path, spec: DataSpec) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """*s values, their affine, and what -1 and 1 are in the file."""
    if path.suffix == ".png":
        return *read_png(path), (0.0, 255.0)
    if path.suffix:
        low, high = spec.intensity_window
        voxels, affine = read_nifti(path, finite=False)
        if high - low < MIN_STEPS and (stored := whole_numbers(path)):
            raise ValueError(
                f"stored as {stored}, whole numbers from {voxels.min():g} to {voxels.max():g}, but samples of this "
                f"data lie from {low:g} to {high:g} ({spec.intensity_unit}); scale them and store them as float32"
            )
        return voxels, affine, (low, high)
    if len(spec.size) == 2:
        raise ValueError("a 2D image in DICOM is not read back; sample it as png")
    files = sorted(path.glob("*.dcm"))
    if not files:
        raise ValueError("no DICOM slices there")
    return *read_series(files), _dicom_window(spec)
