"""HA-GAN: what is made of a part is a part of what is made, and a step holds no more than a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import Batch
from lit_medgen.methods import HAGAN
from lit_medgen.networks.gans import HierarchicalGAN

SIZES = [(32, 16, 16), (64, 32), (33, 20), (8, 8)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def network(size: tuple[int, ...], **arguments: Any) -> HierarchicalGAN:
    """A small one, with weights that let everything be heard, in float64 and evaluation mode."""
    torch.manual_seed(0)
    made = HierarchicalGAN(size, **{"latent_channels": 6, "channels": 4} | arguments)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def method(size: tuple[int, ...] = (64, 16), **arguments: Any) -> HAGAN:
    return HAGAN(network(size), **arguments)


def batch(size: tuple[int, ...], num: int = 2) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(num, 1, *size).double() * 2 - 1, ["a"] * num, torch.eye(4).expand(num, 4, 4))


def away(net: HierarchicalGAN, overlap: bool = True) -> list[float]:
    """How far each sub-volume is from that part of the whole, at most."""
    latents = net.generator.latents(torch.randn(2, 6).double()).detach()
    whole, parts = net.generator.head(latents), net.parts
    for_each = [net.generator.sub_volume(latents, first, overlap) for first in range(parts.starts)]
    of_whole = [whole.narrow(2, first * parts.factor, parts.length * parts.factor) for first in range(parts.starts)]
    return [float((one - other).detach().abs().max()) for one, other in zip(for_each, of_whole, strict=True)]


@each_size
def test_a_sub_volume_is_that_part_of_the_whole(size: tuple[int, ...]) -> None:
    """Wherever it begins; with the public code's zeros, or its norm, it is not."""
    assert max(away(network(size))) < 1e-12
    inner = slice(1, -1)
    assert min(away(network(size), overlap=False)[inner]) > 1e-3
    assert size == (8, 8) or min(away(network(size, norm="group"))) > 1e-3  # which has no such layer


@each_size
def test_what_is_encoded_in_parts_is_what_is_encoded_at_once(size: tuple[int, ...]) -> None:
    net = network(size)
    image = net.halvings.padded(batch(size).image)
    whole = net.encoder(image)
    assert_close(net.in_tiles(lambda *tile: net.encoded(image, *tile)), whole, rtol=0, atol=1e-12)
    assert (net.in_tiles(lambda *tile: net.encoded(image, *tile, overlap=False)) - whole).abs().max() > 1e-3
    head, parts = net.generator.head(whole), net.parts
    for first in range(parts.starts):
        expected = head.narrow(2, first * parts.factor, parts.length * parts.factor)
        assert_close(net.reconstructed(image, first), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("faithful", [False, True])
def test_windows_of_real_and_made_images_begin_at_one_voxel(faithful: bool) -> None:
    """Those of the public code do so in a quarter of all draws; all draws are as likely, up to the last plane."""
    model = method((64, 16), faithful=faithful)
    torch.manual_seed(0)
    windows = [model.window() for _ in range(600)]
    behind = {window.voxel - window.first * 4 for window in windows}
    assert behind == (set(range(4)) if faithful else {0})
    assert {window.voxel for window in windows} == set(range(0, 57, 1 if faithful else 4))
    assert {window.position for window in windows} >= {0.0, 1.0}
    seen, small = model.real(batch((64, 16)), windows[0])
    made, made_small = model.made(model.codes(2).double(), windows[0])
    assert seen.shape == made.shape == (2, 1, 8, 16)
    assert small.shape == made_small.shape == (2, 1, 16, 4)


def test_small_images_are_means() -> None:
    """The public code takes a voxel of each block."""
    image = batch((64, 16)).image
    _, small = method().real(batch((64, 16)), method().window())
    assert_close(small, image.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).mean((3, 5)))
    _, nearest = method(faithful=True).real(batch((64, 16)), method().window())
    assert torch.equal(nearest, image[:, :, ::4, ::4])


def test_the_gradient_of_a_part_reaches_its_planes_and_their_neighbours() -> None:
    net = network((64, 16)).train()
    latents = net.generator.latents(torch.randn(1, 6).double()).detach().requires_grad_()
    net.generator.sub_volume(latents, 5).square().sum().backward()
    assert latents.grad is not None
    assert [plane for plane, size in enumerate(latents.grad.abs().amax((0, 1, 3))) if size > 0] == [4, 5, 6, 7]


def planes_kept(loss: Any) -> int:
    """The most planes of any tensor of full resolution within planes that a backward pass keeps."""
    shapes: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return max(shape[2] for shape in shapes if len(shape) == 5 and shape[3:] == (16, 16))


def test_a_step_keeps_no_more_than_a_part() -> None:
    """Of 128 planes the generator's keeps 16 and four more on either side, the encoder's four and eight more."""
    model, images = method((128, 16, 16)), batch((128, 16, 16))
    model.codes = lambda num: torch.randn(num, 6).double()  # type: ignore[method-assign]
    assert planes_kept(lambda: model.loss(images)) == 24
    assert planes_kept(lambda: model.encoder_loss(images)) <= 40
    assert planes_kept(lambda: model.sub_encoder_loss(images)) == 24
    assert planes_kept(lambda: model.network.generator(model.codes(1))) == 128


def test_losses_are_cross_entropies_of_constant_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = method().float().train(), batch((64, 16))
    images = Batch(images.image.float(), images.key, images.affine)
    monkeypatch.setattr(model.network.discriminator, "forward", lambda image, *_: image.new_full((len(image),), 0.7))
    logit = torch.tensor(0.7)
    assert_close(model.loss(images)["loss"], -logit.sigmoid().log())
    expected = -logit.sigmoid().log() - (1 - logit.sigmoid()).log()
    assert_close(model.discriminator_loss(images)["discriminator_loss"], expected)


def test_a_discriminator_is_a_lipschitz_one_that_knows_where_it_looks() -> None:
    net = HierarchicalGAN((64, 16), channels=4)
    crop, small = torch.rand(2, 1, 8, 16), torch.rand(2, 1, 16, 4)
    for _ in range(30):
        net.discriminator(crop, small, 0.0)
    for layer in net.discriminator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, rel=0.02)
    net.eval()
    assert not torch.equal(net.discriminator(crop, small, 0.0), net.discriminator(crop, small, 1.0))


@pytest.mark.parametrize("size", [(64,) * 3, (128,) * 3, (176, 176), (80, 96, 80), (91, 109, 91)], ids=str)
def test_every_part_fits_any_size(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By shape alone, to which spectral norms, seconds of work on such a device, do nothing."""
    for module in ("hierarchical", "convolutional"):
        monkeypatch.setattr(f"lit_medgen.networks.gans.{module}.spectral_norm", lambda layer: layer)
    with torch.device("meta"):
        net = HierarchicalGAN(size, channels=4)
        codes, image = torch.zeros(2, net.latent_channels), net.halvings.padded(torch.zeros(2, 1, *size))
        latents = net.generator.latents(codes)
        assert net.generator(codes).shape == (2, 1, *size)
        seen, small = net.generator.sub_volume(latents, net.parts.starts - 1), net.generator.small(latents)
        assert seen.shape[2] == pytest.approx(image.shape[2] / 8, abs=4)
        assert net.discriminator(seen, small, 1.0).shape == (2,)
        assert net.reconstructed(image, 0).shape == seen.shape
        assert net.sub_encoder(net.in_tiles(lambda *tile: net.encoded(image, *tile))).shape == codes.shape
