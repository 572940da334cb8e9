"""What a report looks like: report.json, report.md with its verdict, and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lit_medgen.evaluation.nulls import DEFINITIONS
from lit_medgen.files import write_atomically
from lit_medgen.images.grids import save_figure
from lit_medgen.images.plots import save_map, save_scores
from lit_medgen.output import say

NUM_SHOWN = 6
"""Images of each kind in the figure."""
NOT_JUDGED = ("nearest_training",)
"""Scores of copying: a null that is like nobody is not better for it."""


def write_report(
    out: Path,
    report: dict[str, Any],
    rows: Mapping[str, Tensor],
    points: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """report.json, report.md and the figures; rows: title -> images, points: as `save_map` takes them."""
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    write_atomically(out / "report.md", as_markdown(report))
    save_scores(out / "scores.png", report)
    save_figure(out / "samples.png", rows, NUM_SHOWN)
    save_map(out / "map.png", points)
    say(f"report: {out / 'report.md'}; figures: {out / 'samples.png'}, scores.png, map.png\n{report['verdict']}")


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table, a row for each score, then what its columns are, the figures and the verdict."""
    names = list(report["nulls"])
    lines = [
        f"# Evaluation of {report['source']}",
        "",
        "| score | samples | 95 % interval | real vs real | of images | " + " | ".join(names) + " | n | from |",
        "|---|---|---|---|---|" + "---|" * len(names) + "---|---|",
    ]
    for name, row in report["metrics"].items():
        null_cells = " | ".join(f"{report['nulls'][null][name]:.4g}" for null in names)
        low, high = row["ci95"]
        lines.append(
            f"| {name} | {row['value']:.4g} | {low:.4g} to {high:.4g} | {row['real_vs_real']:.4g} "
            f"| {_of_images(report['floors'][name])} | {null_cells} "
            f"| {row['num_samples']} vs {row['num_real']} | {row['features']} |"
        )
    empty = " |" * (len(names) + 3)
    for name, row in report.get("reconstruction", {}).items():
        low, high = row["ci95"]
        lines.append(
            f"| reconstruction {name} | {row['value']:.4g} | {low:.4g} to {high:.4g} |{empty} {row['features']} |"
        )
    if report["seconds_per_image"] is not None:
        lines += ["", f"A sample took {report['seconds_per_image']:.3g} s, its file included."]
    if "note" in report:
        lines += ["", report["note"]]
    if report["ranking"]:
        lines += ["", *_ranking(report["ranking"])]
    return "\n".join([*lines, "", *_explanation(report), "", "## Verdict", "", report["verdict"], ""])


def _of_images(floor: Mapping[str, Any]) -> str:
    """How many images a real-vs-real value is of."""
    number = str(floor["images"]) if floor["sets"] == 1 else f"{floor['sets']} x {floor['images']}"
    return f"{number} {floor['people']}"


def _ranking(ranking: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    lines = [
        "Fréchet distance of unseen people from themselves, distorted a little, more and much:",
        "",
        "| features | distortion | a little | more | much | ranked |",
        "|---|---|---|---|---|---|",
    ]
    for view, distortions in ranking.items():
        for name, distances in distortions.items():
            cells = " | ".join(f"{distance:.4g}" for distance in distances)
            ranked = "yes" if 0 < distances[0] < distances[1] < distances[2] else "NO"
            lines.append(f"| {view} | {name} | {cells} | {ranked} |")
    return lines


def _explanation(report: Mapping[str, Any]) -> list[str]:
    """What the columns are, and the figures."""
    return [
        f"Real people: the test split, {report['images_per_person']} image(s) each. Audit: none.",
        "",
        "Real vs real: the same score of real images in the place of samples, as many as *of images* says: of training "
        "people the mean over that many random sets (sets x images), or of the test people themselves. Best is a score "
        "as near to it as possible.",
        "",
        "Intervals: jackknife over people, cut off where a score ends. Conservative, with an error 1.4 to 1.9 times "
        f"the true one for a model as good as real people: {', '.join(report['conservative'])}. Where all images count "
        "the same (precision 1), the jackknife sees no error at all.",
        "",
        "Nulls, which any model must beat:",
        "",
        *[f"* {name}: {DEFINITIONS[name]}." for name in report["nulls"]],
        "",
        "A linear null may match the mean image, and so the MMDs, better than a model that makes sharp images. "
        "nearest_training compares with training people: above real vs real, samples are nearer to them than unseen "
        "people are.",
        "",
        "samples.png shows real people beside the samples: it is as private as the scans.",
        "",
        "![samples](samples.png)",
        "![scores](scores.png)",
        "![map](map.png)",
    ]


def verdict(report: Mapping[str, Any]) -> str:
    """What the numbers say, in a few sentences: of each null, of real people, of copies."""
    rows = {name: row for name, row in report["metrics"].items() if name not in NOT_JUDGED}
    words: dict[bool, list[str]] = {True: [], False: []}
    for null, scores in report["nulls"].items():
        nearer = [row for name, row in rows.items() if _away(row, row["value"]) < _away(row, scores[name])]
        surely = [
            row for name, row in rows.items() if max(_away(row, end) for end in row["ci95"]) < _away(row, scores[name])
        ]
        words[len(nearer) > len(rows) / 2].append(f"{null} ({len(nearer)}, {len(surely)} with the whole interval)")
    beaten, others = (" and ".join(filter(None, [", ".join(some[:-1]), *some[-1:]])) for some in words.values())
    held = sum(row["ci95"][0] <= row["real_vs_real"] <= row["ci95"][1] for row in rows.values())
    return (
        f"By most of {len(rows)} scores the samples are nearer to real people than {beaten or 'no null'}"
        + (f"; by half or fewer, than {others}" if others else "")
        + f". The interval holds the real-vs-real value in {held} of {len(rows)}. {_of_copies(report)}"
    )


def _of_copies(report: Mapping[str, Any]) -> str:
    if "reconstruction" in report:
        return "Samples are reconstructions of unseen people, so they can be no copies of training people."
    row = report["metrics"]["nearest_training"]
    numbers = f"(nearest_training {row['value']:.3g}, of unseen people {row['real_vs_real']:.3g})"
    if row["ci95"][0] > row["real_vs_real"]:
        return f"Samples are more like training people than unseen people are {numbers}: look for copies."
    return f"No sign of copies {numbers}, but no audit was made."


def _away(row: Mapping[str, Any], value: float) -> float:
    """How far a value is from that of real people."""
    return abs(value - float(row["real_vs_real"]))
