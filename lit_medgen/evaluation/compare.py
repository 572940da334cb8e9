"""`compare REPORT...`: finished reports as one table and four figures, without their models and data.

    compare.md, compare.csv, compare.tex    the table; which model is best: `lit_medgen.evaluation.ranked`
    scores.png        every score with its interval, models side by side, real images as a line
    samples.png       samples of each model beside real images (Peng et al. 2023, figure 4)
    map.png           samples and the training images most like them, by t-SNE (Peng et al. 2023, figure 5)
    trajectory.png    one sample at steps of its making, of each model that shows them

Reports are comparable if they are of the same people, images, size, features and number of samples. Those of different
folds of a cross-validation are tested on other people of one cohort, so they stand in one table and are ranked apart.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from lit_medgen.errors import InputError, describe
from lit_medgen.evaluation.checks import NONE
from lit_medgen.evaluation.pictures import Pictures, read_pictures
from lit_medgen.evaluation.ranked import NULL, REAL, Table, is_paired, rows_of, table_of
from lit_medgen.evaluation.report_form import first_mistake
from lit_medgen.evaluation.tables import MARKS, as_comma_separated, as_latex, as_markdown, literal
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.images.comparisons import save_compared, save_maps, save_side_by_side, save_trajectories
from lit_medgen.output import say

FILES = ("compare.md", "compare.csv", "compare.tex", "scores.png", "samples.png", "map.png", "trajectory.png")
NEEDED = ("name", "reference", "features", "num_samples", "metrics", "nulls")
"""Keys of a report that older versions did not all write."""
REMEDIES = {
    "part": "evaluate both on the same part",
    "size": "evaluate both at the same size",
    "cohort": "these are other people: give both the same data.init_args.root, and the same list of who is left out",
    "people": "give both the same data.init_args.seed, fractions and fold, or the same lists",
    "images": "give both the same preprocessing, and views that evaluate the same slices",
    "features": "give both the same --features",
    "num_samples": "give both the same --num",
}
"""What of two reports must be the same -> what the user can do where it is not, in the order in which it is told."""
OF_A_FOLD = ("people", "images", "features", "num_samples")
"""What differs between folds."""

NOT_FOR_MODELS = ("real", REAL)
"""Names of real images in tables and figures."""

RULE = (
    "Intervals: 95 %, jackknife over people. Best is the lowest score (↓), the highest (↑), or the one nearest to real "
    "vs real (→ real), where the distance from it is compared, with the interval that follows. Bold: best, and its "
    "interval meets that of no other model; where it meets some, these are not told apart from it. Seconds are of the "
    "machine that made the samples."
)


@dataclass(frozen=True)
class Compared:
    """A report that is compared.

    Attributes:
        folder: that it was read from.
        report: the content of report.json.
        pictures: what figures show of it.
    """

    folder: Path
    report: Mapping[str, Any]
    pictures: Pictures


def compare(args: list[str]) -> None:
    """The verb `compare REPORT... [--out DIR] [--names NAME...]`."""
    parser = jsonargparse.ArgumentParser(
        prog="lit_medgen compare",
        exit_on_error=False,
        description="Put finished reports side by side: one table (Markdown, CSV, LaTeX) and figures.",
    )
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="a folder that `evaluate` wrote a report to")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="folder of the table and the figures")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="a name for each report; those of the runs if not given"
    )
    try:
        options = parser.parse_args(args)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"compare: {error}") from error
    run_compare(options.reports, options.out, options.names)


def run_compare(reports: Sequence[str], out: str = "comparison", names: Sequence[str] | None = None) -> None:
    """Writes the comparison of reports into a folder.

    Args:
        reports: folders that `evaluate` wrote, or run folders that have one in `report`.
        out: folder of the table and the figures.
        names: of the models, one for each report; None: the names of the runs.
    """
    outputs = Outputs(Path(out), "compare", FILES)
    outputs.check()
    models = read_reports(reports, names)
    table = table_of({name: one.report for name, one in models.items()})
    outputs.clear()
    outputs.claim()
    _write(Path(out), models, table)
    outputs.end()
    best = {line.name: [score for score, cell in line.cells.items() if cell.best] for line in table.lines}
    listed = "; ".join(f"{name} {', '.join(scores)}" for name, scores in best.items() if scores)
    say(f"{len(models)} models: {Path(out) / 'compare.md'}; best by their intervals: {listed or 'none'}")


def read_reports(folders: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Compared]:
    """Name of a model -> its report; InputError for what cannot be compared. Arguments are those of `run_compare`."""
    if len(folders) < 2:
        raise InputError(f"compare: {len(folders)} report; give two or more.")
    found = [read_report(Path(folder)) for folder in folders]
    models = dict(zip(_names(found, names), found, strict=True))
    refuse_different(models)
    return models


def read_report(folder: Path) -> Compared:
    """A report with what figures show of it; InputError if it is none, or of a version that lacks what is needed."""
    inside = folder / "report"
    folder = inside if not (folder / "report.json").is_file() and (inside / "report.json").is_file() else folder
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: not there; give a folder that `evaluate` wrote a report to.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({describe(error)}); run `evaluate` again.") from error
    if isinstance(report, dict) and "own" in report and "metrics" not in report:
        raise InputError(f"{path}: of {report.get('method')}, which makes no images; give reports of samples.")
    missing = [key for key in NEEDED if not isinstance(report, dict) or key not in report]
    if missing:
        version = report.get("lit_medgen") if isinstance(report, dict) else None
        writer = f"lit_medgen {version}" if version else "an older lit_medgen"
        raise InputError(f"{path}: lacks {', '.join(missing)} (written by {writer}); run `evaluate` again.")
    if mistake := first_mistake(report):
        raise InputError(f"{path}: not as `evaluate` writes it ({mistake}); run `evaluate` again.")
    if not rows_of(report):
        raise InputError(f"{path}: none of its scores was measured; give reports that have some.")
    return Compared(folder, report, read_pictures(folder))


def fingerprint(report: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be the same for scores to be comparable, in the order in which differences are told."""
    reference = report["reference"]
    return {
        **{key: reference[key] for key in ("part", "size", "cohort", "people", "images")},
        "features": report["features"],
        "num_samples": report["num_samples"],
    }


