"""The page of `anomalies`, and its figure of images, counterparts, maps and what is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen.evaluation.anomalies import Mapped
from lit_medgen.evaluation.markdown import table
from lit_medgen.images.grids import save_figure

SCORES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "dice": "Dice",
    "false_positives": "false positives",
}
NUM_ILL, NUM_WELL = 6, 2
"""Images that the figure shows: with lesions, and without."""
WHITE_QUANTILE = 0.998
"""Share of the voxels shown that are below the white of the maps."""


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    parts = [
        [f"# What {report['method']} did not expect, by {report['source']}"],
        _facts(report),
        _scores(report) if "detectors" in report else [f"No scores: {report['unscored']}."],
        [
            "![images, counterparts, maps](anomalies.png)",
            "",
            "They and `maps/` show people: as private as scans.",
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _facts(report: Mapping[str, Any]) -> list[str]:
    """How the maps were made."""
    asked = ", ".join(f"{name} {value:g}" for name, value in report["attributes"].items())
    guided = f"guided to {asked} with scale {report['guidance']:g}" if asked else "not guided"
    return [
        f"* {report['num']} images of {report['num_people']} test people; data {report['data'][:12]} (digest).",
        f"* To noise by {report['way']} up to t = {report['level']:g}, {report['num_steps']} steps each way, {guided}; "
        f"mean over {report['repeats']} counterpart{'s' * (report['repeats'] > 1)} of each image.",
        "* Map: mean over channels of |image - counterpart|, images in [-1, 1].",
    ]


def _scores(report: Mapping[str, Any]) -> list[str]:
    """The table of detectors, and what its columns are."""
    rows = [
        [name, *(_cell(one["scores"].get(score)) for score in SCORES), f"{one['threshold']:.3g}"]
        for name, one in report["detectors"].items()
    ]
    first = next(iter(report["detectors"].values()))["scores"]
    ill, well = first["auroc"], first.get("false_positives")
    healthy = f"{well['num']} images without lesions of {well['num_people']} people" if well else "no image without"
    return [
        f"Lesions: {', '.join(report['lesions'])}; {ill['num']} images with lesions of {ill['num_people']} people, and "
        f"{healthy}. Only foreground counts, of which {report['prevalence']:.2%} is lesion in images with lesions.",
        "",
        *table(["map", *SCORES.values(), "threshold"], rows),
        "",
        "* AUROC and average precision: of the voxels of all images with lesions together; chance is 0.5 and "
        f"{report['prevalence']:.3f}.",
        f"* Threshold: the value that {report['share']:.2%} of the foreground of {report['num_healthy']} validation "
        "images without lesions exceeds; the same for all images. Dice: mean over images with lesions.",
        "* False positives: the share of the foreground of test images without lesions above the threshold.",
        "* In brackets the 95 % interval: jackknife over people.",
    ]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "none"
    interval = "" if row["ci95"] is None else f" ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})"
    return f"{row['value']:.3f}{interval}"


def examples(found: Sequence[Mapped]) -> list[Mapped]:
    """Images for a figure: of people with lesions the image with the largest each, then some without."""
    ill: dict[str, Mapped] = {}
    for one in sorted((one for one in found if one.has_lesion), key=_size, reverse=True):
        ill.setdefault(one.person or one.key, one)
    well = [one for one in found if not one.has_lesion]
    spread = [well[len(well) * k // NUM_WELL] for k in range(NUM_WELL)] if len(well) >= NUM_WELL else well
    return [*list(ill.values())[:NUM_ILL], *spread]


def save_examples(path: Path, found: Sequence[Mapped]) -> None:
    """A PNG of images, their counterparts, their maps (all with one white) and what is marked."""
    shown = examples(found)
    maps = torch.stack([one.map for one in shown])[:, None]
    white = float(maps.flatten().double().quantile(WHITE_QUANTILE)) or 1.0
    marks = [torch.zeros_like(one.map) if one.lesion is None else one.lesion.float() for one in shown]
    rows = {
        "image": _grey([one.image for one in shown]),
        "counterpart": _grey([one.counterpart for one in shown]),
        f"map (white: {white:.2g} of 2)": (maps / white).clamp(0, 1) * 2 - 1,
        "marked": torch.stack(marks)[:, None] * 2 - 1,
    }
    save_figure(path, rows, len(shown))


def _grey(images: Sequence[Tensor]) -> Tensor:
    """n 1 *s: the means over channels."""
    return torch.stack(list(images)).mean(1, keepdim=True)


def _size(one: Mapped) -> int:
    return 0 if one.lesion is None else int(one.lesion.sum())
