"""Guidance in an interval of times, and with its deviation brought back: identities, and evaluations that are saved."""

from __future__ import annotations

import pytest
import torch
from test_guidance import Shifted, example
from torch import Tensor
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    DDIM,
    ClassifierFree,
    Clipped,
    Denoises,
    FlowEuler,
    FlowHeun,
    RectifiedFlow,
    Sampler,
    ScaledLinearBeta,
    times,
)
from lit_medgen.diffusion.guidance import rescaled

SCALES = [-1.0, 0.0, 0.5, 1.0, 3.0]
each_scale = pytest.mark.parametrize("scale", SCALES)


def estimates(scale: float) -> tuple[Tensor, Tensor]:
    """x̂ of the conditional model, and of guidance without interval and rescaling; at t of 0.1, 0.5 and 0.9."""
    x_t, t, condition, _ = example()
    denoiser = Shifted(ScaledLinearBeta())
    return denoiser(x_t, t, condition), ClassifierFree(denoiser, scale)(x_t, t, condition)


@each_scale
@pytest.mark.parametrize(
    ("interval", "inside"),
    [
        ((0.0, 1.0), [True, True, True]),
        ((0.2, 0.8), [False, True, False]),
        ((0.1, 0.5), [False, True, False]),
        ((0.0, 0.1), [True, False, False]),
        ((0.0, 0.0), [False, False, False]),
        ((0.5, 0.5), [False, False, False]),
        ((1.0, 1.0), [False, False, False]),
    ],
)
def test_guidance_acts_in_its_interval_and_the_conditional_model_elsewhere(
    interval: tuple[float, float], inside: list[bool], scale: float
) -> None:
    """(low, high]; all times of (0, 1) are no interval, an empty one is the conditional model. Each image by itself."""
    x_t, t, condition, _ = example()
    conditional, guidance = estimates(scale)
    x_hat = ClassifierFree(Shifted(ScaledLinearBeta()), scale, interval)(x_t, t, condition)
    assert torch.equal(x_hat, torch.where(torch.tensor(inside)[:, None], guidance, conditional))


def test_no_interval_holds_the_data_too() -> None:
    """(0, 1] leaves out t = 0, which no interval does not."""
    x_t, _, condition, _ = example()
    denoiser, t = Shifted(ScaledLinearBeta()), torch.zeros(3, dtype=torch.float64)
    assert torch.equal(ClassifierFree(denoiser, 0.0)(x_t, t, condition), x_t)
    assert ClassifierFree(denoiser, 0.0).at(0.0) == ClassifierFree(denoiser, 0.0)


def walked(denoiser: Denoises, sampler: Sampler, num: int = 4) -> Tensor:
    """Samples that ask for a shift of 0.4."""
    condition = Condition(attributes={"shift": torch.full((num,), 0.4, dtype=torch.float64)})
    return sampler(denoiser, torch.linspace(-2, 2, num, dtype=torch.float64)[:, None], condition)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.7), (0.5, 0.5)])
def test_a_sampler_asks_twice_in_the_interval_alone(interval: tuple[float, float], clipped: bool) -> None:
    """The CPU knows a sampler's times: no wait tells it, and the sample is that of guidance which asks twice always."""
    saving, asking = Shifted(RectifiedFlow()), Shifted(RectifiedFlow())
    guidance: Denoises = ClassifierFree(saving, 3.0, interval)
    whole: Denoises = ClassifierFree(asking, 3.0, interval)
    if clipped:
        guidance, whole = Clipped(guidance), Clipped(whole)

    class Hides:
        """The same denoiser, without telling that it could know the time."""

        schedule = whole.schedule

        def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return whole(x_t, t, condition)

    found, expected = walked(guidance, FlowEuler(20)), walked(Hides(), FlowEuler(20))
    assert torch.equal(found, expected)
    visited = times(saving.schedule, 20, "trailing")[:-1].tolist()
    assert saving.calls == sum(2 if interval == (0, 1) or interval[0] < t <= interval[1] else 1 for t in visited)
    assert saving.calls < 40 or interval == (0, 1)