def refuse_different(models: Mapping[str, Compared]) -> None:
    """InputError for two reports whose scores cannot be compared: which they are, in what they differ, both values."""
    (first, reference), *others = models.items()
    expected = fingerprint(reference.report)
    for name, other in others:
        folds = [one.report["reference"]["fold"] for one in (reference, other)]
        across = all(folds) and folds[0] != folds[1]
        for key, value in fingerprint(other.report).items():
            if value != expected[key] and not (across and key in OF_A_FOLD):
                raise InputError(
                    f"compare: {first} ({reference.folder}) and {name} ({other.folder}) differ in {key}: "
                    f"{expected[key]}, {value}; {REMEDIES[key]}."
                )
    _refuse_within_folds(models)
    refuse_other_pictures(models)


def refuse_other_pictures(models: Mapping[str, Compared]) -> None:
    """InputError for reports whose pictures no figure can show together, as those of two versions."""
    (first, reference), *others = models.items()
    for name, other in others:
        same = {"planes": [one.pictures.real.shape[1:] for one in (reference, other)]}
        if NONE != reference.report["features"] == other.report["features"]:  # points of voxels are embedded apart
            same["coordinates"] = [one.pictures.points_samples.shape[1:] for one in (reference, other)]
        for what, (expected, found) in same.items():
            if found != expected:
                raise InputError(
                    f"compare: compared.npz of {first} ({reference.folder}) and of {name} ({other.folder}) differ in "
                    f"{what}: {list(expected)}, {list(found)}; run `evaluate` again for both."
                )


def _refuse_within_folds(models: Mapping[str, Compared]) -> None:
    """The same for the models of each fold but that of the first, which has been looked at."""
    (_, first), *_ = models.items()
    fold = first.report["reference"]["fold"]
    rest = {name: one for name, one in models.items() if one.report["reference"]["fold"] != fold}
    if rest:
        refuse_different(rest)


