"""Whole slices and their label maps: what LSDMs make of the maps, and how near it is to the slices.

Of each person below `--root` some slices: the label map, the slice, its reconstruction by the first stage, and what
each model makes of its map. The table has SSIM, MS-SSIM, PSNR and a perceptual distance of each against the slice, with
intervals over people, beside another person's slice in the place of a sample. The perceptual distance is that of a
network which learned from the first model's training people, or of `--features FILE`.

The models must not have learned from these people: name the splits of their training whose people they are, or give a
root of others. People stay in their split wherever their folders lie, so kinds of scans can be told apart.

    python -m benchmarks.plain_slices --out data/mixed_ct/real <folders with DICOM series>
    python -m benchmarks.whole_slices --root data/mixed_ct/real --splits test --out real.png
        "SPADE=runs/lsdm_mixed/checkpoints/last.ckpt"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.data import data_of
from lit_medgen import load
from lit_medgen.batch import Batch, Split, TrainingData
from lit_medgen.images.grids import save_figure
from lit_medgen.loading import config_of
from lit_medgen.methods import LSDM
from lit_medgen.metrics.extractors import LEARNED, num_dimensions, perceptual
from lit_medgen.metrics.paired import PairedMetric, PairedMSSSIM, PairedPSNR, PairedSSIM

SPLITS: tuple[Split, ...] = ("train", "val", "test")
PER_PERSON = 2
"""Slices of each person, evenly spread."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT of each LSDM")
    parser.add_argument("--root", required=True, help="folder of the scans")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="whose people are shown; all")
    parser.add_argument(
        "--features", default=LEARNED, help="of the perceptual distance: learned, or a TorchScript file"
    )
    parser.add_argument("--num", type=int, default=12, help="slices in the pictures")
    parser.add_argument("--out", required=True, help="PNG: the pictures")
    options = parser.parse_args()
    paths = dict(model.split("=", 1) for model in options.models)
    models = {name: cast(LSDM, load(path)) for name, path in paths.items()}
    first = next(iter(paths.values()))
    section = config_of(Path(first))["data"]
    data = data_of(section, root=options.root, ct=section["init_args"]["ct"] | ANY)
    slices, people = slices_of(data, options.splits)
    rows = images_of(models, slices, len(data.spec.classes))
    shown = [i * len(people) // min(options.num, len(people)) for i in range(min(options.num, len(people)))]
    save_figure(Path(options.out), {name: images[shown] for name, images in rows.items()}, len(shown))
    metrics = METRICS | {"perceptual distance": partial(perceptual_of, section, options.features)}
    table = Table("of each slice", *metrics, title=f"{len(people)} slices of {len(set(people))} people")
    compared = {name: images for name, images in rows.items() if name not in ("label map", "real slice")}
    real = rows["real slice"]
    for name, images in (compared | {"another person's slice": real[strangers(people)]}).items():
        table.add_row(name, *(score(make(), images, real, people) for make in metrics.values()))
    Console(width=160).print(table)


ANY = {"max_thickness_mm": 5.0, "single_slices": True, "share": 1.0}
"""What is taken of scans of all kinds."""
METRICS: dict[str, Callable[[], PairedMetric]] = {"SSIM": PairedSSIM, "MS-SSIM": PairedMSSSIM, "PSNR": PairedPSNR}


def perceptual_of(section: dict[str, Any], features: str) -> PairedMetric:
    """The perceptual distance of the features that `evaluate` takes for the data of a config."""
    data = data_of(section)
    train, num_real = (data.images(split, one_per_person=True) for split in ("train", "test"))
    return perceptual(features, train, data.cache / "features", num_dimensions(len(num_real)))


def slices_of(data: TrainingData, splits: Sequence[Split]) -> tuple[list[Batch], list[str]]:
    """Some slices of each person of these splits, and whose each is."""
    of_person: dict[str, list[Batch]] = {}
    for split in splits:
        everybody = data.people(split)
        for one in data.stored(split):
            of_person.setdefault(everybody[one.key[0]], []).append(one)
    slices, people = [], []
    for person, found in of_person.items():
        num = min(PER_PERSON, len(found))
        slices += [found[(2 * i + 1) * len(found) // (2 * num)] for i in range(num)]
        people += [person] * num
    return slices, people


@torch.no_grad()
def images_of(models: Mapping[str, LSDM], slices: Sequence[Batch], num_classes: int) -> dict[str, Tensor]:
    """Name -> images n 1 h w in [-1, 1]: maps, slices, reconstructions and samples, whose seeds are 0, 1, ..."""
    stage = next(iter(models.values())).first_stage
    found: dict[str, list[Tensor]] = {}
    for seed, one in enumerate(slices):
        label_map = cast(Tensor, one.condition.label_map)
        rows = {"label map": 2 * label_map.float() / (num_classes - 1) - 1, "real slice": one.image}
        rows["reconstruction"] = stage.decode(stage.encode(one.image))
        rows |= {name: model.sample(one.condition, [seed]) for name, model in models.items()}
        for name, image in rows.items():
            found.setdefault(name, []).append(image)
    return {name: torch.cat(images) for name, images in found.items()}


def strangers(people: Sequence[str]) -> list[int]:
    """For each slice the index of the next one of another person, beginning again after the last."""
    num = len(people)
    found = []
    for i, person in enumerate(people):
        others = [j % num for j in range(i + 1, i + num) if people[j % num] != person]
        found.append(others[0] if others else i)
    return found


def score(metric: PairedMetric, images: Tensor, targets: Tensor, people: Sequence[str]) -> str:
    """The mean over pairs, with its interval over people."""
    metric.update(images, targets, people)
    found = metric.estimate()
    return f"{found.value:.3f} ({found.ci95[0]:.3f} to {found.ci95[1]:.3f})"


if __name__ == "__main__":
    main()
