"""A small ChestX-ray14: a few noisy PNG files, their table, boxes and official lists."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_modules import ChestXrayDataModule

SIDE = 32
V2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
V2017 = f"{V2020},"
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
FINDINGS = ("No Finding", "Cardiomegaly", "Effusion|Infiltration", "Hernia|Nodule|Pleural_Thickening")


def name(patient: int, number: int = 0) -> str:
    return f"{patient:08}_{number:03}.png"


def pixels(patient: int, number: int = 0, side: int = SIDE) -> np.ndarray:
    """Grey levels of an image, rows columns; another for each."""
    return np.random.default_rng([patient, number]).integers(0, 256, (side, side)).astype(np.uint8)


def png(image: np.ndarray, mode: str = "L") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).convert(mode).save(content, format="png")
    return content.getvalue()


def row(patient: int, number: int = 0, **cells: str) -> str:
    """A row of the table of 2020; `cells` replace findings, age, sex or view."""
    known = {
        "findings": FINDINGS[patient % 4],
        "age": str(30 + patient),
        "sex": "FM"[patient % 2],
        "view": ("PA", "AP")[number % 2],
    } | cells
    middle = ",".join([str(number), str(patient), known["age"], known["sex"], known["view"]])
    return f"{name(patient, number)},{known['findings']},{middle},2048,2500,0.168,0.143"


def write_table(path: Path, rows: Iterable[str], header: str = V2020, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(end.join([header, *rows, ""]), newline="")


def write_images(folder: Path, images: Iterable[tuple[int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for patient, number in images:
        (folder / name(patient, number)).write_bytes(png(pixels(patient, number)))


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def module(root: Path, store: Path, **options: Any) -> ChestXrayDataModule:
    common: dict[str, Any] = {"size": (16, 16), "store_dir": str(store), "num_jobs": 1, "fractions": (0.6, 0.2, 0.2)}
    return ChestXrayDataModule(str(root), **common | options)
