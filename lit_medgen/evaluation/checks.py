"""What a report refuses: before hours are spent on samples what it would refuse after, and samples of another range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from lit_medgen.batch import Images, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.evaluation.pictures import FILE as PICTURES
from lit_medgen.evaluation.quartets import FILES as QUARTETS
from lit_medgen.files import Outputs
from lit_medgen.metrics.extractors import LEARNED
from lit_medgen.metrics.known import blocks
from lit_medgen.metrics.ms_ssim import scales_and_window
from lit_medgen.metrics.torchscript import from_file, refuse_channels

NONE = "none"
"""Of `--features`: no scores of features."""
PREDICTIONS = "predictions.csv"
FILES = (
    "report.json",
    "report.md",
    PICTURES,
    "scores.png",
    "samples.png",
    "map.png",
    "agreement.png",
    "control.png",
    "attributes/*.png",
    "plots/*.png",
    PREDICTIONS,
    *QUARTETS,
)
"""What a report consists of."""
RANGE_TOLERANCE = 1e-3
"""By which samples may lie outside [-1, 1]."""


def report_files(out: Path) -> Outputs:
    """The files of a report in its folder."""
    return Outputs(out, "evaluate", FILES)


def refuse_unfit(data: TrainingData, num_samples: int, features: str) -> None:
    """InputError for whatever `evaluate` would refuse, before hours are spent on samples.

    Args:
        data: set up, with people in parts.
        num_samples: how many there will be; where they are made of people's images, of how many people.
        features: as `evaluate --features`.
    """
    num_test, num_train = (len(set(data.people(split).values())) for split in ("test", "train"))
    smallest_set(num_samples, num_samples, num_test, num_train)
    try:
        scales_and_window(data.spec.size)
    except ValueError as error:
        raise InputError(f"data.init_args.preprocessing.size: {error}") from error
    if features not in (NONE, LEARNED):
        refuse_channels(data.spec.channels)
        from_file(features)


def smallest_set(num_samples: int, num_made: int, num_test: int, num_train: int) -> tuple[int, str]:
    """The smallest number of people, and all numbers in words; InputError if one is too small for any score.

    `num_made` are the samples that are independent: of how many people, where they are made of people's images.
    """
    numbers = f"{num_samples} samples, {num_test} test and {num_train} training people"
    smallest = min(num_made, num_test, num_train)
    if smallest < 2:
        raise InputError(
            f"evaluate: {numbers}; give at least 2 of each (samples that are made of people's images, of 2 people): "
            "--num says how many samples are drawn. A trained model keeps its test people: for others train with other "
            "data.init_args.fractions or seed."
        )
    return smallest, numbers


def within_range(samples: Images) -> Iterator[Tensor]:
    """The samples in blocks; InputError if they do not lie in [-1, 1], or are NaN."""
    for some in blocks(samples):
        low, high = some.aminmax()
        if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # so NaN is refused too
            raise InputError(
                f"evaluate: samples lie from {low:.4g} to {high:.4g}; scale them to [-1, 1], as the data is."
            )
        yield some
