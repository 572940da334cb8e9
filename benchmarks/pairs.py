"""The scores of pairs of a report, also of a single test person, of whom `evaluate` asks for two.

Samples that `sample --like test` wrote, what they should be, and the nulls of pairs (`evaluation.pair_nulls`).
Beside them stands the training image of the same number, where both parts have as many: the same slices of another
person, if each part has one. Intervals leave out a person at a time; of one person there are none.

    python -m benchmarks.pairs --ckpt_path runs/controlnet_open_ms/checkpoints/last.ckpt
        --samples runs/controlnet_open_ms/samples
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data import data_of
from lit_medgen.batch import TrainingData
from lit_medgen.callbacks.report import sources_of, targets_of
from lit_medgen.evaluation.pair_nulls import PairNulls
from lit_medgen.evaluation.scores import Given, of_pairs
from lit_medgen.loading import config_of, load
from lit_medgen.metrics.known import Known
from lit_medgen.sample_reading import Samples, read_samples
from lit_medgen.training.generator import Generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="of the model that made the samples")
    parser.add_argument("--samples", required=True, help="their folder")
    options = parser.parse_args()
    data = data_of(config_of(Path(options.ckpt_path))["data"])
    model = load(options.ckpt_path)
    assert isinstance(model, Generator)
    rows = rows_of(read_samples(Path(options.samples), data.spec), model, data)
    table = Table("", *rows)
    names = ["samples", *next(iter(rows.values()))["baselines"]]
    for name in names:
        table.add_row(name, *(in_words(row if name == "samples" else row["baselines"][name]) for row in rows.values()))
    Console().print(table)


def rows_of(samples: Samples, model: Generator, data: TrainingData) -> dict[str, dict[str, Any]]:
    """Name -> the row of each score of pairs, with the nulls among its `baselines`."""
    train, real = (data.images(split, one_per_person=True) for split in ("train", "test"))
    nulls = PairNulls(train, model.baselines, sources_of(model, data))
    targets = targets_of(samples.made_from, data)
    given = Given(Known(), train, torch.empty(0), nulls=nulls)
    rows, _ = of_pairs(samples.images, real, targets, given)
    if len(train) == len(real):
        others, _ = of_pairs(train, real, range(len(real)), given)
        for name, row in rows.items():
            row["baselines"]["training image of that number"] = others[name]
    return rows


def in_words(row: Mapping[str, Any]) -> str:
    """A value with its interval, where there is one."""
    low, high = row["ci95"]
    return f"{row['value']:.3g}" + ("" if math.isnan(low) else f" ({low:.3g} to {high:.3g})")


if __name__ == "__main__":
    main()
