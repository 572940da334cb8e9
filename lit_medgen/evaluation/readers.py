"""The verb `readers`: what readers took for real, from the answers that the page of a study saved.

    readers.md, readers.json    of every reader, and over them, how often real and synthetic images were told

A share has Wilson's 95 % interval over the reader's images (Wilson 1927), the mean over readers one of Student's t over
readers. The area under the ROC curve is of answers with their certainty, from `certain: real` to `certain: synthetic`:
0.5 is a reader who cannot tell.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.evaluation.markdown import table
from lit_medgen.evaluation.quartets import COLUMNS, KEY
from lit_medgen.evaluation.tables import literal
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.output import say

FILES = ("readers.md", "readers.json")
ANSWERS = ("study", "reader", "quartet", "place", "answer", "sure", "seconds")
KINDS = ("real", "synthetic")
LEVELS = ("1", "2", "3")
SCORES = ("correct", "synthetic_told", "real_told", "auc")
RULE = (
    "Shares of images with 95 % intervals (of a reader: Wilson's, over images; of the mean: Student's, over readers, "
    "and none where all readers have the same score, since that does not say how others would differ). "
    "Of a reader who cannot tell, `correct` and the area under the ROC curve are 0.5."
)


@dataclass(frozen=True)
class Answer:
    """What a reader said of an image.

    Attributes:
        reader: initials, as given in the page.
        quartet: number of the quartet, from 1 on.
        place: number of the image in it, 1 to 4.
        synthetic: whether the reader took it for synthetic.
        sure: 1 guessed, 2 rather sure, 3 certain.
    """

    reader: str
    quartet: int
    place: int
    synthetic: bool
    sure: int

    @property
    def certainty(self) -> int:
        """From -3, certain that it is real, to 3, certain that it is synthetic."""
        return self.sure if self.synthetic else -self.sure


def readers(args: list[str]) -> None:
    """The verb `readers STUDY ANSWERS... [--out DIR]`."""
    parser = jsonargparse.ArgumentParser(
        prog="lit_medgen readers",
        exit_on_error=False,
        description="Score what readers answered to the quartets of `evaluate --quartets`.",
    )
    parser.add_argument("study", metavar="STUDY", help="the folder `readers` of the report, with key.csv")
    parser.add_argument("answers", nargs="+", metavar="ANSWERS", help="CSV files that the page saved")
    parser.add_argument("--out", default="readers", metavar="DIR", help="folder of readers.md and readers.json")
    try:
        options = parser.parse_args(args)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"readers: {error}") from error
    run_readers(Path(options.study), [Path(path) for path in options.answers], Path(options.out))


def run_readers(study: Path, answers: Sequence[Path], out: Path) -> dict[str, Any]:
    """Writes the scores of all readers into a folder, and returns them.

    Args:
        study: the folder with `key.csv`.
        answers: files of readers.
        out: folder of readers.md and readers.json.
    """
    outputs = Outputs(out, "readers", FILES)
    outputs.check()
    name, truth = read_key(study / KEY)
    found: dict[str, list[Answer]] = {}
    for path in answers:
        for reader, some in by_reader(read_answers(path, name, truth)).items():
            if reader in found:
                raise InputError(
                    f"{path}: the answers of {reader!r} were in a file before; give each reader's last file."
                )
            found[reader] = some
    report = scores_of(found, truth)
    outputs.clear()
    outputs.claim()
    write_atomically(out / "readers.json", json.dumps({"study": name} | report, indent=2))
    write_atomically(out / "readers.md", as_markdown(report))
    outputs.end()
    say(f"{len(found)} readers, {report['answers']} answers: {out / 'readers.md'}")
    return report


Truth = Mapping[tuple[int, int], bool]
"""Quartet and place -> whether the image there is synthetic."""


def read_key(path: Path) -> tuple[str, Truth]:
    """The name of a study, and what its images are; InputError for a file that is no key."""
    rows = _rows(path, COLUMNS, "give the folder `readers` of a report that `evaluate --quartets` wrote")
    try:
        truth = {(int(row["quartet"]), int(row["place"])): {"0": False, "1": True}[row["synthetic"]] for row in rows}
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {error}; the key was changed: run `evaluate --quartets` again.") from error
    if len({row["study"] for row in rows}) != 1:
        raise InputError(f"{path}: not of one study; give the key that was written beside the page.")
    return rows[0]["study"], truth


def read_answers(path: Path, study: str, truth: Truth) -> list[Answer]:
    """The answers of a file; InputError for another study's, for what no page saves, and for a second answer."""
    found, seen = [], set()
    for line, row in enumerate(_rows(path, ANSWERS, "give a file that the page saved"), 2):
        if row["study"] != study:
            raise InputError(
                f"{path}, line {line}: of study {row['study']!r}, not of {study!r}; give answers to this page."
            )
        quartet, place = (int(row[name]) if (row[name] or "").isdecimal() else -1 for name in ("quartet", "place"))
        if (quartet, place) not in truth or row["answer"] not in KINDS or row["sure"] not in LEVELS:
            raise InputError(
                f"{path}, line {line}: quartet {row['quartet']!r}, place {row['place']!r}, answer {row['answer']!r}, "
                f"sure {row['sure']!r}; expected an image of the study, {' or '.join(KINDS)}, and 1 to 3."
            )
        if not row["reader"].strip():
            raise InputError(f"{path}, line {line}: no reader; write the reader's initials into that column.")
        if (of := (row["reader"], quartet, place)) in seen:
            raise InputError(f"{path}, line {line}: {row['reader']!r} answered this image before; keep one answer.")
        seen.add(of)
        found.append(Answer(row["reader"], quartet, place, row["answer"] == "synthetic", int(row["sure"])))
    return found


