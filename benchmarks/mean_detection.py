"""How well the mean of several models tells images that they were not trained for: an ensemble of reports of `detect`.

Each image has a z-score by each model (`model_z` of detected.csv); the mean of these is one detector, as of ensembles
over orders of an autoregressive model (Graham et al. 2022). The reports are of the same sets of the same data.

    python -m benchmarks.mean_detection runs/rows/detection runs/columns/detection runs/random/detection
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lit_medgen.errors import InputError
from lit_medgen.evaluation.detection import TEST, VALIDATION
from lit_medgen.evaluation.detectors import Separation, separation

SCORE = "model_z"
Rows = dict[tuple[str, str], tuple[str, float]]
"""Set and key of an image -> its person and its z-score."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="folders that `detect` wrote")
    options = parser.parse_args()
    reports = [rows_of(folder) for folder in options.reports]
    found = [separations([rows]) for rows in reports] + [separations(reports)]
    table = Table("set", *(folder.parent.name for folder in options.reports), "mean")
    for name in found[0]:
        areas = [each[name].auc for each in found]
        table.add_row(name, *(f"{area.value:.3f} ({area.ci95[0]:.3f} to {area.ci95[1]:.3f})" for area in areas))
    Console(width=200).print(table)


def rows_of(folder: Path) -> Rows:
    """The z-score of each image of a report."""
    with (folder / "detected.csv").open(newline="") as file:
        return {(row["set"], row["key"]): (row["person"], float(row[SCORE])) for row in csv.DictReader(file)}


def separations(reports: Sequence[Rows]) -> dict[str, Separation]:
    """Set -> how well the mean z-score over the reports tells it from the test images; InputError for other images."""
    first = reports[0]
    for rows in reports[1:]:
        if {image: person for image, (person, _) in rows.items()} != {image: who for image, (who, _) in first.items()}:
            raise InputError(
                "the reports are not of the same images; give --near, --others and --num of `detect` alike."
            )
    sets: dict[str, tuple[list[str], list[float]]] = {}
    for (name, key), (person, _) in first.items():
        people, values = sets.setdefault(name, ([], []))
        people.append(person)
        values.append(sum(rows[name, key][1] for rows in reports) / len(reports))
    (whose, inside), scored = sets[TEST], {name: each for name, each in sets.items() if name not in (TEST, VALIDATION)}
    return {
        name: separation(torch.tensor(inside), torch.tensor(outside), whose, people)
        for name, (people, outside) in scored.items()
    }


if __name__ == "__main__":
    main()
