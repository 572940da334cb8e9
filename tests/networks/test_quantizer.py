"""Quantizers: round trips, straight-through gradients, the codebook of averages, dead codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_medgen.networks import FSQ, NearestNeighbour, Quantizer

QUANTIZERS = [NearestNeighbour(16, 4), NearestNeighbour(16, 4, ema_decay=0.9), FSQ((4, 3, 5, 3)), FSQ((8, 5, 5, 5))]


def latents(num: int = 3, channels: int = 4, size: tuple[int, ...] = (5, 6)) -> Tensor:
    return torch.randn(num, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", [(5, 6), (2, 3, 4)])
def test_codes_and_back(quantizer: Quantizer, size: tuple[int, ...]) -> None:
    quantizer.eval()
    every = torch.arange(quantizer.num_codes)
    if not isinstance(quantizer, FSQ):  # whose values lie beyond its bound
        assert torch.equal(quantizer.codes(quantizer.embed(every[None])), every[None])
    found = quantizer(latents(size=size))
    assert torch.equal(found.codes, quantizer.codes(latents(size=size)))
    torch.testing.assert_close(found.latent, quantizer.embed(found.codes))
    assert found.codes.min() >= 0
    assert found.codes.max() < quantizer.num_codes


@pytest.mark.parametrize("levels", [(4, 3, 5, 3), (8, 5, 5, 5), (3, 3)])
def test_fsq_has_as_many_values_as_levels(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(levels)
    every = quantizer.embed(torch.arange(quantizer.num_codes)[None])[0]  # d k
    assert len(every.T.unique(dim=0)) == quantizer.num_codes
    assert every.min() >= -1
    assert every.max() <= 1
    wide = torch.linspace(-6, 6, 5001).expand(1, len(levels), -1)
    for channel, level in enumerate(levels):
        assert len(quantizer(wide).latent[0, channel].unique()) == level


@pytest.mark.parametrize("quantizer", QUANTIZERS[:2])
def test_gradient_passes_straight_through(quantizer: NearestNeighbour) -> None:
    quantizer.eval()
    latent = latents().requires_grad_()
    given = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    quantizer(latent).latent.backward(given)
    torch.testing.assert_close(latent.grad, given)


def test_gradient_of_fsq_is_that_of_its_bound() -> None:
    quantizer, latent = FSQ((5, 5, 5, 5)), latents().double().requires_grad_()
    quantizer(latent).latent.sum().backward()
    half = 2 * (1 - 1e-3)
    expected = (1 - latent.detach().float().tanh() ** 2) * half / 2
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad.float(), expected)


def test_fsq_rounds_to_the_nearest() -> None:
    quantizer, latent = FSQ((5, 5, 5, 5)), latents()
    bounded = latent.tanh() * 2 * (1 - 1e-3) / 2  # in steps of a half
    assert (quantizer(latent).latent - bounded).abs().max() <= 0.25 + 1e-6


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_are_the_same_in_mixed_precision(quantizer: Quantizer) -> None:
    quantizer.eval()
    latent = latents(50).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.codes(latent), quantizer(latent).codes)
        assert torch.equal(quantizer.codes(latents(50)), quantizer(latents(50)).codes)
    assert torch.equal(quantizer.codes(latent), quantizer.codes(latent.float()))


def test_a_code_long_unused_stays_where_it_was() -> None:
    quantizer = NearestNeighbour(2, 4, ema_decay=0.5).train()
    quantizer.codebook.copy_(torch.tensor([[0.0] * 4, [50.0] * 4]))
    quantizer.total.copy_(quantizer.codebook)
    for _ in range(300):  # 0.5^300 is no float
        quantizer(latents())
    torch.testing.assert_close(quantizer.codebook[1], torch.full((4,), 50.0))


def test_loss_is_the_papers() -> None:
    quantizer = NearestNeighbour(16, 4, commitment=0.25).train()
    latent = latents().requires_grad_()
    found = quantizer(latent)
    chosen = quantizer.embed(found.codes)
    found.loss.backward()
    apart = latent.detach() - chosen.detach()
    torch.testing.assert_close(found.loss, 1.25 * apart.square().mean())
    torch.testing.assert_close(latent.grad, 0.25 * 2 * apart / apart.numel())  # beta is on the encoder's side
    assert quantizer.codebook.grad is not None
    weighted = torch.zeros(16, 4).index_add_(0, found.codes.flatten(), -2 * apart.movedim(1, -1).flatten(0, 2))
    torch.testing.assert_close(quantizer.codebook.grad, weighted / apart.numel())


def test_codebook_of_averages_without_a_past_is_a_step_of_k_means() -> None:
    quantizer = NearestNeighbour(16, 4, ema_decay=0.0).train()
    quantizer.codebook.copy_(latents(1, 4, (16,))[0].T)
    vectors = latents(5).movedim(1, -1).reshape(-1, 4)
    before = quantizer.codebook.clone()
    nearest = torch.cdist(vectors, before).argmin(1)
    quantizer(latents(5))
    for code in range(16):
        mine = vectors[nearest == code]
        torch.testing.assert_close(quantizer.codebook[code], mine.mean(0) if len(mine) else before[code])


def test_evaluation_leaves_the_codebook_alone() -> None:
    quantizer = NearestNeighbour(16, 4, ema_decay=0.5, revive_after=1).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latents())
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_dead_codes_come_back_to_life(ema_decay: float | None) -> None:
    torch.manual_seed(0)
    quantizer = NearestNeighbour(16, 4, ema_decay=ema_decay, revive_after=3).train()
    quantizer.codebook.data[1:] = 100.0  # nobody's nearest
    if ema_decay:
        quantizer.total.copy_(quantizer.codebook)
    used = [len(quantizer(latents()).codes.unique()) for _ in range(6)]
    assert used[:2] == [1, 1]
    assert used[-1] >= 12


def test_nearest_is_the_nearest() -> None:
    quantizer = NearestNeighbour(50, 4)
    quantizer.codebook.data.normal_(generator=torch.Generator().manual_seed(2))
    vectors = latents().movedim(1, -1).reshape(-1, 4)
    assert torch.equal(quantizer.codes(latents()).flatten(), torch.cdist(vectors, quantizer.codebook).argmin(1))


def test_levels_below_three_are_refused() -> None:
    with pytest.raises(ValueError, match="levels"):
        FSQ((2, 3))
