"""Samples as files: one NIfTI, PNG or folder of DICOM slices for each, and a manifest that says how each came to be."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

from lit_medgen.batch import DataSpec, Images
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.files import Outputs, as_csv, write_atomically
from lit_medgen.images import DICOM_SUFFIXES
from lit_medgen.images.dicom import read_series
from lit_medgen.images.dicom_writer import PATIENTS, Series, write_series
from lit_medgen.images.nifti import read_nifti, whole_numbers, write_nifti
from lit_medgen.images.origin import FILE_NAMES, SHORT, STATEMENTS, Origin
from lit_medgen.images.png import read_png, write_png

Format = Literal["nifti", "png", "dicom"]
SUFFIXES: dict[Format, str] = {"nifti": ".nii.gz", "png": ".png", "dicom": ""}  # in DICOM, a folder of slices
WINDOW_TOLERANCE = 0.01
"""Share of the window by which a sample's values may lie outside it; they are then cut off."""
MIN_STEPS = 16
"""A window narrower than that is not filled by whole numbers."""
DICOM_WHITE = 4095  # values without a unit are stored from 0 to this, 12 bits as scanners have
FIXED = ("config.yaml", "spec.json", "manifest.csv")


def format_for(spec: DataSpec, format: Format | None) -> Format:
    """The format to write; None: nifti for volumes, png for 2D images. InputError if it cannot hold the images."""
    dim = len(spec.size)
    if format == "png" and dim == 3:
        raise InputError(f"--format {format}: the model makes {dim}D images; use nifti or dicom.")
    return format or ("nifti" if dim == 3 else "png")


def sample_names(seeds: Sequence[int], origin: Origin) -> list[str]:
    """The name of each image's file without its suffix: by its seed, and its number where several share one."""
    repeated = any(count > 1 for count in Counter(seeds).values())
    number = (lambda index: f"_{index:04d}") if repeated else (lambda _: "")
    return [f"{FILE_NAMES[origin]}_{seed:08d}{number(index)}" for index, seed in enumerate(seeds)]


def sample_files(folder: Path, names: Sequence[str], format: Format | None = None) -> Outputs:
    """What `sample` writes into a folder; InputError if that is the folder of a run.

    `names` are those of the samples, without suffix; a format of None is not known yet, and may be any.
    """
    if (folder / "checkpoints").exists():
        raise InputError(f"{folder}: a run folder, with its own config.yaml; give another --out.")
    suffixes = [SUFFIXES[known] + "/*.dcm" * (known == "dicom") for known in ([format] if format else SUFFIXES)]
    return Outputs(folder, "sample", [*FIXED, *(f"{name}{suffix}" for name in names for suffix in suffixes)])


@dataclass(frozen=True)
class SampleFile:
    """How an image becomes a file.

    Attributes:
        format: nifti, png or dicom.
        spec: of the data, whose window the values take.
        origin: what the images were made from.
        model_hash: SHA-256 of the checkpoint.
    """

    format: Format
    spec: DataSpec
    origin: Origin
    model_hash: str

    def write(self, folder: Path, name: str, image: Tensor, affine: Tensor | None) -> None:
        """Writes one image (c *s in [-1, 1]); affine: 4 4, None for the grid of the data around the origin."""
        path = folder / f"{name}{SUFFIXES[self.format]}"
        matrix = (self.spec.affine() if affine is None else affine).double().numpy()
        if self.format == "dicom":
            person = f"{PATIENTS[self.origin]}-{self.model_hash[:12]}-{name.partition('_')[2].lstrip('0') or '0'}"
            self._write_dicom(path, image, matrix, person)
            return
        values = self.spec.to_window(image)[0].numpy().astype(np.float32)
        if self.format == "png":
            low, high = self.spec.intensity_window
            write_png(path, (values - low) / (high - low), STATEMENTS[self.origin])
        else:
            volume = values if values.ndim == 3 else values[..., None]  # a 2D image is a volume of one slice
            write_nifti(path, volume, matrix, SHORT[self.origin])

    def _write_dicom(self, folder: Path, image: Tensor, affine: np.ndarray, person: str) -> None:
        """Slices in HU as they are; other values, whose unit says nothing, from 0 to 4095.

        A 2D image is one file, and secondary capture even in HU: where it lies in the patient is not known.
        """
        for file in folder.glob("*.dcm"):
            file.unlink()  # a run that was killed may have left slices of another series
        in_hu, dim = self.spec.intensity_unit == "HU", len(self.spec.size)
        values = self.spec.to_window(image) if in_hu else (image.clamp(-1, 1) + 1) / 2 * DICOM_WHITE
        if dim == 2:  # a picture has no more than the size of its pixels
            affine = np.diag([*np.linalg.norm(affine[:3, :2], axis=0), 1.0])
        series = Series(
            patient_id=person,
            origin=self.origin,
            kind="ct" if in_hu and dim == 3 else "sc",
            model_hash=self.model_hash,
            window=_dicom_window(self.spec),
        )
        write_series(folder, values[0].round().numpy(), affine, series)


def write_manifest(
    folder: Path, rows: Sequence[Mapping[str, Any]], config: dict[str, Any] | None, spec: DataSpec
) -> None:
    """The config and the spec that the samples were made with, then `manifest.csv`, which says that all is there."""
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_atomically(folder / "spec.json", json.dumps(spec.plain(), indent=2))
    write_atomically(folder / "manifest.csv", as_csv(rows, list(rows[0])))


def _dicom_window(spec: DataSpec) -> tuple[float, float]:
    """The values that -1 and 1 have in DICOM."""
    return spec.intensity_window if spec.intensity_unit == "HU" else (0.0, float(DICOM_WHITE))


