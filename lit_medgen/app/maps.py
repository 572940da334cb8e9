"""Label maps as they are painted: started, read from files, sent to the browser and back.

A map holds numbers of classes along x y, or x y z as a stack of axial slices. The browser has one slice at a time, rows
columns as it is shown, a byte for each pixel; it paints classes, so nothing is guessed from colours.
"""

from __future__ import annotations

import base64
import colorsys
import json
import shutil
from binascii import Error as DecodingError
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.request_files import read_label_map

SUFFIXES = (".nii.gz", ".nii", ".png")
COLOURS = ("#000000", "#8c6d5a", "#c98f6b", "#f3e3c2", "#3b7dbd", "#4fae6a", "#f0b93a", "#e4572e")
"""Of classes 0 to 7; further ones go round the circle of hues."""
HUE_STEP = 0.618
BODY = (
    ("body", (0.5, 0.5), (0.44, 0.33)),
    ("soft tissue", (0.5, 0.5), (0.41, 0.30)),
    ("lung", (0.31, 0.48), (0.14, 0.21)),
    ("lung", (0.69, 0.48), (0.14, 0.21)),
    ("dense tissue", (0.5, 0.72), (0.06, 0.05)),
)
"""Class, middle and half axes of the ellipses of an empty chest, as shares of columns and rows."""


@dataclass(frozen=True)
class LabelMap:
    """A label map, and where it lies.

    Attributes:
        classes: x y or x y z, whole numbers.
        affine: 1 4 4, of a file or of the data; None: the grid of the data.
    """

    classes: np.ndarray
    affine: Tensor | None = None

    @property
    def condition(self) -> Condition:
        """What an image is made from: the map as 1 1 *s."""
        return Condition(label_map=torch.from_numpy(self.classes.astype(np.int64))[None, None])

    @property
    def num_slices(self) -> int:
        """Axial slices; 1 of a map along x y."""
        return self.classes.shape[2] if self.classes.ndim == 3 else 1

    def plane(self, index: int) -> np.ndarray:
        """A slice as it is shown, rows columns."""
        return np.flipud(self.classes[:, :, index].T) if self.classes.ndim == 3 else self.classes.T

    def painted(self, index: int, plane: np.ndarray) -> LabelMap:
        """The map with another slice, rows columns as it is shown."""
        if self.classes.ndim == 2:
            return replace(self, classes=plane.T)
        classes = self.classes.copy()
        classes[:, :, index] = np.flipud(plane).T
        return replace(self, classes=classes)


def colours(num: int) -> list[str]:
    """A colour for each class, #rrggbb."""
    hues = [(HUE_STEP * number) % 1 for number in range(num)]
    further = ["#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.6, 0.6)) for hue in hues]
    return [*COLOURS, *further[len(COLOURS) :]][:num]


def first_class(classes: Sequence[str]) -> int:
    """The class that the brush has at first: the last, which in chests is the most malignant nodule."""
    return len(classes) - 1


def empty_body(spec: DataSpec) -> LabelMap:
    """A chest without nodules, drawn with those of its classes that the data has; background elsewhere."""
    columns, rows = spec.size[:2]
    plane = np.zeros((rows, columns), dtype=np.uint8)
    row, column = np.mgrid[:rows, :columns]
    for name, (x, y), (across, down) in BODY:
        if name in spec.classes:
            far = ((column + 0.5) / columns - x) ** 2 / across**2 + ((row + 0.5) / rows - y) ** 2 / down**2
            plane[far <= 1] = spec.classes.index(name)
    empty = LabelMap(np.zeros(spec.size, dtype=np.uint8))
    for index in range(empty.num_slices):
        empty = empty.painted(index, plane)
    return empty


def encoded(plane: np.ndarray) -> str:
    """A slice, rows columns, as the browser takes it."""
    rows, columns = plane.shape
    content = base64.b64encode(plane.astype(np.uint8).tobytes()).decode()
    return json.dumps({"size": [columns, rows], "classes": content})


def decoded(text: str, spec: DataSpec) -> np.ndarray:
    """The slice that the browser sends, rows columns; InputError for another size or classes that there are not."""
    columns, rows = spec.size[:2]
    try:
        sent = json.loads(text)
        plane = np.frombuffer(base64.b64decode(sent["classes"], validate=True), np.uint8).reshape(rows, columns)
        size = list(sent["size"])
    except (ValueError, TypeError, KeyError, DecodingError) as error:
        raise InputError(f"the map is no slice of {columns} x {rows} pixels; load the page again.") from error
    if size != [columns, rows] or plane.max() >= len(spec.classes):
        raise InputError(
            f"the map has size {size} and classes up to {plane.max()}; expected {[columns, rows]} and at most "
            f"{len(spec.classes) - 1} ({spec.classes[-1]})."
        )
    return plane


def uploaded(path: str, folder: Path, name: str, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Moves what a visitor uploaded to a private folder under a name that says nothing; returns where it lies.

    The names of such files may be those of patients, so no message has them. InputError for another kind of file.
    """
    suffix = next((each for each in suffixes if path.lower().endswith(each)), None)
    if suffix is None:
        Path(path).unlink()
        raise InputError(f"{name}: a file of another kind; expected {', '.join(suffixes)}.")
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(path, folder / f"{name}{suffix}"))


def read_map(path: Path, spec: DataSpec) -> LabelMap:
    """The map of an uploaded file, which is removed; InputError, without its folder, where `sample` refuses it."""
    try:
        label_map, affine = read_label_map(path, spec)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error
    finally:
        path.unlink()
    return LabelMap(label_map[0, 0].numpy(), affine)
