"""The encoder of a U-Net: what it reads, at every size, and that it is the U-Net's own way down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_unet import randomise
from torch import Tensor
from torch.testing import assert_close

from lit_medgen.networks import UNet, UNetEncoder

SIZES: dict[str, Any] = {
    "channels": (8, 16, 24),
    "attention": (False, True, True),
    "num_res_blocks": 1,
    "head_channels": 8,
}
each_dim = pytest.mark.parametrize("dim", [2, 3])


def encoder(dim: int = 2, **arguments: Any) -> UNetEncoder:
    """Three levels, with weights that let everything be heard."""
    torch.manual_seed(0)
    network = UNetEncoder(**{"dim": dim, "out_channels": 3, "hidden": 12} | SIZES | arguments)
    randomise(network, 0.2)
    return network


def noisy(dim: int = 2, size: tuple[int, ...] = (8, 4, 6)) -> tuple[Tensor, Tensor]:
    """x: 2 1 *s and t: 2."""
    x = torch.randn(2, 1, *size[:dim], generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.1, 0.8])


@each_dim
@pytest.mark.parametrize("size", [(8, 4, 6), (5, 7, 3), (1, 2, 1)])
def test_numbers_of_images_of_any_size(dim: int, size: tuple[int, ...]) -> None:
    assert encoder(dim)(*noisy(dim, size)).shape == (2, 3)


@each_dim
def test_it_reads_every_pixel_and_the_time_and_every_weight_learns(dim: int) -> None:
    network, (x, t) = encoder(dim), noisy(dim)
    numbers = network(x.requires_grad_(), t)
    assert (numbers - network(x, t.flip(0))).abs().min() > 1e-4
    (gradient,) = torch.autograd.grad(numbers.square().sum(), x, retain_graph=True)
    assert (gradient != 0).all()
    numbers.square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@each_dim
def test_its_features_are_those_of_the_u_net_with_the_same_weights(dim: int) -> None:
    """Averages of what the U-Net hands to its way up, from the finest level to the middle."""
    network, unet, (x, t) = encoder(dim), UNet(dim, **SIZES), noisy(dim)
    shared = {name: value for name, value in network.state_dict().items() if not name.startswith("out.")}
    unexpected = unet.load_state_dict(shared, strict=False).unexpected_keys
    assert unexpected == []
    blocks, middle = unet.contract(x, unet.time(t))
    expected = torch.cat([features.flatten(2).mean(2) for features in (*blocks, middle)], dim=1)
    found = network.features(x, t)
    assert found.shape == (2, 8 + 8 + 8 + 16 + 16 + 24 + 24)
    assert torch.equal(found, expected)
    assert torch.equal(network(x, t), network.out(found))


def test_one_image_does_not_see_another() -> None:
    network, (x, t) = encoder().double(), noisy()
    together = network(x.double(), t)
    for i in range(2):
        assert_close(network(x[i : i + 1].double(), t[i : i + 1]), together[i : i + 1], rtol=1e-10, atol=1e-10)


@each_dim
def test_gradient_checkpointing_changes_memory_only(dim: int) -> None:
    """Equal numbers and gradients, that of the image included, dropout's draws as well."""
    outcomes = []
    for gradient_checkpointing in (False, True):
        network, (x, t) = encoder(dim, dropout=0.2, gradient_checkpointing=gradient_checkpointing).train(), noisy(dim)
        torch.manual_seed(0)
        numbers = network(x.requires_grad_(), t)
        numbers.square().mean().backward()
        outcomes.append([numbers, x.grad, *(parameter.grad for parameter in network.parameters())])
    for plain, recomputed in zip(*outcomes, strict=True):
        assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


def test_bfloat16_is_float32_but_for_rounding() -> None:
    network, (x, t) = encoder(), noisy()
    plain = network(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        halves = network(x, t)
    assert_close(halves.float(), plain, rtol=0.1, atol=0.05 * plain.abs().max().item())


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"attention has 1 entries and channels has 3; give one for each level"):
        encoder(attention=(False,))
    with pytest.raises(ValueError, match=r"head_channels is 5, which does not divide 16 channels"):
        encoder(head_channels=5)
    with pytest.raises(ValueError, match=r"network.init_args.hidden is 0; give at least 1"):
        encoder(hidden=0)
