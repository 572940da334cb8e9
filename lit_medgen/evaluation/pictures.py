"""`compared.npz`: what `compare` shows of a report, so that it needs neither models nor data.

    samples, real     n h w, uint8: the first samples and images of unseen people; of volumes the three middle planes,
                      of several channels those of each; of colour images n h w 3
    trajectory        k h w, uint8: one sample at steps of its making; k = 0 where a method shows none
    points_samples    n d, float32: features of samples, or coordinates that keep the distances of their voxels
    points_nearest    n d, float32: those of the training image most like each of these samples (MS-SSIM)
    points_unseen     m d, float32: those of images of unseen people

The file holds no names, but images of people: it is as private as the scans. With so few images and points it has less
than `MAX_BYTES` for volumes of 128^3 and images of 512^2.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lit_medgen.errors import InputError, describe
from lit_medgen.files import write_atomically
from lit_medgen.images.grids import columns_of

FILE = "compared.npz"
NUM_IMAGES = 6
"""Samples, and images of unseen people, that are kept."""
MAX_POINTS = 200
"""Points of each kind that are kept, as many as Peng et al. 2023 show in figure 5."""
MAX_COORDINATES = 128
"""A point of more coordinates is projected on so many directions, the same for all reports."""
MAX_BYTES = 8 * 2**20

Array = np.ndarray[Any, Any]


class Pictures(NamedTuple):
    """What `compare` shows of a report: arrays as the module's docstring lists them."""

    samples: Array
    real: Array
    trajectory: Array
    points_samples: Array
    points_nearest: Array
    points_unseen: Array


def pictures_of(
    samples: Tensor, real: Tensor, trajectory: Tensor | None, points: Mapping[str, Array], colour: bool = False
) -> Pictures:
    """What is kept of a report.

    Args:
        samples: n c *s in [-1, 1].
        real: m c *s in [-1, 1], of unseen people.
        trajectory: k c *s, one sample at steps of its making, if the method shows any.
        points: "samples", "nearest" and "unseen" -> n d.
        colour: whether three channels are red, green and blue.
    """
    kept = {name: _projected(some[:MAX_POINTS]) for name, some in points.items()}
    return Pictures(
        as_bytes(samples[:NUM_IMAGES], colour),
        as_bytes(real[:NUM_IMAGES], colour),
        as_bytes(samples[:0] if trajectory is None else trajectory.float().cpu(), colour),
        *(kept[name] for name in ("samples", "nearest", "unseen")),
    )


def as_bytes(images: Tensor, colour: bool) -> Array:
    """n h w or n h w 3, uint8: images n c *s in [-1, 1], of volumes the three middle planes below each other."""
    found = [np.round(255 * column).astype(np.uint8) for column in columns_of(images, colour)]
    return np.stack(found) if found else np.zeros((0, 0, 0), np.uint8)


def _projected(points: Array) -> Array:
    """n k, float32: points n d on k random directions, which about keep distances; as they are where d is small enough.

    "Extensions of Lipschitz mappings into a Hilbert space", Johnson & Lindenstrauss 1984, lemma 1.
    """
    num = points.shape[1]
    if num > MAX_COORDINATES:
        directions = np.random.default_rng(0).normal(size=(num, MAX_COORDINATES))
        points = points @ (directions / MAX_COORDINATES**0.5)
    return points.astype(np.float32)


def write_pictures(folder: Path, pictures: Pictures) -> None:
    """Writes `compared.npz` into the folder of a report."""
    content = io.BytesIO()
    np.savez_compressed(content, **pictures._asdict())
    write_atomically(folder / FILE, content.getvalue())


def read_pictures(folder: Path) -> Pictures:
    """What a report keeps; InputError for a file that `evaluate` cannot have written, or for none."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("one array, expected an archive")
            pictures = Pictures(*(content[name] for name in Pictures._fields))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not there; a report of this version has it: run `evaluate` again.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({describe(error)}); run `evaluate` again.") from error
    for name, values in pictures._asdict().items():
        points = name.startswith("points_")
        of = pictures.points_samples if points else pictures.samples
        dimensions, kind = (2, np.float32) if points else (3, np.uint8)
        said = f"{path}: {name} is {values.dtype} of shape {values.shape}, expected"
        is_colour = not points and values.ndim == 4 and values.shape[-1] == 3
        if (values.ndim != dimensions and not is_colour) or values.dtype != kind:
            raise InputError(f"{said} {dimensions} axes of {np.dtype(kind)}; run `evaluate` again.")
        if values.shape[1:] != of.shape[1:] and (len(values) or name != "trajectory"):
            raise InputError(f"{said} {of.shape[1:]} after the first axis; run `evaluate` again.")
        if not values.size and name != "trajectory":
            raise InputError(f"{said} one row at least; run `evaluate` again.")
        if points and not np.isfinite(values).all():
            raise InputError(f"{path}: {name} has values that are not finite; run `evaluate` again.")
    return pictures
