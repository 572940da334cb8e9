"""Any array transform of MONAI as an augmentation: random as its own options say, from the seed of (seed, position)."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import numpy as np

from data_modules.augmentation import KEY, Augmentation
from data_modules.sources import IMAGE, LABEL_MAP
from lit_medgen.errors import InputError, describe

INTENSITY = ("monai.transforms.intensity.array", "monai.transforms.smooth_field.array")
SPATIAL = "monai.transforms.spatial.array"
"""Modules whose transforms are taken; no others, such as those that write files."""


class MonaiTransform(Augmentation):
    """An array transform of MONAI's intensity, spatial or smooth_field, e.g. RandGaussianSmooth.

    One of values changes the image alone. A spatial one moves image, label map and sources by the same draw, classes by
    nearest neighbour, and resamples once more than the geometric augmentations of this package do; sources must then
    have the image's size. Slices of a set are its channels, so that one draw serves all.

    Args:
        transform: the name of the class.
        arguments: of its constructor, `prob` among them; MONAI's own defaults else.
    """

    def __init__(self, transform: str, arguments: dict[str, Any] | None = None) -> None:
        self.transform, self.arguments = transform, arguments or {}
        kind, self._is_spatial = _class(transform)
        try:
            self._made = kind(**self.arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{KEY}: MonaiTransform: {transform}: {describe(error)}") from error
        called = inspect.signature(self._made.__call__).parameters
        self._by_nearest = {"mode": "nearest"} if "mode" in called else {}

    @property
    def is_spatial(self) -> bool:
        """Whether it moves what is shown, and not only changes values."""
        return self._is_spatial

    def apply(self, part: np.ndarray, seed: int, name: str) -> np.ndarray:
        """An array of an item, channels first, after the transform; unchanged where the transform is not for it."""
        if name != IMAGE and not self.is_spatial:
            return part
        if hasattr(self._made, "set_random_state"):
            self._made.set_random_state(seed=seed % 2**32)
        classes = self._by_nearest if name == LABEL_MAP else {}
        found = np.asarray(self._made(part.astype(np.float32), **classes), dtype=np.float32)
        if found.shape != part.shape:
            raise InputError(
                f"{KEY}: MonaiTransform: {self.transform} makes {list(found.shape[1:])} of {list(part.shape[1:])}; "
                "give a transform that keeps the size."
            )
        return found.round().astype(part.dtype) if name == LABEL_MAP else found.clip(-1, 1)


def _class(name: str) -> tuple[type, bool]:
    """A transform by its name, and whether it moves what is shown; one line if it is none or MONAI is not there."""
    try:
        modules = {path: import_module(path) for path in (*INTENSITY, SPATIAL)}
    except ImportError as error:
        raise InputError(f"{KEY}: MonaiTransform needs MONAI; install lit_medgen[monai].") from error
    for path, module in modules.items():
        found = getattr(module, name, None)
        if inspect.isclass(found) and found.__module__ == path:
            return found, path == SPATIAL
    known = sorted(each for module in modules.values() for each in getattr(module, "__all__", ()) if "Rand" in each)
    raise ValueError(
        f"{KEY}: MonaiTransform: transform is {name!r}; give a class of monai.transforms, such as "
        f"{', '.join(known[:5])}."
    )