@dataclass(frozen=True)
class Samples:
    """Samples in a folder.

    Attributes:
        images: the samples, read from their files when they are needed; keys are names of files.
        made_from: n, what each was made from, as the manifest says.
    """

    images: Images
    made_from: Sequence[Mapping[str, Any]]


def read_samples(folder: Path, spec: DataSpec) -> Samples:
    """The samples that a manifest lists; a file is read when it is needed.

    MissingDataError without a manifest. Reading raises InputError for a file that cannot be read, has another grid than
    the data, or values that are not finite or outside the data's window: a mistaken unit must not become white images.
    """
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise MissingDataError(f"--samples: no {manifest}; give a folder that `sample` wrote.")
    rows = _rows(manifest)
    names = [row["file"] for row in rows]
    for name in names:
        if not (folder / name).exists():
            raise MissingDataError(f"{folder / name}: listed in manifest.csv, but not there; sample again.")

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([_read_sample(folder / names[index], spec) for index in indices])[:, None]

    made_from = [_condition(row.get("condition") or "{}", manifest) for row in rows]
    return Samples(Images(names, names, read), made_from)


def _condition(cell: str, manifest: Path) -> dict[str, Any]:
    """What a cell of the manifest says that an image was made from; InputError if `sample` cannot have written it."""
    try:
        row = json.loads(cell)
    except ValueError as error:
        raise InputError(f"{manifest}: column condition is no JSON ({describe(error)}); sample again.") from error
    if not isinstance(row, dict) or not isinstance(row.get("key", ""), str):
        raise InputError(f"{manifest}: column condition says {cell!r}; expected names and values; sample again.")
    return row


def _rows(manifest: Path) -> list[dict[str, str]]:
    """The rows of a manifest, each of a file in its own folder; InputError if it is none of ours."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{manifest}: no CSV file ({describe(error)}); give a folder that `sample` wrote.") from error
    names = [row.get("file") or "" for row in rows]
    if not names or any(not name or Path(name).name != name for name in names):
        raise InputError(
            f"{manifest}: no rows, or no column 'file' of names in this folder; give a folder that `sample` wrote."
        )
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"{manifest}: {twice} is listed twice; list each sample once.")
    return rows


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
    """*s in [-1, 1], of a file or a folder of slices; InputError if it is no sample of this data."""
    try:
        values, affine, window = read_voxels(path, spec)
        _refuse_other_grid(values, affine, spec)
        return scaled(values, window, spec)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error


def _refuse_other_grid(values: np.ndarray, affine: np.ndarray, spec: DataSpec) -> None:
    """ValueError for a sample that does not lie on the data's grid, wherever that is in the world."""
    if values.shape != tuple(spec.size):
        raise ValueError(f"size {values.shape}, but the data has {tuple(spec.size)}; use the data it was trained on")
    expected = spec.affine().numpy()
    if len(spec.size) == 3 and not np.allclose(affine[:3, :3], expected[:3, :3], atol=1e-2 * min(spec.spacing_mm)):
        axes = " ".join(str(column.round(3).tolist()) for column in affine[:3, :3].T)
        raise ValueError(
            f"its affine has axes {axes} mm, but the data has voxels of {spec.spacing_mm} mm along {spec.orientation}; "
            "put it on the data's grid"
        )


def scaled(values: np.ndarray, window: tuple[float, float], spec: DataSpec) -> Tensor:
    """*s in [-1, 1]; ValueError for values that are not finite or lie outside the window."""
    low, high = window
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


def as_laid_out(voxels: np.ndarray, affine: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a file in RAS order as a 2D image x y of this data, with their affine; volumes as they are."""
    plane = spec.world_axes
    across = sorted({0, 1, 2}.difference(plane))
    if len(spec.size) == 3 or voxels.ndim != 3 or voxels.shape[across[0]] != 1:
        return voxels, affine
    order = [*plane, *across]
    image, affine = voxels.transpose(order)[..., 0], affine[:, [*order, 3]]
    for axis, code in enumerate(spec.orientation):
        if code in "LPI":
            image = np.flip(image, axis)
            affine[:3, 3] += affine[:3, axis] * (image.shape[axis] - 1)
            affine[:3, axis] *= -1
    return image, affine


def read_voxels(path: Path, spec: DataSpec) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The values *s of a sample, their affine, and what -1 and 1 are in the file; ValueError if it cannot be read."""
    suffix = "" if path.is_dir() else path.suffix.lower()  # dots in a folder's name are of the name
    if suffix == ".png":
        return *read_png(path), (0.0, 255.0)
    if suffix not in ("", *DICOM_SUFFIXES):
        low, high = spec.intensity_window
        voxels, affine = as_laid_out(*read_nifti(path, finite=False, flat=len(spec.size) == 2), spec)
        if high - low < MIN_STEPS and (stored := whole_numbers(path)):
            raise ValueError(
                f"stored as {stored}, whole numbers from {voxels.min():g} to {voxels.max():g}, but samples of this "
                f"data lie from {low:g} to {high:g} ({spec.intensity_unit}); scale them and store them as float32"
            )
        return voxels, affine, (low, high)
    if len(spec.size) == 2:
        raise ValueError("a 2D image in DICOM is not read back; sample it as png")
    inside = sorted(path.glob("[!.]*")) if path.is_dir() else [path]
    files = [file for file in inside if file.suffix.lower() in DICOM_SUFFIXES]
    if not files:
        raise ValueError("no DICOM slices there")
    return *read_series(files), _dicom_window(spec)
