"""Volumes of brains that were asked for a number, such as an age: ventricles and tissue, beside those of real people.

    python -m lit_medgen sample --ckpt_path runs/NAME/checkpoints/last.ckpt --requests requests.csv --out runs/asked
    python -m benchmarks.asked_number --samples runs/asked --attribute age --within 5

Real people are all of the data set whose number is within `--within` of the one asked for, one image of each. They and
the samples are measured alike, by `lit_medgen.metrics.anatomy`. Intervals are over samples, those of differences over
seeds that were asked for both ends, and those of real images over people.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.data import data_of
from data_modules.base import MedicalDataModule
from lit_medgen.batch import Split
from lit_medgen.images.grids import save_figure
from lit_medgen.metrics.anatomy import brain_volume, ventricle_volume
from lit_medgen.metrics.base import mean_over_people
from lit_medgen.sample_reading import read_samples

VOLUMES: Mapping[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "ventricles": ventricle_volume,
    "brain": brain_volume,
}
SPLITS: tuple[Split, ...] = ("train", "val", "test")
NUM_SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, nargs="+", required=True, help="folders that `sample` wrote")
    parser.add_argument("--attribute", required=True, help="the number that was asked for")
    parser.add_argument("--within", type=float, default=5, help="of real people's number from the one asked for")
    parser.add_argument("--figure", type=Path, help="PNG of the first folder's samples and of real people")
    options = parser.parse_args()
    table = Table("images", options.attribute, "number", *(f"{name} (mL)" for name in VOLUMES))
    data = data_of(yaml.safe_load((options.samples[0] / "config.yaml").read_text())["data"])
    people, shown = images_of_people(data, options.attribute), dict[str, Tensor]()
    for folder in options.samples:
        samples = images_of_samples(folder, options.attribute, data)
        for row in rows_of(measured(samples, data.spec.spacing_mm)):
            table.add_row(str(folder), *row)
        near = {
            at: {who: image for who, (number, image) in people.items() if abs(number - at) <= options.within}
            for at in samples
        }
        if not shown:
            shown |= {f"asked for {options.attribute} {at:g}": stacked(each) for at, each in sorted(samples.items())}
            shown |= {f"real people, {at:g} +- {options.within:g}": stacked(each) for at, each in sorted(near.items())}
    for row in rows_of(measured(near, data.spec.spacing_mm), paired=False):
        table.add_row(f"real people, +- {options.within:g}", *row)
    Console(width=160).print(table)
    if options.figure:
        save_figure(options.figure, shown, NUM_SHOWN)


ByNumber = Mapping[float, Mapping[str, Tensor]]
"""Number -> seed or person -> image, 1 1 x y z in [-1, 1]."""
Volumes = Mapping[float, Mapping[str, Sequence[float]]]
"""Number -> seed or person -> volumes in mL, in the order of `VOLUMES`."""


def images_of_samples(folder: Path, attribute: str, data: MedicalDataModule) -> ByNumber:
    """The samples of a folder, by the number that each was asked for."""
    samples = read_samples(folder, data.spec)
    images: dict[float, dict[str, Tensor]] = {}
    for index, made_from in enumerate(samples.made_from):
        of_number = images.setdefault(float(made_from[attribute]), {})
        of_number[str(len(of_number))] = samples.images.read([index])
    return images


def images_of_people(data: MedicalDataModule, attribute: str) -> dict[str, tuple[float, Tensor]]:
    """Person -> the number and the first image, of people of all parts of the split whose number is known."""
    people = {}
    for split in SPLITS:
        images = data.images(split, one_per_person=True)
        numbers = {row["key"]: row.get(attribute) for row in data.requests(split).made_from}
        for index, (key, person) in enumerate(zip(images.keys, images.people, strict=True)):
            if (number := numbers[key]) is not None:
                people[person] = (float(number), images.read([index]))
    return people


def measured(images: ByNumber, spacing_mm: Sequence[float]) -> Volumes:
    """The volumes of every image."""
    return {
        number: {
            who: [float(volume(image, spacing_mm)[0]) for volume in VOLUMES.values()] for who, image in each.items()
        }
        for number, each in images.items()
    }


def stacked(images: Mapping[str, Tensor]) -> Tensor:
    """Images as one batch, n 1 x y z."""
    return torch.cat(list(images.values()))


def rows_of(volumes: Volumes, paired: bool = True) -> Iterator[list[str]]:
    """Number, number of images, and the mean of each volume with its interval; then the highest less the lowest."""
    for number, each in sorted(volumes.items()):
        yield [f"{number:g}", str(len(each)), *means(list(each.values()))]
    if paired and len(volumes) > 1:
        low, high = volumes[min(volumes)], volumes[max(volumes)]
        both = [[b - a for a, b in zip(low[who], high[who], strict=True)] for who in low.keys() & high.keys()]
        yield [f"{max(volumes):g} less {min(volumes):g}", str(len(both)), *means(both)]


def means(rows: Sequence[Sequence[float]]) -> list[str]:
    """The mean of each column with its 95 % interval over the rows."""
    cells = []
    for column in torch.tensor(rows, dtype=torch.float64).T:
        mean = mean_over_people(column, [str(i) for i in range(len(column))])
        low, high = mean.ci95
        cells.append(f"{mean.value:.1f} ({low:.1f} to {high:.1f})")
    return cells


if __name__ == "__main__":
    main()
