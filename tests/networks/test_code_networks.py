"""Autoencoder, discriminator and transformer of the two-stage methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_medgen.batch import Condition
from lit_medgen.networks import Autoencoder, CodeTransformer, Covariates, PatchDiscriminator
from lit_medgen.networks.discriminator import diff_augment


@pytest.mark.parametrize("dim", [2, 3])
def test_autoencoder_keeps_the_size_and_learns_everywhere(dim: int) -> None:
    torch.manual_seed(0)
    network = Autoencoder(dim, 1, 4, (8, 8, 16), (False, True, False), 1, 8)
    image = torch.randn(2, 1, *[8] * dim)
    latent = network.encode(image)
    assert latent.shape == (2, 4, *[2] * dim)
    assert network.divisor == 4
    for parameter in network.parameters():  # zero-initialised branches would hide what is behind them
        nn.init.normal_(parameter, std=0.1)
    output = network.decode(network.encode(image))
    assert output.shape == image.shape
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_autoencoder_of_the_paper_makes_121_codes() -> None:
    with torch.device("meta"):
        latent = Autoencoder(channels=(128, 128, 256, 256, 512)).encode(torch.empty(1, 1, 176, 176))
    assert latent.shape == (1, 256, 11, 11)


@pytest.mark.parametrize("dim", [2, 3])
def test_discriminator_looks_at_patches(dim: int) -> None:
    """A logit is of a patch of 34 pixels (two halvings); what lies outside does not change it."""
    discriminator = PatchDiscriminator(dim, channels=2, num_layers=2)
    for module in discriminator:
        if isinstance(module, nn.GroupNorm):  # looks at the whole image
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(1, 1, *[48 if axis == 0 else 16 for axis in range(dim)], requires_grad=True)
    logits = discriminator(image)
    logits[(0, 0, 0, *[0] * (dim - 1))].backward()
    assert image.grad is not None
    seen = image.grad.flatten(3).abs().sum((0, 1, 3)) > 0 if dim > 1 else None
    assert seen is not None
    assert 10 <= int(seen.sum()) <= 34
    assert not seen[34:].any()


def test_augmentation_is_differentiable_and_the_middle_draw_changes_nothing() -> None:
    image = torch.rand(3, 1, 16, 16, requires_grad=True)
    torch.testing.assert_close(diff_augment(image, torch.full((3, 4), 0.5)), image)
    random = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    moved = diff_augment(image, random)
    assert not torch.equal(moved, image)
    moved.sum().backward()
    assert image.grad is not None
    assert image.grad.any()
    one = diff_augment(image[:1], torch.tensor([[0.5, 0.5, 1.0, 0.5]]))  # by two rows, -1 where nothing was
    torch.testing.assert_close(one[0, 0, 2:], image[0, 0, :-2])
    assert (one[0, 0, :2] == -1).all()


def told(**attributes: list[float]) -> Condition:
    return Condition(attributes={name: torch.tensor(values) for name, values in attributes.items()})


def test_transformer_reads_codes_or_embeddings_of_any_dimension() -> None:
    t = torch.tensor([0.1, 0.9])
    codes = CodeTransformer((2, 3), 5, width=8, num_heads=2, num_layers=1)
    assert codes(torch.randint(6, (2, 2, 3)), t).shape == (2, 2, 3, 5)  # 5 is the mask
    embedded = CodeTransformer((2, 3, 2), 5, channels=4, width=8, num_heads=2, num_layers=1)
    assert embedded(torch.randn(2, 4, 2, 3, 2), t).shape == (2, 2, 3, 2, 5)


def test_transformer_looks_both_ways_and_knows_places() -> None:
    torch.manual_seed(0)
    network = CodeTransformer((2, 3), 5, channels=4, width=8, num_heads=2, num_layers=2)
    z = torch.randn(1, 4, 2, 3, requires_grad=True)
    network(z, torch.tensor([0.5]))[0, 0, 1].sum().backward()
    assert z.grad is not None
    assert (z.grad[0].abs().sum(0) > 0).all()
    same = network(torch.ones(1, 4, 2, 3), torch.tensor([0.5]))[0]
    assert not torch.allclose(same[0, 0], same[1, 2])
    assert not torch.allclose(same, network(torch.ones(1, 4, 2, 3), torch.tensor([0.1]))[0])


def test_absent_attributes_are_one_null() -> None:
    torch.manual_seed(0)
    network = CodeTransformer((2, 2), 5, width=8, num_heads=2, num_layers=1, covariates=Covariates(("age", "sex")))
    z, t = torch.zeros(3, 2, 2, dtype=torch.int64), torch.zeros(3)
    out = network(z, t, told(age=[0.3, torch.nan, -0.3], sex=[1.0, torch.nan, 1.0]))
    assert not torch.allclose(out[0], out[2])
    torch.testing.assert_close(out[1:2], network(z[:1], t[:1], Condition()))
    torch.testing.assert_close(
        network(z[:1], t[:1], told(age=[0.3]))[0], network(z[:1], t[:1], told(age=[0.3], sex=[torch.nan]))[0]
    )
    dropped = told(age=[0.3, 0.3, 0.3], sex=[1.0, 1.0, 1.0]).drop(torch.tensor([True, False, True]))
    torch.testing.assert_close(network(z, t, dropped)[0], out[1])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        CodeTransformer((2, 2), 5, width=8, num_heads=3, num_layers=1)