def _rows(path: Path, columns: Sequence[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a CSV file with these columns, one at least."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"{path}: not there; {remedy}.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({describe(error)}); {remedy}.") from error
    if not rows or (missing := [name for name in columns if rows[0].get(name) is None]):
        raise InputError(f"{path}: {'no rows' if not rows else 'no column ' + ', '.join(missing)}; {remedy}.")
    return rows


def by_reader(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Reader -> the reader's answers."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.reader, []).append(answer)
    return found


def scores_of(found: Mapping[str, Sequence[Answer]], truth: Truth) -> dict[str, Any]:
    """The scores of every reader, and their means over readers."""
    each = {reader: _scores(answers, truth) for reader, answers in found.items()}
    over = {name: _mean([row[name]["value"] for row in each.values()]) for name in SCORES}
    return {"answers": sum(map(len, found.values())), "readers": each, "mean": over}


def _scores(answers: Sequence[Answer], truth: Truth) -> dict[str, Any]:
    is_synthetic = np.array([truth[one.quartet, one.place] for one in answers])
    said = np.array([one.synthetic for one in answers])
    certainty = [one.certainty for one in answers]
    return {
        "answers": len(answers),
        "correct": _share(said == is_synthetic),
        "synthetic_told": _share(said[is_synthetic]),
        "real_told": _share(~said[~is_synthetic]),
        "auc": {"value": float(roc_auc_score(is_synthetic, certainty)) if 0 < is_synthetic.mean() < 1 else None},
    }


def _share(hits: np.ndarray) -> dict[str, Any]:
    """A share with Wilson's interval; None of nothing."""
    if not len(hits):
        return {"value": None}
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {"value": float(hits.mean()), "ci95": [float(interval.low), float(interval.high)]}


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    """The mean over readers, with Student's interval, which ends at 0 and 1, where two or more of them differ.

    Where all have the same score, how readers differ is not known: an interval of no width would say that it is.
    """
    there = [value for value in values if value is not None]
    if len(set(there)) < 2:
        return {"value": there[0] if there else None}
    mean, half = np.mean(there), stats.t.ppf(0.975, len(there) - 1) * np.std(there, ddof=1) / len(there) ** 0.5
    return {"value": float(mean), "ci95": [max(float(mean - half), 0.0), min(float(mean + half), 1.0)]}


def as_markdown(report: Mapping[str, Any]) -> str:
    """The scores as a table; 0.5 in every column is a reader who cannot tell."""
    each = [(literal(reader), row) for reader, row in report["readers"].items()]
    each.append(("mean of readers", report["mean"] | {"answers": report["answers"]}))
    rows = [[reader, row["answers"], *(_shown(row[name]) for name in SCORES)] for reader, row in each]
    head = ("reader", "answers", "correct", "synthetic told", "real told", "AUC")
    return "\n".join(["# Readers", "", *table(head, rows), "", RULE, ""])


def _shown(row: Mapping[str, Any]) -> str:
    """A value with its interval, if it has one."""
    if row["value"] is None:
        return ""
    interval = f" ({row['ci95'][0]:.2f} to {row['ci95'][1]:.2f})" if "ci95" in row else ""
    return f"{row['value']:.2f}{interval}"