def _names(found: Sequence[Compared], names: Sequence[str] | None) -> list[str]:
    """A name for each report; InputError if two are alike, or not each has one."""
    if names is not None and len(names) != len(found):
        raise InputError(f"--names: {len(names)} names for {len(found)} reports; give one for each.")
    chosen = [_printable(name) for name in names or [one.report["name"] or one.folder.name for one in found]]
    for name, one in zip(chosen, found, strict=True):
        if not name or name in NOT_FOR_MODELS or name.startswith(NULL):
            raise InputError(f"compare: {one.folder} has the name {name!r}, which no model can have; give --names.")
    if twice := [name for name, count in Counter(chosen).items() if count > 1]:
        where = ", ".join(str(one.folder) for name, one in zip(chosen, found, strict=True) if name == twice[0])
        raise InputError(f"compare: {where} have the same name, {twice[0]!r}; give each its own with --names.")
    return chosen


def _printable(name: str) -> str:
    """A name in one line, with a question mark for each character that a terminal obeys instead of printing it."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(name.split()))


def _write(out: Path, models: Mapping[str, Compared], table: Table) -> None:
    """The table in three forms, and the figures."""
    write_atomically(out / "compare.csv", as_comma_separated(table))
    write_atomically(out / "compare.tex", as_latex(table))
    pictures = {name: one.pictures for name, one in models.items()}
    save_compared(out / "scores.png", list(_panels(models, table)))
    real = next(iter(pictures.values())).real
    save_side_by_side(out / "samples.png", {"real": real, **{name: some.samples for name, some in pictures.items()}})
    save_maps(out / "map.png", _points(models))
    trajectories = {name: some.trajectory for name, some in pictures.items() if len(some.trajectory)}
    if trajectories:
        save_trajectories(out / "trajectory.png", trajectories)
    write_atomically(out / "compare.md", _page(models, table, bool(trajectories)))


def _panels(models: Mapping[str, Compared], table: Table) -> Iterator[dict[str, Any]]:
    """What `save_compared` shows of each score."""
    rows = {name: rows_of(one.report) for name, one in models.items()}
    for score, mark in table.columns.items():
        of = {name: some[score] for name, some in rows.items() if score in some}
        points = {
            name: (row.value, *row.interval, math.nan if row.real is None else row.real) for name, row in of.items()
        }
        best = [line.name for line in table.lines if score in line.cells and line.cells[score].best]
        yield {"title": f"{score} {MARKS[mark]}", "points": points, "best": best}


def _points(models: Mapping[str, Compared]) -> list[dict[str, dict[str, Any]]]:
    """What `save_maps` embeds together: the points of all models that share their features."""
    spaces: dict[str, dict[str, dict[str, Any]]] = {}
    for name, one in models.items():
        features = one.report["features"]
        points = {kind: getattr(one.pictures, f"points_{kind}") for kind in ("samples", "nearest", "unseen")}
        spaces.setdefault(name if features == NONE else features, {})[name] = points
    return list(spaces.values())


def _page(models: Mapping[str, Compared], table: Table, has_trajectories: bool) -> str:
    """The comparison as a page."""
    (_, first), *_ = models.items()
    facts = fingerprint(first.report)
    pictures = [name for name in FILES if name.endswith(".png") and (has_trajectories or name != "trajectory.png")]
    parts = [
        ["# Comparison of " + ", ".join(map(literal, models))],
        [
            f"* Real images: {facts['part']} people, {' x '.join(map(str, facts['size']))} voxels; hashes: "
            f"{', '.join(facts['images'].values())}.",
            *[f"* {literal(name)}: {_described(one)}." for name, one in models.items()],
        ],
        *as_markdown(table),
        [f"* {literal(remark)}." for remark in table.remarks],
        [RULE],
        [f"![{Path(name).stem}]({name})" for name in pictures],
        ["samples.png and map.png show real people: as private as the scans."],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _described(one: Compared) -> str:
    """What a model is, and what its report is of."""
    report = one.report
    fold = f"fold {report['reference']['fold']}, " if report["reference"]["fold"] else ""
    what = literal(f"{report['method']}, {report['source']}" if report["method"] else report["source"])
    like = ", each made from what shows how it should be" if is_paired(report) else ""
    return f"{what}; {fold}{report['num_samples']} samples{like}; features: {literal(report['features'])}"
