"""Processes on code maps: marginals, the exact bound of two tied bits, walks back."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.diffusion import AbsorbingProcess, BlurSchedule, HeatProcess, dissipate
from lit_medgen.diffusion.discrete import descending, draw
from lit_medgen.seeds import SeededNoise

MANY = 20_000


def tied_bits(num: int) -> Tensor:
    """num 2: two fair bits that are always the same."""
    return torch.randint(2, (num, 1), generator=torch.Generator().manual_seed(0)).expand(num, 2)


def exact_logits(state: Tensor, level: Tensor) -> Tensor:
    """Logits b 2 k of tied bits: the other bit's value where it is seen, else even."""
    other = state.flip(1)
    known = functional.one_hot(other.clamp(max=1), 2) * 40.0
    return torch.where((other < 2)[..., None], known, 0.0)


@pytest.mark.parametrize("num_levels", [1, 2, 4, 16])
def test_bound_of_two_tied_bits(num_levels: int) -> None:
    torch.manual_seed(0)
    nats = AbsorbingProcess(num_levels, mask=2).bound(tied_bits(MANY), exact_logits)
    error = nats.std() / MANY**0.5
    assert nats.mean().item() == pytest.approx(math.log(2) * (1 + 1 / num_levels), abs=float(4 * error) + 1e-6)


@pytest.mark.parametrize("t", [1, 3, 8])
def test_share_of_masked_codes(t: int) -> None:
    torch.manual_seed(0)
    process = AbsorbingProcess(8, mask=5)
    codes = torch.randint(5, (MANY, 3))
    state = process.corrupt(codes, torch.full((MANY,), t))
    assert (state == 5).float().mean().item() == pytest.approx(t / 8, abs=0.01)
    assert torch.equal(state[state < 5], codes[state < 5])


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_walking_back_keeps_the_marginals(num_steps: int) -> None:
    """With the exact guess, the state at s is distributed as q(z_s | z_0), whatever the levels between."""
    process, codes = AbsorbingProcess(8, mask=5), torch.randint(5, (2000, 6))
    noise, state = SeededNoise(range(2000)), torch.full((2000, 6), 5)
    levels = descending(8, num_steps)
    for t, s in pairwise(levels):
        state = process.reverse(codes, state, t, s, noise)
        assert (state == 5).float().mean().item() == pytest.approx(s / 8, abs=0.02)
    assert torch.equal(state, codes)


def test_bits_come_back_tied_only_with_many_steps() -> None:
    """Codes drawn at once are independent: half of the pairs disagree after one step, few after many."""
    wrong = {}
    for num_steps in (1, 16):
        process, noise = AbsorbingProcess(16, mask=2), SeededNoise(range(1000))
        state = torch.full((1000, 2), 2)
        levels = descending(16, num_steps)
        for t, s in pairwise(levels):
            codes = draw(exact_logits(state, torch.tensor(t)), 1.0, noise.uniform((2,)))
            state = process.reverse(codes, state, t, s, noise)
        wrong[num_steps] = (state[:, 0] != state[:, 1]).float().mean().item()
    assert wrong[1] == pytest.approx(1 / 2, abs=0.06)
    assert wrong[16] == pytest.approx(1 / 32, abs=0.02)  # both unmasked in one of 16 steps, and then unlike


def heat(space: str, sigma: float = 0.0, delta: float = 0.0) -> HeatProcess:
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    return HeatProcess(
        BlurSchedule(4, 0.5, 10),
        lambda codes: functional.embedding(codes, table).movedim(-1, 1),
        7,
        sigma,
        delta,
        space,  # type: ignore[arg-type]
    )


def test_heat_blurs_embedded_codes() -> None:
    process, codes = heat("embedding"), torch.randint(7, (4, 5, 6))
    level = torch.tensor([1, 4, 7, 10])
    expected = dissipate(process.embed(codes), process.schedule.heat_time(level))
    torch.testing.assert_close(process.corrupt(codes, level), expected)
    torch.testing.assert_close(process.reverse(codes, expected, 10, 4, SeededNoise(range(4)))[1], expected[1])
    assert torch.equal(process.reverse(codes, expected, 10, 0, SeededNoise(range(4))), codes)


@pytest.mark.parametrize("space", ["embedding", "index"])
def test_the_mean_of_sure_and_of_unsure_logits(space: str) -> None:
    """A sure guess is the clean map itself, an even one the mean of all codes; it is blurred as codes are."""
    process, codes = heat(space), torch.randint(7, (3, 5, 4))
    sure = functional.one_hot(codes, 7) * 40.0
    torch.testing.assert_close(process.mean(sure), process.clean(codes))
    every = process.clean(torch.arange(7)[None]).mean(-1)
    torch.testing.assert_close(process.mean(torch.zeros(3, 5, 4, 7))[:, :, 0, 0], every.expand(3, -1))
    noise = SeededNoise(range(3))
    torch.testing.assert_close(process.reblur(process.mean(sure), 4, noise), process.reverse(codes, codes, 9, 4, noise))


def test_heat_of_indices_gives_valid_indices() -> None:
    state = heat("index", sigma=3.0).corrupt(torch.randint(7, (4, 5, 6)), torch.tensor([1, 4, 7, 10]))
    assert state.dtype == torch.int64
    assert state.shape == (4, 5, 6)
    assert state.min() >= 0
    assert state.max() <= 6


def test_heat_adds_noise_of_the_given_spread() -> None:
    torch.manual_seed(0)
    codes = torch.zeros(1000, 5, 6, dtype=torch.int64)
    noisy, clean = heat("embedding", sigma=0.3), heat("embedding")
    level = torch.full((1000,), 5)
    assert (noisy.corrupt(codes, level) - clean.corrupt(codes, level)).std().item() == pytest.approx(0.3, abs=0.01)


def test_draw_follows_the_logits() -> None:
    logits = torch.tensor([0.5, 0.2, 0.3]).log().expand(MANY, 3)
    uniform = torch.rand(MANY, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(logits, 1.0, uniform), minlength=3) / MANY
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.2, 0.3]), atol=0.02, rtol=0)
    sharper = torch.bincount(draw(logits, 0.5, uniform), minlength=3) / MANY
    torch.testing.assert_close(sharper, torch.tensor([0.25, 0.04, 0.09]) / 0.38, atol=0.02, rtol=0)
    assert draw(logits, 0.0, uniform).unique().tolist() == [0]
    assert draw(logits[:1], 1.0, torch.tensor([1 - 1e-7])).item() == 2


@pytest.mark.parametrize(("num_levels", "num_steps"), [(256, 256), (256, 10), (200, 1), (7, 3)])
def test_levels_descend(num_levels: int, num_steps: int) -> None:
    levels = descending(num_levels, num_steps)
    assert levels[0] == num_levels
    assert levels[-1] == 0
    assert len(levels) == num_steps + 1
    assert all(t > s for t, s in pairwise(levels))
