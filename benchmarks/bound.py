"""Bits per dimension of unseen people's images by variational diffusion models, paired, beside lossless compressors.

All models see the same images at the same times and noises, so the difference between two has a narrower interval than
either. Intervals leave out a person at a time. Compressors are given the same 8-bit images, one by one and, but for
WebP, all below each other as a single one, where what they learn of one serves the others. JPEG XL needs the package
imagecodecs and is left out without it. What a learned end is worth by itself shows `--gamma_min`.

    python -m benchmarks.bound --ckpt_path runs/vdm_linear_xrays/checkpoints/last.ckpt
        runs/vdm_monotone_xrays/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.data import data_of
from data_modules.base import MedicalDataModule
from lit_medgen import load
from lit_medgen.batch import Condition
from lit_medgen.diffusion import LinearGamma
from lit_medgen.loading import config_of
from lit_medgen.methods import VDM
from lit_medgen.methods.vdm.bound_record import TERMS
from lit_medgen.metrics.base import mean_over_people

Compress = Callable[[np.ndarray], bytes]
"""Grey values h w, uint8 -> what they are compressed to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", nargs="+", required=True, help="of VDM; others are compared with the first")
    parser.add_argument("--times", type=int, default=8, help="times and noises for each image")
    parser.add_argument("--gamma_min", type=float, help="start the bound of a fixed LinearGamma with more noise: here")
    parser.add_argument("--effort", type=int, default=7, help="of JPEG XL, to 10, which takes minutes")
    options = parser.parse_args()
    sections = [config_of(Path(path))["data"] for path in options.ckpt_path]
    if any(section != sections[0] for section in sections):
        parser.error("the checkpoints were trained on different data, or splits; give runs of the same")
    data = data_of(sections[0])
    console = Console(width=160)
    for told in (True, False):
        table = Table("bits per dimension", "bound", *TERMS, "minus the first", title=None if told else "told nothing")
        for row in rows_of(options.ckpt_path, data, options.times, told, options.gamma_min):
            table.add_row(*row)
        console.print(table)
    table = Table("bits per pixel", "image by image", "all as one")
    for name, values in compressed(grey_values(data), options.effort).items():
        table.add_row(name, *("" if value is None else f"{value:.3f}" for value in values))
    console.print(table)


def rows_of(
    paths: Sequence[str], data: MedicalDataModule, times: int, told: bool, gamma_min: float | None
) -> list[list[str]]:
    """Of each checkpoint: its name, the bound, its terms, and the difference to the first one's bound."""
    rows, bounds = [], list[Tensor]()
    for path in paths:
        model = load(path)
        assert isinstance(model, VDM)
        if gamma_min is not None and isinstance(model.schedule, LinearGamma):
            begin_at(model, gamma_min)
        model.times_each = times
        with model.as_in_evaluation():
            terms, people = model.bound_of_test(data, told)
        bounds.append(torch.stack(list(terms.values())).sum(0))
        values = [bounds[-1], *terms.values(), *([bounds[-1] - bounds[0]] if len(bounds) > 1 else [])]
        rows.append([path, *(in_words(value, people) for value in values)])
        print(rows[-1], flush=True)  # the others take minutes
    return rows


class Narrowed(nn.Module):
    """A network that is told shares of a part of gamma's range, which ends where the whole does."""

    def __init__(self, network: nn.Module, first: float) -> None:
        super().__init__()
        self.network, self.first = network, first

    def forward(self, z_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The noise in z_t, from the share of the whole range that a share of the part is."""
        noise: Tensor = self.network(z_t, self.first + (1 - self.first) * level, condition)
        return noise


def begin_at(model: VDM, gamma_min: float) -> None:
    """Has the bound of a line begin with more noise, which leaves a trained network as it is."""
    whole = model.schedule
    end = float(whole.gamma_min + whole.span)
    model.schedule = LinearGamma(gamma_min, end)
    first = (gamma_min - float(whole.gamma_min)) / float(whole.span)
    model.level_network.network = Narrowed(model.level_network.network, first)


def in_words(values: Tensor, people: Sequence[str]) -> str:
    """Their mean, with its interval over people."""
    found = mean_over_people(values, people)
    return f"{found.value:.4f} ({found.ci95[0]:.4f} to {found.ci95[1]:.4f})"


def grey_values(data: MedicalDataModule) -> np.ndarray:
    """All test images as rows and columns of 8 bits: n h w."""
    images = torch.cat([batch.image for batch in data.stored("test")])
    return ((images + 1) * 127.5).round().to(torch.uint8)[:, 0].mT.contiguous().numpy()


def compressed(images: np.ndarray, effort: int) -> dict[str, tuple[float, float | None]]:
    """Bits per pixel of images n h w by compressor: image by image, and all below each other, where it takes that."""
    compressors: dict[str, Compress] = {
        "PNG": lambda image: encoded(image, "PNG", optimize=True),
        "WebP": lambda image: encoded(image, "WEBP", lossless=True, quality=100, method=6),
    }
    if importlib.util.find_spec("imagecodecs"):
        imagecodecs = importlib.import_module("imagecodecs")

        compressors[f"JPEG XL, effort {effort}"] = lambda image: bytes(
            imagecodecs.jpegxl_encode(image, lossless=True, effort=effort)
        )
    bits = 8 / images.size
    together = images.reshape(-1, images.shape[-1])
    return {
        name: (
            bits * sum(len(compress(image)) for image in images),
            None if name == "WebP" else bits * len(compress(together)),  # which takes no more than 16,383 rows
        )
        for name, compress in compressors.items()
    }


def encoded(image: np.ndarray, kind: str, **options: object) -> bytes:
    """An image h w, uint8, as Pillow writes it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


if __name__ == "__main__":
    main()
