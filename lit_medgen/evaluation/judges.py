"""Judges: classifiers of clean crops that say what images show, and which of them can judge which images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_medgen.batch import DataSpec, Requests
from lit_medgen.errors import InputError
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.training.frozen import MAX_SPACING_RATIO, spacing_ratio


@runtime_checkable
class Judge(Protocol):
    """What tells labels of clean crops, as `lit_medgen.methods.CropClassifier` without a first stage does."""

    @property
    def is_judge(self) -> bool:
        """Whether it reads clean crops."""

    @property
    def crop_size(self) -> tuple[int, ...]:
        """Pixels of a crop along each axis."""

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Label -> `binary` or `number`."""

    def judged(self, images: Tensor) -> dict[str, Tensor]:
        """Label -> probabilities, or numbers in the unit of the data, b, of crops b c *s in [-1, 1]."""

    def needed_spec(self) -> DataSpec:
        """The facts of the crops that it was trained on."""


@dataclass(frozen=True)
class Judging:
    """A judge, where it comes from and what it judges.

    Attributes:
        judge: on the device `device`.
        source: its checkpoint.
        show: makes the images of requests, a batch at a time.
        like: requests like the test people without attributes, with all that images must be made from.
        attributes: those that images can be asked to show.
        covariates: which of them are categories and labels.
        device: of the judge.
    """

    judge: Judge
    source: str
    show: Callable[[Requests], Iterable[Tensor]]
    like: Requests
    attributes: Sequence[str]
    covariates: Covariates
    device: torch.device

    @property
    def names(self) -> list[str]:
        """The labels that are judged."""
        return [name for name in self.judge.outputs if name in self.attributes]


def refuse_unfit_judge(judge: object, source: str, spec: DataSpec, attributes: Sequence[str]) -> None:
    """InputError for what cannot judge images of this data that can be asked to show these attributes."""
    if not isinstance(judge, Judge) or not judge.is_judge:
        raise InputError(
            f"--judge {source}: {type(judge).__name__}, which does not tell labels of clean crops; give a checkpoint "
            "of a CropClassifier with model.init_args.first_stage null."
        )
    theirs = judge.needed_spec()
    if not set(judge.outputs) & set(attributes):
        raise InputError(
            f"--judge {source}: tells {', '.join(judge.outputs)}, but images can be asked to show "
            f"{', '.join(attributes) or 'no attributes'}; give a judge of one of these."
        )
    for name in ("channels", "intensity_window", "intensity_unit"):
        if getattr(theirs, name) != getattr(spec, name):
            raise InputError(
                f"--judge {source}: trained on crops with {name} {getattr(theirs, name)}, but the data has "
                f"{getattr(spec, name)}; train it on the same data."
            )
    if len(judge.crop_size) != len(spec.size) or spacing_ratio(theirs, spec) > MAX_SPACING_RATIO:
        raise InputError(
            f"--judge {source}: trained on crops of {' x '.join(map(str, judge.crop_size))} pixels of "
            f"{theirs.spacing_mm[0]:.3g} mm, but the images are {' x '.join(map(str, spec.size))} of "
            f"{spec.spacing_mm[0]:.3g} mm; train it on the same data."
        )
