"""Samples as files: one NIfTI, PNG or folder of DICOM slices for each, and a manifest that says how each came to be.

An image of several channels is one NIfTI x y z c. Red, green and blue are one colour PNG, or colour slices in DICOM;
other channels are a folder of a PNG each, named as the channel, or a folder of a DICOM series each, in their order.
`lit_medgen.sample_reading` reads them back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs, as_csv, write_atomically
from lit_medgen.images.colours import WHITE
from lit_medgen.images.dicom_writer import PATIENTS, Series, fresh_uid, write_series
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.origin import FILE_NAMES, SHORT, STATEMENTS, Origin
from lit_medgen.images.png import write_png

Format = Literal["nifti", "png", "dicom"]
SUFFIXES: dict[Format, str] = {"nifti": ".nii.gz", "png": ".png", "dicom": ""}  # in DICOM, a folder of slices
WRITTEN: dict[Format, tuple[str, ...]] = {"nifti": (".nii.gz",), "png": (".png", "/*.png"), "dicom": ("/*.dcm",)}
"""Format -> what follows the name of a sample in those of its files."""
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
    suffixes = [suffix for known in ([format] if format else SUFFIXES) for suffix in WRITTEN[known]]
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

    def named(self, name: str) -> str:
        """The file, or folder, of the image of that name, as the manifest lists it."""
        return name if self._in_parts else f"{name}{SUFFIXES[self.format]}"

    @property
    def _in_parts(self) -> bool:
        """Whether each channel is a PNG of its own, in a folder."""
        return self.format == "png" and self.spec.channels > 1 and not self.spec.is_colour

    def write(self, folder: Path, name: str, image: Tensor, affine: Tensor | None) -> None:
        """Writes one image (c *s in [-1, 1]); affine: 4 4, None for the grid of the data around the origin."""
        path = folder / self.named(name)
        matrix = (self.spec.affine() if affine is None else affine).double().numpy()
        if self.format == "dicom":
            person = f"{PATIENTS[self.origin]}-{self.model_hash[:12]}-{name.partition('_')[2].lstrip('0') or '0'}"
            self._write_dicom(path, image, matrix, person)
            return
        values = self.spec.to_window(image).numpy().astype(np.float32)
        if self.format == "png":
            self._write_png(path, values)
            return
        volume = values if values.ndim == 4 else values[..., None]  # a 2D image is a volume of one slice
        channels_last = volume[0] if len(volume) == 1 else np.moveaxis(volume, 0, -1)
        write_nifti(path, channels_last, matrix, SHORT[self.origin])

    def _write_png(self, path: Path, values: np.ndarray) -> None:
        low, high = self.spec.intensity_window
        shares, statement = (values - low) / (high - low), STATEMENTS[self.origin]
        if not self._in_parts:
            write_png(path, np.moveaxis(shares, 0, -1) if self.spec.is_colour else shares[0], statement)
            return
        path.mkdir(parents=True, exist_ok=True)
        for channel, pixels in zip(self.spec.named_channels, shares, strict=True):
            write_png(path / f"{channel}.png", pixels, statement)

    def _write_dicom(self, folder: Path, image: Tensor, affine: np.ndarray, person: str) -> None:
        """Slices in HU as they are; other values, whose unit says nothing, from 0 to 4095, colours from 0 to 255.

        A 2D image is one file, and secondary capture even in HU: where it lies in the patient is not known. Channels
        that are no colours are series of one study.
        """
        for file in folder.glob("*.dcm"):
            file.unlink()  # a run that was killed may have left slices of another series
        in_hu, dim = self.spec.intensity_unit == "HU", len(self.spec.size)
        low, high = dicom_window(self.spec)
        values = self.spec.to_window(image) if in_hu else low + (image.clamp(-1, 1) + 1) / 2 * (high - low)
        if dim == 2:  # a picture has no more than the size of its pixels
            affine = np.diag([*np.linalg.norm(affine[:3, :2], axis=0), 1.0])
        series = Series(
            patient_id=person,
            origin=self.origin,
            kind="ct" if in_hu and dim == 3 else "sc",
            model_hash=self.model_hash,
            window=(low, high),
        )
        voxels = values.round().numpy()
        if self.spec.is_colour:
            write_series(folder, np.moveaxis(voxels, 0, -1).astype(np.uint8), affine, series)
            return
        for number, (name, channel) in enumerate(zip(self.spec.named_channels, voxels, strict=True), start=1):
            own = replace(series, series_uid=fresh_uid(), number=number, description=name)
            write_series(folder, channel, affine, own if len(voxels) > 1 else series)


def categories_by_name(made_from: Mapping[str, Any], spec: DataSpec) -> dict[str, str]:
    """The names of an image's categories, such as sex F, of what it was made from, where they are numbers."""
    values = {name: made_from.get(name) for name in spec.category_names}
    return {
        name: spec.category_names[name][int(value)]
        for name, value in values.items()
        if isinstance(value, int | float) and value in range(len(spec.category_names[name]))
    }


def write_manifest(
    folder: Path, rows: Sequence[Mapping[str, Any]], config: dict[str, Any] | None, spec: DataSpec
) -> None:
    """The config and the spec that the samples were made with, then `manifest.csv`, which says that all is there."""
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_atomically(folder / "spec.json", json.dumps(spec.plain(), indent=2))
    write_atomically(folder / "manifest.csv", as_csv(rows, list(rows[0])))


def dicom_window(spec: DataSpec) -> tuple[float, float]:
    """The values that -1 and 1 have in DICOM."""
    if spec.is_colour:
        return 0.0, WHITE
    return spec.intensity_window if spec.intensity_unit == "HU" else (0.0, float(DICOM_WHITE))
