"""Whole slices of scans that some LSDMs learned from among others: pictures, and how near samples come to the slices.

Of the people below `--root` whom the models did not learn from (validation and test), every slice: its label map, the
slice, its reconstruction by the first stage, and what each model makes of its map. The table has SSIM, MS-SSIM and PSNR
of each against the slice, beside another such person's slice in the place of a sample.

    python -m benchmarks.whole_slices --root data/whole/real --out real.png
        "SPADE=runs/lsdm_whole/checkpoints/last.ckpt" "both=runs/lsdm_both_whole/checkpoints/last.ckpt"
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

from benchmarks.nodule_classifier import data_of
from lit_medgen import load
from lit_medgen.batch import Batch, TrainingData
from lit_medgen.images.grids import save_figure
from lit_medgen.loading import config_of
from lit_medgen.methods import LSDM
from lit_medgen.metrics.paired import PairedMSSSIM, PairedPSNR, PairedSSIM

MAX_SHOWN = 6
"""Slices in the picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT of each LSDM")
    parser.add_argument("--root", required=True, help="folder of the scans, part of what the models learned from")
    parser.add_argument("--out", required=True, help="PNG: the pictures")
    options = parser.parse_args()
    paths = dict(model.split("=", 1) for model in options.models)
    models = {name: cast(LSDM, load(path)) for name, path in paths.items()}
    first = next(iter(paths.values()))
    data = data_of(config_of(Path(first))["data"], root=options.root)
    batch, people = unseen(data)
    rows = images_of(models, batch, len(data.spec.classes))
    save_figure(Path(options.out), rows, MAX_SHOWN)
    table = Table("of each slice", *METRICS, title=f"{len(people)} slices of {len(set(people))} people")
    compared = {name: images for name, images in rows.items() if name not in ("label map", "real slice")}
    for name, images in (compared | {"another person's slice": batch.image[strangers(people)]}).items():
        table.add_row(name, *(score(metric, images, batch.image, people) for metric in METRICS.values()))
    Console(width=120).print(table)


METRICS = {"SSIM": PairedSSIM, "MS-SSIM": PairedMSSSIM, "PSNR": PairedPSNR}


def unseen(data: TrainingData) -> tuple[Batch, list[str]]:
    """All slices of validation and test people, and whose each is."""
    batches = [one for split in ("val", "test") for one in data.stored(split)]  # type: ignore[arg-type]
    everybody = data.people("val") | data.people("test")
    batch = Batch.join(batches)
    return batch, [everybody[key] for key in batch.key]


@torch.no_grad()
def images_of(models: Mapping[str, LSDM], batch: Batch, num_classes: int) -> dict[str, Tensor]:
    """Name -> images n 1 h w in [-1, 1]: maps, slices, reconstructions and samples, whose seeds are 0, 1, ..."""
    label_map = cast(Tensor, batch.condition.label_map)
    stage = next(iter(models.values())).first_stage
    rows = {"label map": 2 * label_map.float() / (num_classes - 1) - 1, "real slice": batch.image}
    rows["reconstruction"] = stage.decode(stage.encode(batch.image))
    for name, model in models.items():
        rows[name] = model.sample(batch.condition, range(len(batch.image)))
    return rows


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
