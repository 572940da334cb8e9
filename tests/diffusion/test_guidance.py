"""Guidance: wrappers of a denoiser, which any sampler walks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    ClassifierFree,
    Clipped,
    Denoises,
    DPMSolverPP2M,
    Guidance,
    Heun,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    guided,
)

STD = 0.5


@dataclass
class Shifted:
    """The exact denoiser of N(shift, STD^2) where shift is what the condition says, and 0 without one."""

    schedule: Schedule
    effect: float = 1.0
    calls: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        mean = self.effect * condition.attributes["shift"].nan_to_num(0.0)[:, None]
        alpha_t, sigma_t = self.schedule.alpha_sigma(t[:, None])
        return mean + alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2) * (x_t - alpha_t * mean)


def example() -> tuple[Tensor, Tensor, Condition, Condition]:
    """x_t, t, a condition (the last image has none) and its null."""
    x_t = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([2.0, -0.5, torch.nan], dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    return x_t, t, Condition(attributes={"shift": shift}), Condition(attributes={"shift": shift * torch.nan})


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_classifier_free_guidance_lies_on_the_line_through_both_estimates(scale: float) -> None:
    x_t, t, condition, null = example()
    denoiser = Shifted(ScaledLinearBeta())
    without, conditional = denoiser(x_t, t, null), denoiser(x_t, t, condition)
    x_hat = ClassifierFree(denoiser, scale)(x_t, t, condition)
    assert_close(x_hat, without + scale * (conditional - without), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_ends_of_the_line_are_the_models_themselves_for_one_evaluation(scale: float) -> None:
    """Scale 1 is the conditional model and scale 0 the null, to the last bit."""
    x_t, t, condition, null = example()
    denoiser = Shifted(ScaledLinearBeta())
    x_hat = ClassifierFree(denoiser, scale)(x_t, t, condition)
    assert denoiser.calls == 1
    assert torch.equal(x_hat, denoiser(x_t, t, condition if scale else null))


@pytest.mark.parametrize("scale", [-2.0, 0.0, 1.0, 7.5])
def test_guidance_changes_nothing_where_the_condition_does(scale: float) -> None:
    """The third image has no condition; without effect, none has."""
    x_t, t, condition, _ = example()
    plain, deaf = Shifted(ScaledLinearBeta()), Shifted(ScaledLinearBeta(), effect=0.0)
    assert torch.equal(ClassifierFree(plain, scale)(x_t, t, condition)[2], plain(x_t, t, condition)[2])
    assert torch.equal(ClassifierFree(deaf, scale)(x_t, t, condition), deaf(x_t, t, condition))


def test_logits_are_guided_by_the_same_formula() -> None:
    _, _, condition, null = example()
    answers = {id(condition): torch.tensor([1.0, 2.0]), id(null): torch.tensor([0.5, 4.0])}
    assert guided(lambda given: answers[id(given)], condition, null, 3.0).tolist() == [2.0, -2.0]


@pytest.mark.parametrize("sampler", [DDIM(20), Ancestral(20), Heun(20), DPMSolverPP2M(20), DPMSolverPP2M(20, eta=1.0)])
def test_any_sampler_walks_guidance_and_clips_outermost(sampler: Sampler) -> None:
    """Guidance of scale w samples N(w shift, .): more than the condition asks for; clipped, it stays among images."""
    condition = Condition(attributes={"shift": torch.full((2000,), 0.4, dtype=torch.float64)})
    x_1 = torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    guidance = ClassifierFree(Shifted(ScaledLinearBeta()), 2.0)
    wrapped: list[Denoises] = [guidance, Clipped(guidance), ClassifierFree(Clipped(guidance.denoiser), 2.0)]
    free, clipped, inside = (sampler(denoiser, x_1, condition) for denoiser in wrapped)
    assert free.mean().item() == pytest.approx(0.8, abs=0.05)
    assert free.max() > 1.5
    assert clipped.abs().max() <= 1
    assert inside.abs().max() > 1


def test_wrappers_have_the_schedule_of_what_they_wrap() -> None:
    denoiser = Shifted(ScaledLinearBeta())
    wrapper: Guidance = Clipped(ClassifierFree(denoiser, 2.0))
    assert wrapper.schedule is denoiser.schedule


def test_clipping_keeps_what_is_within_the_range() -> None:
    x_t, t, condition, _ = example()
    x_hat = Shifted(ScaledLinearBeta())(x_t, t, condition)
    assert x_hat.abs().max() > 1
    assert torch.equal(Clipped(Shifted(ScaledLinearBeta()))(x_t, t, condition), x_hat.clamp(-1, 1))
