"""What holds for every GAN: penalties for each image by itself, players that learn alone, images of their seeds."""

from __future__ import annotations

import pytest
import torch
from mixture import hold
from tiny_gans import GANS, batch_of, built, condition_of
from torch import Tensor, nn

from lit_medgen.methods.gans.gan import gradient_penalty

each_gan = pytest.mark.parametrize("base", GANS)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_penalty_of_a_linear_discriminator_is_exact(num: int) -> None:
    """(|w| - 1)^2, whatever the images and however many."""
    real, made, w = torch.randn(num, 2, 4, 4), torch.randn(num, 2, 4, 4), torch.randn(32, requires_grad=True)
    penalty = gradient_penalty(lambda x: x.flatten(1) @ w, real, made)
    torch.testing.assert_close(penalty, (w.norm() - 1).square())
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 2 * (w.norm() - 1) * w.detach() / w.detach().norm())


def test_each_image_has_its_own_penalty() -> None:
    """The gradient of |x|^2 / 2 is x: the mean over images of (|x| - 1)^2, or over voxels of the channels' norm."""
    image = torch.randn(4, 3, 5, 5)

    def discriminator(x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1) / 2

    each = (image.flatten(1).norm(dim=1) - 1).square()
    torch.testing.assert_close(gradient_penalty(discriminator, image, image), each.mean())
    alone = [gradient_penalty(discriminator, one, one) for one in image.split(1)]
    torch.testing.assert_close(torch.stack(alone), each)
    of_voxels = (image.norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(gradient_penalty(discriminator, image, image, "channels"), of_voxels)


def test_the_penalty_is_taken_in_float32_under_autocast() -> None:
    discriminator = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(144, 1), nn.Flatten(0))
    real, made = torch.randn(2, 3, 1, 8, 8)
    found = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(gradient_penalty(discriminator, real, made.bfloat16() if enabled else made.bfloat16().float()))
    assert found[1].dtype == torch.float32
    assert torch.equal(*found)


@each_gan
@pytest.mark.parametrize("faithful", [False, True])
def test_each_player_changes_its_own_parameters_alone(base: str, faithful: bool) -> None:
    """With the others held, as training does it; and all of its own are changed."""
    model = built(base, faithful=faithful).train()
    for value in model.parameters():
        if not value.any():  # no gradient passes what begins as zero, a modulation by the map
            nn.init.normal_(value, std=0.1)
    optimizers, _ = model.configure_optimizers()
    batch, hands = batch_of(model), model._hands()
    for turn, (player, optimizer) in enumerate(zip(model.players(), optimizers, strict=True)):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        hold(optimizers, turn)
        player.loss(batch)[f"{player.name}_loss" if turn else "loss"].backward()
        assert {name for name, value in model.named_parameters() if value.grad is not None} <= hands[turn].keys()
        optimizer.step()
        optimizer.zero_grad()
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        # A last bias shifts all that a discriminator says alike, which cancels in a difference.
        missing = hands[turn].keys() - changed
        assert changed <= hands[turn].keys()
        assert all(name.endswith(".bias") and "discriminator" in player.name for name in missing), missing


@each_gan
def test_a_sample_depends_on_its_seed_alone(base: str) -> None:
    """To the bit in batches of equal size, whatever is beside it; of another size, to rounding."""
    model = built(base).eval()
    with torch.no_grad():
        three, one = condition_of(model, 3), condition_of(model, 1)  # the first map of three is that of one
        together, beside = (model.sample(three, seeds) for seeds in ([5, 6, 7], [5, 1, 7]))
        alone = model.sample(one, [5])
    assert torch.equal(together[0], beside[0])
    assert torch.equal(together[2], beside[2])
    assert not torch.equal(together[1], beside[1])
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-5)
    assert float(together.abs().max()) <= 1
