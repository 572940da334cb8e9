"""The page of `utility`: tables of what was trained on what, what the numbers are, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lit_medgen.evaluation.markdown import table

HEADS = {
    "real": "real people (the ceiling)",
    "synthetic": "samples",
    "difference": "samples less real people",
    "reverse": "real people, tested on samples",
    "exchanged": "real people with the targets of others (the floor)",
    "constant": "nothing: one prediction for all",
}
"""Row of the first table -> what was trained on; tested on test people unless it says so."""


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    parts = [[f"# Utility of {report['source']}"], _facts(report)]
    for name, task in report["tasks"].items():
        parts += [
            [f"## {name}: a {task['kind']}"],
            _sizes(task),
            _heads(task),
            ["Shares of the real training people, alone and with samples added:"],
            _curve(task),
        ]
    parts += [_explanation(report), ["![curves](curves.png)"], ["## Verdict"], [report["verdict"]]]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _facts(report: Mapping[str, Any]) -> list[str]:
    return [
        f"* Samples: {report['num_samples']}, of {report['method']}.",
        f"* Data: {report['data'][:12]} (digest).",
        f"* Each network: {report['num_steps']} updates of {report['batch_size']} images; {report['num_seeds']} seeds.",
        *(f"* Passed over: {name} ({why.removesuffix('.')})." for name, why in report["passed_over"].items()),
    ]


def _sizes(task: Mapping[str, Any]) -> list[str]:
    people, images, size = task["people"], task["images"], " x ".join(map(str, task["size"]))
    return [
        f"Real: {people['train']} training people ({images['train']} images), {people['test']} test people "
        f"({images['test']} images). Samples: {images['samples']}. Networks see {size} voxels. The first table: "
        f"{task['equal']} images of each kind."
    ]


def _heads(task: Mapping[str, Any]) -> list[str]:
    rows = [[words, *_cells(task, task["heads"][head])] for head, words in HEADS.items()]
    return table(["trained on", *_columns(task)], rows)


def _columns(task: Mapping[str, Any]) -> Iterator[str]:
    for score in task["scores"]:
        yield from (score, "95 % interval")


def _cells(task: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[Any]:
    for score in task["scores"]:
        yield from (scores[score]["value"], scores[score]["ci95"])


def _curve(task: Mapping[str, Any]) -> list[str]:
    """A row for each share alone, then with samples, of the leading score."""
    score, rows = next(iter(task["scores"])), []
    for point in task["curve"]:
        alone, words = point["real"][score], f"{100 * point['share']:g} %, {point['people']} people"
        rows.append([words, "none", alone["value"], alone["ci95"], "", ""])
        for added in point["added"]:
            row, less = added["scores"][score], added["difference"][score]
            rows.append([words, added["samples"], row["value"], row["ci95"], less["value"], less["ci95"]])
    return table(
        ["real people", "samples added", score, "95 % interval", "with less without", "95 % interval"],
        rows,
    )


def _explanation(report: Mapping[str, Any]) -> list[str]:
    num = sum(1 + sum(len(point["added"]) for point in task["curve"]) for task in report["tasks"].values())
    return [
        "* auc: area under the ROC curve, of several values the mean of each against the rest; r2: share of the "
        "variance explained; mae: mean absolute error in the unit of the data; dice: mean over the classes that test "
        "people show, each in the images that show it.",
        "* Rows are tested on the same unseen people (the test split) unless they say otherwise. All networks of a "
        "task take equally many updates and start from the same weights for the same seed; none looks at validation "
        "people.",
        "* Intervals hold the test people (jackknife) and the seeds: which people and samples were trained on, from "
        f"which weights. Differences are taken person by person. Each of the {num} differences of leading scores has "
        "a 95 % interval of its own, so one in 20 leaves out 0 by chance alone. "
        "Where every network tells every test person rightly, the interval has no width: it is too narrow.",
        "* The model of the samples was trained on all training people. The curve says what its samples add for "
        "somebody who has a share of these people, not what a model trained on that share would add.",
    ]


def verdict(report: Mapping[str, Any]) -> str:
    """For each task how far samples replace real people, and where adding them surely helps or harms."""
    return " ".join(f"{name}: {_of_task(task)}" for name, task in report["tasks"].items())


def _of_task(task: Mapping[str, Any]) -> str:
    score, heads = next(iter(task["scores"])), task["heads"]
    real, synthetic, floor = (heads[head][score] for head in ("real", "synthetic", "constant"))
    if not _beats(real, floor["value"]):
        few = f"{task['equal']} real images teach no more than a guess ({score} {_row(real)}): samples have no measure"
        return f"{few}. {_of_curve(task, score)}"
    apart = _sign(heads["difference"][score])
    words = {1: "surely more than", -1: "surely less than", 0: "neither surely more nor surely less than"}[apart]
    return (
        f"trained on {task['equal']} samples, {score} {_row(synthetic)} of unseen people; on as many real images "
        f"{_row(real)}; samples teach {words} real images ({_row(heads['difference'][score])}). "
        f"{_of_curve(task, score)}"
    )


def _of_curve(task: Mapping[str, Any], score: str) -> str:
    """Where adding samples helps or harms; nothing is said of two networks of which neither beats a guess."""
    words = {
        1: "surely helps",
        -1: "surely harms",
        0: "makes no difference that can be told",
        None: "or not, networks do no better than a guess",
    }
    found: dict[int | None, list[str]] = {sign: [] for sign in words}
    floor = task["heads"]["constant"][score]["value"]
    for point in task["curve"]:
        for added in point["added"]:
            less, rows = added["difference"][score], (point["real"][score], added["scores"][score])
            sign = _sign(less) if any(_beats(row, floor) for row in rows) else None
            found[sign].append(f"{added['samples']} to {point['people']} people ({less['value']:+.3f})")
    return " ".join(f"Adding samples {words[sign]}: {', '.join(some)}." for sign, some in found.items() if some)


def _beats(row: Mapping[str, Any], floor: float) -> bool:
    """Whether the whole interval of a score is above that of one prediction for all."""
    return bool(row["ci95"]) and row["ci95"][0] > floor


def _sign(row: Mapping[str, Any]) -> int:
    """1 or -1 if the whole interval of a difference is above or below 0, else 0."""
    low, high = row["ci95"] or (-1, 1)
    return (low > 0) - (high < 0)


def _row(row: Mapping[str, Any]) -> str:
    interval = f" ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})" if row["ci95"] else ""
    return f"{row['value']:.3f}{interval}"
