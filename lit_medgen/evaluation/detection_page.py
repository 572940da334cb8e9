"""The page of `detect`: tables of sets and detectors, what the sets are, and a verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lit_medgen.evaluation.detectors import BEYOND_PNG
from lit_medgen.evaluation.markdown import table

COLUMNS = {
    "model_z": "model",
    "model_abs_z": "model, untypical",
    "beyond_png_z": "model less PNG",
    "beyond_png_abs_z": "model less PNG, untypical",
    "histogram_z": "histogram",
    "histogram_abs_z": "histogram, untypical",
    "png_z": "PNG",
    "png_abs_z": "PNG, untypical",
}
"""Score -> the head of its column, where there is such a score."""
CONTROLS = ("histogram_z", "histogram_abs_z", "png_z", "png_abs_z")
"""Scores that know no model."""


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    parts = [
        [f"# Images unlike those of training, told by {report['source']}"],
        *([["**Warning**: few validation people; z-scores and typicality rest on them."]] if report["few"] else []),
        _facts(report),
    ]
    if report["detection"]:
        parts += [
            ["Area under the ROC curve: how often an image of the set scores higher than a test image."],
            _areas(report),
            ["False positives: the share of test images above the threshold that finds 95 % of the set."],
            _false_positives(report),
        ]
    if len(report["of_model"]) > 1 and report["detection"]:
        parts += [["The same area for each measure of the model by itself."], _measures(report)]
    parts += [_explanation(report), ["![areas](areas.png)", "![surprises](surprises.png)", "![images](images.png)"]]
    return "\n\n".join("\n".join(part) for part in [*parts, ["## Verdict"], [report["verdict"]]]) + "\n"


def _facts(report: Mapping[str, Any]) -> list[str]:
    """What was compared."""
    facts = [f"* Method: {report['method']}.", f"* Data: {report['data'][:12]} (digest)."]
    for name, one in report["sets"].items():
        facts.append(f"* {name}: {one['of']}; {one['images']} images, {one['people']} people.")
    return facts


def _areas(report: Mapping[str, Any]) -> list[str]:
    """The table of AUC with intervals, a row for each set."""
    return _table(report, lambda row: f"{row['auc']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})")


def _false_positives(report: Mapping[str, Any]) -> list[str]:
    return _table(report, lambda row: f"{row['false_positive_rate']:.3f}")


def _table(report: Mapping[str, Any], shown: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """A row for each set, a column for each score that there is."""
    first = next(iter(report["detection"].values()))
    scores = [score for score in COLUMNS if score in first]
    rows = [[name, *(shown(of[score]) for score in scores)] for name, of in report["detection"].items()]
    return table(["set", *(COLUMNS[score] for score in scores)], rows)


def _measures(report: Mapping[str, Any]) -> list[str]:
    """The AUC of each raw surprise of the model."""
    names = report["of_model"]
    rows = [[set_name, *(f"{of[name]['auc']:.3f}" for name in names)] for set_name, of in report["measure_auc"].items()]
    return table(["set", *names], rows)


def _explanation(report: Mapping[str, Any]) -> list[str]:
    """What the columns are."""
    several = len(report["of_model"]) > 1
    what = "the mean z-score of its measures" if several else "the z-score of its measure"
    return [
        f"* model: {what} ({', '.join(report['of_model'])}) over validation people; untypical: the mean of |z|, so "
        "that images which the model finds too good count as well.",
        *(["* model less PNG: the bits that it needs beyond PNG."] if BEYOND_PNG in report["measures"] else []),
        "* histogram: Wasserstein distance of the grey values from those of validation people. PNG: bits per voxel of "
        "the image as a PNG of 8 bits. Where one of these controls tells a set, the set says little of the model.",
        "",
        "Every score is higher for what is less like training, and no area is turned around: below 0.5 the score finds "
        "the set more like training images than test people are. Intervals: jackknife over people; where all images "
        "are told apart (area 1) it sees no error at all.",
        "",
        "images.png shows real people: as private as the scans.",
    ]


def verdict(report: Mapping[str, Any]) -> str:
    """On which sets the model is surely better than every control, and on which a control does as well."""
    if not report["detection"]:
        return "No set was asked for."
    words: dict[bool, list[str]] = {True: [], False: []}
    for name, of in report["detection"].items():
        own, control = _best(of, of.keys() - set(CONTROLS)), _best(of, CONTROLS)
        both = (f"{COLUMNS[score]} {of[score]['auc']:.2f}" for score in (own, control))
        words[of[own]["ci95"][0] > of[control]["auc"]].append(f"{name} ({'; '.join(both)})")
    better = "The model's best score surely beats every control on: " + (", ".join(words[True]) or "no set") + "."
    return better + (f" It does not on: {', '.join(words[False])}." if words[False] else "")


def _best(of: Mapping[str, Any], scores: Collection[str]) -> str:
    return max(sorted(scores), key=lambda score: float(of[score]["auc"]))
