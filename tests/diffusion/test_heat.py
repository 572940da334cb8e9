"""The heat equation: laws of the solution, and the paper's listing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor

from lit_medgen.diffusion import BlurSchedule, dissipate

TIMES = st.floats(0, 30)
SIZES = st.lists(st.integers(1, 13), min_size=1, max_size=3)


def images(size: list[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """2 3 *size."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(SIZES, TIMES, TIMES)
def test_heat_after_heat_is_heat_for_both_times(size: list[int], s: float, t: float) -> None:
    u = images(size)
    twice = dissipate(dissipate(u, times(t, s)), times(s, s))
    torch.testing.assert_close(twice, dissipate(u, times(t + s, s + s)), atol=1e-12, rtol=0)


@given(SIZES, TIMES)
def test_the_mean_stays(size: list[int], t: float) -> None:
    u = images(size)
    torch.testing.assert_close(dissipate(u, times(t, 0)).flatten(2).mean(2), u.flatten(2).mean(2), atol=1e-12, rtol=0)


@given(SIZES)
def test_no_time_changes_nothing(size: list[int]) -> None:
    torch.testing.assert_close(dissipate(images(size), times(0, 0)), images(size), atol=1e-12, rtol=0)


@given(st.integers(0, 10), st.integers(0, 6), TIMES)
def test_cosines_decay_by_their_eigenvalue(k: int, m: int, t: float) -> None:
    x, y = torch.arange(11, dtype=torch.float64) + 0.5, torch.arange(7, dtype=torch.float64) + 0.5
    mode = (torch.cos(math.pi * k * x / 11)[:, None] * torch.cos(math.pi * m * y / 7))[None, None]
    eigenvalue = (math.pi * k / 11) ** 2 + (math.pi * m / 7) ** 2
    torch.testing.assert_close(dissipate(mode, times(t)), math.exp(-eigenvalue * t) * mode, atol=1e-12, rtol=0)


def listing(u: np.ndarray, t: float) -> np.ndarray:
    """The paper's listing 1 in words: cosine transform, each frequency damped by exp(-|f|^2 t), and back."""
    f = np.pi * np.arange(len(u)) / len(u)
    damped = dctn(u, norm="ortho") * np.exp(-(f[:, None] ** 2 + f[None] ** 2) * t)
    back: np.ndarray = idctn(damped, norm="ortho")
    return back


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("t", [0.0, 0.125, 24.0, 288.0])
def test_equals_the_papers_listing(dtype: torch.dtype, atol: float, t: float) -> None:
    u = images([11, 11], dtype)
    expected = np.stack([[listing(channel, t) for channel in image] for image in u.double().numpy()])
    torch.testing.assert_close(dissipate(u, times(t, t)).double(), torch.from_numpy(expected), atol=atol, rtol=0)


def test_mixed_precision_leaves_heat_alone() -> None:
    u = images([11, 11], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = dissipate(u, times(0.5, 3))
    assert torch.equal(mixed, dissipate(u, times(0.5, 3)))


def test_gradient_matches_finite_differences() -> None:
    u = images([3, 4]).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: dissipate(v, times(0.3, 2.0)), (u,))


def test_units_of_the_schedule_agree() -> None:
    by_sigma, by_time = BlurSchedule(24, 0.5, 200), BlurSchedule(288, 0.125, 200, units="time")
    level = torch.arange(201)
    torch.testing.assert_close(by_sigma.heat_time(level), by_time.heat_time(level))
    torch.testing.assert_close(by_sigma.sigma(torch.tensor([0, 1, 200])), times(0, 0.5, 24))
    steps = by_sigma.sigma(level[1:]).log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(199))  # log spacing


def test_what_24_leaves_depends_on_the_unit() -> None:
    slowest = torch.cos(math.pi * (torch.arange(11, dtype=torch.float64) + 0.5) / 11)[None, None]
    left = {
        units: dissipate(slowest, BlurSchedule(units=units).heat_time(torch.tensor([200])))
        for units in ("sigma", "time")
    }
    assert left["sigma"].abs().max() < 1e-10
    assert left["time"].abs().max() == pytest.approx(0.14, abs=0.005)


@pytest.mark.parametrize("wrong", [{"min_blur": 0.0}, {"min_blur": 25.0}, {"num_levels": 0}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        BlurSchedule(**wrong)  # type: ignore[arg-type]
