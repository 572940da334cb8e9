"""Whole slices of scans without annotations: what LSDMs make of their label maps, and how near it is to the slices.

Of each person below `--root`, from whom the models must not have learned, some slices: the label map, the slice, its
reconstruction by the first stage, and what each model makes of its map. The table has SSIM, MS-SSIM and PSNR of each
against the slice, beside another person's slice in the place of a sample.

    python -m benchmarks.plain_slices --out data/plain_ct <folders with DICOM series>
    python -m benchmarks.whole_slices --root data/plain_ct --out real.png "SPADE=demo/lsdm_demo/checkpoints/last.ckpt"
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

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
from lit_medgen.metrics.paired import PairedMSSSIM, PairedPSNR, PairedSSIM

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""Of people whom the models have not seen, whichever they are."""
PER_PERSON = 2
"""Slices of each person, evenly spread."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT of each LSDM")
    parser.add_argument("--root", required=True, help="folder of the scans")
    parser.add_argument("--out", required=True, help="PNG: the pictures")
    options = parser.parse_args()
    paths = dict(model.split("=", 1) for model in options.models)
    models = {name: cast(LSDM, load(path)) for name, path in paths.items()}
    first = next(iter(paths.values()))
    section = config_of(Path(first))["data"]
    data = data_of(section, root=options.root, ct=section["init_args"]["ct"] | ANY)
    slices, people = slices_of(data)
    rows = images_of(models, slices, len(data.spec.classes))
    save_figure(Path(options.out), rows, len(people))
    table = Table("of each slice", *METRICS, title=f"{len(people)} slices of {len(set(people))} people")
    compared = {name: images for name, images in rows.items() if name not in ("label map", "real slice")}
    real = rows["real slice"]
    for name, images in (compared | {"another person's slice": real[strangers(people)]}).items():
        table.add_row(name, *(score(metric, images, real, people) for metric in METRICS.values()))
    Console(width=120).print(table)


ANY = {"max_thickness_mm": 5.0, "single_slices": True, "share": 1.0}
"""What is taken of scans of all kinds."""
METRICS = {"SSIM": PairedSSIM, "MS-SSIM": PairedMSSSIM, "PSNR": PairedPSNR}


def slices_of(data: TrainingData) -> tuple[list[Batch], list[str]]:
    """Some slices of each person, and whose each is."""
    of_person: dict[str, list[Batch]] = {}
    for split in SPLITS:
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


def score(metric: type[PairedSSIM | PairedPSNR], images: Tensor, targets: Tensor, people: Sequence[str]) -> str:
    """The mean over pairs."""
    made = metric()
    made.update(images, targets, people)
    return f"{float(made.compute()):.3f}"


if __name__ == "__main__":
    main()