@pytest.mark.parametrize("sampler", [DDIM(10, "trailing"), FlowHeun(5)])
def test_an_interval_is_guidance_for_a_part_of_the_way(sampler: Sampler) -> None:
    """A sample of an interval that begins at the middle: guided as far as there, conditional from there on."""
    guidance = ClassifierFree(Shifted(RectifiedFlow()), 3.0, (0.5, 1.0))
    nothing, everything = ClassifierFree(guidance.denoiser, 3.0, (0.5, 0.5)), ClassifierFree(guidance.denoiser, 3.0)
    plain, partly, always = (walked(each, sampler) for each in (nothing, guidance, everything))
    assert torch.equal(plain, walked(guidance.denoiser, sampler))
    assert ((plain < partly) & (partly < always)).all()


# Rescaling.


def images() -> tuple[Tensor, Tensor]:
    """x̂ of guidance and of the conditional model: 4 2 5 5, float64, each image with a deviation of its own."""
    guidance, conditional = torch.randn(2, 4, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = torch.tensor([0.5, 1.0, 3.0, 10.0], dtype=torch.float64)[:, None, None, None]
    return wide * guidance + 0.3, conditional


def test_full_rescaling_gives_the_deviation_of_the_conditional_model_and_none_changes_nothing() -> None:
    guidance, conditional = images()
    full = rescaled(guidance, conditional, 1.0)
    assert_close(full.flatten(1).std(1), conditional.flatten(1).std(1), rtol=1e-12, atol=0)
    assert torch.equal(rescaled(guidance, conditional, 0.0), guidance)
    assert_close(rescaled(guidance, conditional, 0.7), 0.7 * full + 0.3 * guidance, rtol=1e-12, atol=0)  # eq. 16
    for i in range(4):  # no image looks at another
        row = slice(i, i + 1)
        assert_close(rescaled(guidance[row], conditional[row], 1.0), full[row], rtol=1e-12, atol=0)


def test_rescaling_leaves_what_has_the_deviation_and_what_has_none() -> None:
    _, conditional = images()
    assert_close(rescaled(conditional, conditional, 1.0), conditional, rtol=1e-12, atol=0)
    flat = torch.full_like(conditional, 0.3)
    assert torch.equal(rescaled(flat, conditional, 1.0), flat)


class Patterns:
    """x̂ is a pattern times the condition's number, and half as wide, with another mean, without one."""

    schedule = ScaledLinearBeta()

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """b c *s."""
        number = condition.attributes["number"].nan_to_num(0.5).view(-1, 1, 1, 1)
        return number * torch.linspace(-1, 1, x_t[0].numel()).view(1, *x_t.shape[1:]) + 0.1 / number


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8), (0.5, 0.5)])
@each_scale
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_rescales_what_it_guides(rescale: float, scale: float, interval: tuple[float, float]) -> None:
    """Scale 1 and times outside of the interval are the conditional model itself."""
    condition = Condition(attributes={"number": torch.tensor([1.0, 2.0, 3.0])})
    x_t, t = torch.zeros(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    conditional = Patterns()(x_t, t, condition)
    plain = ClassifierFree(Patterns(), scale, interval)(x_t, t, condition)
    x_hat = ClassifierFree(Patterns(), scale, interval, rescale)(x_t, t, condition)
    for i in range(3):
        guided_here = scale != 1 and interval[0] < t[i] <= interval[1]
        expected = rescaled(plain, conditional, rescale) if guided_here else conditional
        assert_close(x_hat[i], expected[i], rtol=1e-6, atol=1e-6)
        at = ClassifierFree(Patterns(), scale, interval, rescale).at(t[i].item())(x_t, t, condition)
        assert_close(at[i], x_hat[i], rtol=0, atol=0)


def test_impossible_intervals_and_rescalings_are_refused() -> None:
    for interval in ((-0.1, 1.0), (0.5, 1.1), (0.6, 0.4)):
        with pytest.raises(ValueError, match=r"interval is \(.*\); give times low and high with 0 <= low <= high <= 1"):
            ClassifierFree(Patterns(), 2.0, interval)
    for rescale in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"rescale is {rescale}; give 0 \(none\) to 1"):
            ClassifierFree(Patterns(), 2.0, rescale=rescale)
