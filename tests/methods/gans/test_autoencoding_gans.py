"""The GANs with encoders: which term reaches whom, what is corrected of the public code, and the bank of codes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mixture import as_batch, mixture
from torch import Tensor, nn

from lit_medgen.methods import CCEGAN, VAEGAN, AlphaWGAN
from lit_medgen.networks.gans import ConvAutoencodingGAN

D = 6


def network(**arguments: Any) -> ConvAutoencodingGAN:
    """Of 8 x 8 images and codes of 6 channels."""
    torch.manual_seed(0)
    return ConvAutoencodingGAN((8, 8), 1, D, 4, **arguments)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    """What a loss asks of each parameter of a module; None where it has no say."""
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


@pytest.mark.parametrize("faithful", [False, True])
def test_a_code_discriminator_hears_of_codes_and_of_the_prior(faithful: bool) -> None:
    """Of a linear one, the gradient is the mean of codes less that of the prior; of the public code, the latter."""
    parts = network(code_discriminator_hidden=4)
    parts.code_discriminator = linear = nn.Sequential(nn.Linear(D, 1), nn.Flatten(0))  # type: ignore[assignment]
    model, batch = AlphaWGAN(parts, penalty_weight=0.0, faithful=faithful), as_batch(mixture(5))
    torch.manual_seed(2)
    loss = model.code_discriminator_loss(batch)["code_discriminator_loss"]
    torch.manual_seed(2)
    prior, codes = model.codes(5), parts.encoder(batch.image).detach()
    found = gradients(loss, linear)[0]
    torch.testing.assert_close(found, (0 if faithful else 1) * codes.mean(0)[None] - prior.mean(0)[None])


@pytest.mark.parametrize("faithful", [False, True])
def test_codes_are_brought_to_the_prior_unless_faithful(faithful: bool) -> None:
    """With nothing to reconstruct and a discriminator of images that is blind, codes alone are left for the encoder."""
    model = AlphaWGAN(network(code_discriminator_hidden=4), reconstruction_weight=0.0, faithful=faithful)
    nn.init.zeros_(model.network.discriminator.head.weight)  # type: ignore[union-attr, arg-type]
    loss = model.encoder_loss(as_batch(mixture(3)))["encoder_loss"]
    asked = [each is not None and bool(each.any()) for each in gradients(loss, model.network.encoder)]
    assert any(asked) != faithful


@pytest.mark.parametrize(
    ("model", "periods"),
    [
        (lambda: AlphaWGAN(network(code_discriminator_hidden=4)), (1, 1, 1, 1)),
        (lambda: AlphaWGAN(network(code_discriminator_hidden=4), faithful=True), (1, 2, 2, 2)),
        (lambda: CCEGAN(network(), discriminator_updates=4), (4, 4, 1)),
        (lambda: CCEGAN(network(), faithful=True), (3, 6, 2)),
        (lambda: VAEGAN(network(gaussian=True)), (1, 1, 1)),
    ],
)
def test_updates_are_as_many_as_published(model: Any, periods: tuple[int, ...]) -> None:
    """In the public notebooks generator and encoder move twice and once, beside discriminators once or three times."""
    assert tuple(player.every_n_batches for player in model().players()) == periods


def test_a_blind_discriminator_pays_three_log_two() -> None:
    """One for real images, one for reconstructions, one for images of the prior."""
    model = VAEGAN(network(gaussian=True))
    for part in (model.network.discriminator.head.weight, model.network.discriminator.head.bias):  # type: ignore[union-attr]
        nn.init.zeros_(part)  # type: ignore[arg-type]
    losses = model.discriminator_loss(as_batch(mixture(3)))
    assert losses["discriminator_loss"].item() == pytest.approx(3 * math.log(2))
    faithful = VAEGAN(model.network, faithful=True, reconstruction_weight=0.0)
    for one, sign in ((model, 1), (faithful, -1)):  # -log D(x^) and log(1 - D(x^)), of two kinds of images
        assert one.loss(as_batch(mixture(3)))["adversarial"].item() == pytest.approx(sign * 2 * math.log(2))


def test_features_that_are_the_image_are_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, batch = network(gaussian=True), as_batch(mixture(3))
    monkeypatch.setattr(parts.discriminator, "features", lambda image: [image * 0, image])
    monkeypatch.setattr(parts.discriminator, "forward", lambda image: image.flatten(1).mean(1))
    found = []
    for space in ("features", "pixel"):
        model = VAEGAN(parts, space)  # type: ignore[arg-type]
        torch.manual_seed(4)
        found.append([model.loss(batch)["loss"], model.encoder_loss(batch)["encoder_loss"]])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_bound_of_an_encoder_is_that_of_unit_variance() -> None:
    """KL and half the squared error of an image, in nats, shared among its 64 pixels."""
    model, batch = VAEGAN(network(gaussian=True), "pixel"), as_batch(mixture(3))
    torch.manual_seed(4)
    found = model.encoder_loss(batch)
    torch.manual_seed(4)
    code, kl = model.encoded(batch.image)
    error = (model.network.generator(code) - batch.image).square().flatten(1).sum(1)
    torch.testing.assert_close(found["encoder_loss"] * 64, (kl + error / 2).mean())
    torch.testing.assert_close(found["kl"], kl.mean())


@pytest.mark.parametrize("alignment", ["sliced", "sinkhorn"])
def test_the_bank_holds_the_newest_codes(alignment: Any) -> None:
    """Those of each batch before those of the one before; without a gradient, and part of what a checkpoint keeps."""
    model = CCEGAN(network(), alignment, bank=7).train()
    first = model.bank.clone()
    batches = [as_batch(mixture(num)) for num in (3, 2)]
    for batch in batches:
        model.encoder_loss(batch)
    codes = [model.network.encoder(batch.image).detach() for batch in batches]
    torch.testing.assert_close(model.bank, torch.cat([codes[1], codes[0], first[:2]]))
    assert not model.bank.requires_grad
    assert torch.equal(model.state_dict()["bank"], model.bank)
    model.encoder_loss(as_batch(mixture(9)))  # more than it holds
    assert model.bank.shape == (7, D)


def test_cycles_reach_the_encoder_unless_faithful() -> None:
    model = CCEGAN(network(), alignment_weight=0.0)
    asked = gradients(model.encoder_loss(as_batch(mixture(3)))["encoder_loss"], model.network.encoder)
    assert all(each is not None for each in asked)
    faithful = CCEGAN(network(), alignment_weight=0.0, faithful=True)
    asked = gradients(faithful.encoder_loss(as_batch(mixture(3)))["encoder_loss"], faithful.network.encoder)
    assert not any(each.any() for each in asked if each is not None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AlphaWGAN(network()), "code_discriminator_hidden is 0"),
        (lambda: AlphaWGAN(network(gaussian=True, code_discriminator_hidden=4)), "gaussian is true"),
        (lambda: VAEGAN(network()), "gaussian is false"),
        (lambda: CCEGAN(network(gaussian=True)), "gaussian is true"),
        (lambda: CCEGAN(network(), bank=0), "bank is 0; give at least 1"),
        (lambda: CCEGAN(network(), discriminator_updates=0), "discriminator_updates is 0; give at least 1"),
    ],
)
def test_networks_that_do_not_suit_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
