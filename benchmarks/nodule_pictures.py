"""Pictures of what LSDMs make of the same label maps and seeds, beside the real images; and of one of them over scales.

    python -m benchmarks.nodule_pictures --out pictures.png "SPADE=runs/lsdm_nodules/checkpoints/last.ckpt"
        "both=runs/lsdm_both_nodules/checkpoints/last.ckpt" [--classifier ... --scales scales.png]

With a classifier the first model is also shown guided to the true attributes, and with `--scales` guided to benign and
to malignant, over scales. Maps are those of people whom the models have not seen.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks.data import data_of
from benchmarks.nodule_control import CLASSIFIER_SCALES, asked, guided, made
from lit_medgen import load
from lit_medgen.batch import Request, Requests
from lit_medgen.images.grids import save_figure
from lit_medgen.loading import config_of
from lit_medgen.methods import LSDM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT of each LSDM")
    parser.add_argument("--classifier", help="checkpoint of a CropClassifier that guides the first one")
    parser.add_argument("--scale", type=float, default=1.0, help="of the guidance to the true attributes")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--out", required=True, help="PNG")
    parser.add_argument("--scales", help="PNG: over scales")
    options = parser.parse_args()
    paths = dict(model.split("=", 1) for model in options.models)
    first = next(iter(paths.values()))
    data = data_of(config_of(Path(first))["data"])
    like = data.requests("test")
    numbers = [len(like) * i // options.columns for i in range(options.columns)]
    request = like.joined(numbers)
    rows = {"label map": map_of(request, len(data.spec.classes)), "real": cast(Tensor, request.target)}
    for name, path in paths.items():
        rows[name] = sampled(cast(LSDM, load(path)), request)
    if options.classifier:
        model = guided(first, options.classifier)
        model.classifier_scale = options.scale
        rows[f"{next(iter(paths))}, guided to the true attributes, scale {options.scale:g}"] = sampled(model, request)
        if options.scales:
            save_figure(Path(options.scales), over_scales(model, like, numbers[:3]), len(CLASSIFIER_SCALES))
    save_figure(Path(options.out), rows, options.columns)


def map_of(request: Request, num_classes: int) -> Tensor:
    """Label maps as grey images, n 1 h w in [-1, 1]."""
    return 2 * cast(Tensor, request.condition.label_map).float() / (num_classes - 1) - 1


def sampled(model: LSDM, request: Request) -> Tensor:
    """Images n c h w from maps, attributes and seeds."""
    return model.sample(replace(request.condition, source=None), request.seeds)


def over_scales(model: LSDM, like: Requests, numbers: list[int]) -> dict[str, Tensor]:
    """For each map and label a row of images, one for each scale."""
    rows = {}
    scales = ", ".join(f"{scale:g}" for scale in CLASSIFIER_SCALES)
    for i, number in enumerate(numbers):
        for value, word in enumerate(("benign", "malignant")):
            request = [asked(like, number, float(value))]
            images = [made(model, "classifier", scale, request, 1) for scale in CLASSIFIER_SCALES]
            rows[f"map {i + 1}, asked to be {word}; scales {scales}"] = torch.cat(images)
    return rows


if __name__ == "__main__":
    main()
