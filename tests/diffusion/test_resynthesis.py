"""Laws of counterparts: unguided inversion returns the image, noise does not, and guidance leads to what is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import ClassifierFree, Cosine, LinearBeta, RectifiedFlow, Resynthesis
from lit_medgen.diffusion.schedules import Schedule

HEALTHY, ANY = -0.2, 0.3
"""Means of images with and without being told that they are healthy."""


class Told:
    """The exact denoiser of N(mean, 0.5^2), whose mean a condition says."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (each.view(-1, 1, 1, 1) for each in self.schedule.alpha_sigma(t))
        told = condition.attributes["lesion"].isnan().logical_not().view(-1, 1, 1, 1)
        mean = torch.where(told, HEALTHY, ANY)
        return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x_t - alpha * mean)


ASKED = Condition({"lesion": torch.zeros(16)})
NULL = ASKED.drop(torch.ones(16, dtype=torch.bool))
SCHEDULES = [LinearBeta(), Cosine(), RectifiedFlow()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return ANY + 0.5 * torch.randn(16, 1, 4, 4, dtype=torch.float64, generator=generator)


def counterparts(schedule: Schedule, scale: float = 1.0, asked: Condition = ASKED, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    plain = Told(schedule)
    noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    return Resynthesis(**arguments)(images(), plain, ClassifierFree(plain, scale), NULL, asked, noise)


@each_schedule
def test_without_guidance_the_inversion_returns_the_image(schedule: Schedule) -> None:
    """Guidance of scale 0 is the model that inverted; the error falls with the steps."""
    for arguments in ({"scale": 0.0}, {"scale": 3.0, "asked": NULL}):
        errors = [
            (counterparts(schedule, num_steps=num, **arguments) - images()).abs().max().item()  # type: ignore[arg-type]
            for num in (5, 20, 80)
        ]
        assert errors[0] > errors[1] > errors[2] or errors[0] < 1e-12
        assert errors[2] < errors[0] / 10


@each_schedule
def test_guidance_leads_towards_what_is_asked_for_the_more_the_later_it_turns_around(schedule: Schedule) -> None:
    shifts = [(counterparts(schedule, level=level) - images()).mean().item() for level in (0.3, 0.6, 0.9)]
    assert 0 > shifts[0] > shifts[1] > shifts[2] > HEALTHY - ANY - 0.05
    assert counterparts(schedule, 2.0).mean() < counterparts(schedule, 1.0).mean()


@each_schedule
def test_plain_noise_loses_what_inversion_keeps(schedule: Schedule) -> None:
    def kept(noised: bool) -> float:
        made = counterparts(schedule, 0.0, noised=noised, level=0.8)
        return torch.corrcoef(torch.stack([made.flatten(), images().flatten()]))[0, 1].item()

    assert kept(noised=False) > 0.999
    assert kept(noised=True) < 0.9
    made = counterparts(schedule, 0.0, noised=True, level=0.8)
    assert abs(made.mean().item() - ANY) < 0.15  # 256 numbers


def test_what_is_no_level_or_step_is_refused() -> None:
    for wrong in ({"level": 0.0}, {"level": 1.5}, {"num_steps": 0}):
        with pytest.raises(ValueError, match="give a"):
            replace(Resynthesis(), **wrong)  # type: ignore[arg-type]
