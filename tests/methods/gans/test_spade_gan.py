"""SPADE GAN: what its map and its code do, its losses in closed form, and every part at any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import ABSENT_CLASS, Batch, Condition, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.methods import SPADEGAN
from lit_medgen.networks.bottlenecks import DiagonalGaussian
from lit_medgen.networks.gans import SemanticGAN
from lit_medgen.networks.gans.spade import MultiScaleDiscriminator
from lit_medgen.networks.semantic_unet import Modulation, one_hot

K = 4
each_size = pytest.mark.parametrize("size", [(16, 24), (16, 16, 16), (17, 21)], ids=str)
each_code = pytest.mark.parametrize("latent_channels", [0, 3])


def network(size: tuple[int, ...] = (16, 24), **arguments: Any) -> SemanticGAN:
    """A small one, with weights that let everything be heard, in float64."""
    sizes = {"latent_channels": 3, "channels": 4, "modulation_channels": 5, "discriminator_channels": 4}
    torch.manual_seed(0)
    made = SemanticGAN(K, size, **sizes | {"discriminator_layers": 1} | arguments)  # type: ignore[arg-type]
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def classes(size: tuple[int, ...]) -> Tensor:
    """2 1 *s, random classes."""
    return torch.randint(0, K, (2, 1, *size), generator=torch.Generator().manual_seed(1))


def codes(net: SemanticGAN) -> Tensor | None:
    return torch.randn(2, 3).double() if net.latent_channels else None


def batch(size: tuple[int, ...] = (16, 24), copies: int = 1) -> Batch:
    """Two images with maps, or several times the same two."""
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    condition = Condition(label_map=torch.cat([classes(size)] * copies))
    return Batch(torch.cat([image] * copies), ["a", "b"] * copies, torch.eye(4)[None], condition)


@each_size
@each_code
def test_every_weight_of_the_generator_learns(size: tuple[int, ...], latent_channels: int) -> None:
    """From its output alone: code or map at the start, the map in every block."""
    net = network(size, latent_channels=latent_channels)
    net.generator(classes(size), codes(net)).square().mean().backward()
    silent = [name for name, weight in net.generator.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@each_code
def test_a_relabelled_map_with_relabelled_weights_is_the_same(latent_channels: int) -> None:
    """Exactly: classes are names, of which none is before another."""
    net, permutation = network(latent_channels=latent_channels).generator, torch.tensor([2, 0, 3, 1])
    label_map, code = classes((16, 24)), torch.randn(2, 3).double() if latent_channels else None
    found = net(label_map, code)
    with torch.no_grad():
        layers = [module.hidden for module in net.modules() if isinstance(module, Modulation)]
        for layer in [*layers, *([] if latent_channels else [net.start])]:
            layer.weight.copy_(layer.weight[:, permutation.argsort()])  # type: ignore[operator, union-attr, index]
    assert_close(net(permutation[label_map], code), found, rtol=1e-10, atol=1e-10)
    assert (net(label_map, code) - found).abs().max() > 1e-3


@each_code
def test_a_map_of_one_class_modulates(latent_channels: int) -> None:
    """As in LSDM, and not in MONAI's, which normalises gamma and beta over the image; absent maps are no class."""
    net = network(latent_channels=latent_channels)
    code = torch.randn(1, 3).double() if latent_channels else None
    found = [net.generator(torch.full((1, 1, 16, 24), k), code) for k in (ABSENT_CLASS, *range(K))]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-3


def test_what_is_of_one_voxel_is_seen_at_every_level_and_nearest_loses_it() -> None:
    label_map = torch.zeros(1, 1, 16, 24, dtype=torch.long)
    label_map[0, 0, 5, 7] = 3
    for pyramid, seen in (("max", [1, 1, 1]), ("nearest", [1, 0, 0])):
        hots = network(pyramid=pyramid).generator.maps(label_map)
        assert [int(hot[0, 3].sum()) for hot in hots] == seen
        assert [tuple(hot.shape[2:]) for hot in hots] == [(16, 24), (8, 12), (4, 6)]


def test_the_margin_of_a_padded_map_is_of_no_class() -> None:
    net = network((65, 67))
    full = net.generator.maps(classes((65, 67)))[0]
    assert min(full.shape[2:]) > 65
    assert full.sum() == 2 * 65 * 67
    assert_close(net.generator.halvings.cropped(full), one_hot(classes((65, 67)), K).double())


def test_a_sample_hangs_on_its_seed_and_its_map_alone() -> None:
    model, label_map = SPADEGAN(network().float()).eval(), classes((16, 24))
    both = model.sample(Condition(label_map=label_map), [3, 5])
    assert_close(model.sample(Condition(label_map=label_map[1:]), [5]), both[1:], rtol=1e-5, atol=1e-5)
    assert (model.sample(Condition(label_map=label_map[1:]), [6]) - both[1:]).abs().max() > 1e-3
    plain = SPADEGAN(network(latent_channels=0).float()).eval()
    same = [plain.sample(Condition(label_map=label_map), [seed, 1]) for seed in (1, 2)]
    assert torch.equal(*same)
    with pytest.raises(InputError, match=r"label_map is missing"):
        model.sample(Condition(), [0])


@pytest.mark.parametrize("faithful", [False, True])
def test_the_divergence_is_a_mean_over_images(faithful: bool) -> None:
    """Whatever the batch; the public code's grows with it."""
    model = SPADEGAN(network().float(), features="none", faithful=faithful).eval()
    one, three = (model.loss(batch(copies=copies))["kl"].item() for copies in (1, 3))
    latent = model.latent(batch().image)
    assert isinstance(latent, DiagonalGaussian)
    normal = torch.distributions.Normal(latent.mean, latent.variance.sqrt())
    exact = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert one == pytest.approx(float(exact.sum() if faithful else exact.mean()), rel=1e-5)
    assert three == pytest.approx(3 * one if faithful else one, rel=1e-5)


def test_the_losses_are_those_of_known_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scales: features 1 of real and 3 of made images, then 2 and 7; logits 0.5 and -0.25, then 2 and 1."""
    model = SPADEGAN(network(latent_channels=0), features="none", feature_weight=10.0).eval()
    values = [[(1.0, 3.0), (0.5, -0.25)], [(2.0, 7.0), (2.0, 1.0)]]
    layers = [[torch.tensor(pair).repeat_interleave(2)[:, None] for pair in scale] for scale in values]
    monkeypatch.setattr(model.network, "features", lambda *_: layers)
    losses = model.loss(batch())
    assert losses["feature_matching"] == pytest.approx((2 + 5) / 2)
    assert losses["adversarial"] == pytest.approx((0.25 - 1) / 2)
    assert losses["loss"] == pytest.approx(35 - 0.375)
    hinges = [(0.5 + 0.75) / 2, (0 + 2) / 2]
    assert model.discriminator_loss(batch())["discriminator_loss"] == pytest.approx(sum(hinges) / 2)


def test_discriminators_judge_by_the_map() -> None:
    """The same image beside another map seems other at every scale, of which the second sees half the size."""
    net = network((32, 32)).float()
    image = batch((32, 32)).image
    one, other = net.features(classes((32, 32)), image), net.features(classes((32, 32)).flip(0), image)
    assert [scale[0].shape[2:] for scale in one] == [(16, 16), (8, 8)]
    for ours, theirs in zip(one, other, strict=True):
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(ours, theirs, strict=True))


def test_images_that_leave_no_patch_are_refused() -> None:
    MultiScaleDiscriminator((12, 40), 1, 2, num_layers=1, num_scales=2)(torch.zeros(1, 1, 12, 40))
    with pytest.raises(ValueError, match=r"too small for discriminator_layers 2 at discriminator_scales 2"):
        MultiScaleDiscriminator((12, 40), 1, 2, num_layers=2, num_scales=2)


def test_classes_of_the_data_must_be_those_of_the_network() -> None:
    model = SPADEGAN(network())
    spec = DataSpec(1, (16, 24), (1.0, 1.0), classes=("air", "body", "lung", "nodule"))
    model.check_shape(spec)
    with pytest.raises(InputError, match=r"num_classes is 4, but the label maps of the data have 2: air; body; give 2"):
        model.check_shape(replace(spec, classes=("air", "body")))
    with pytest.raises(InputError, match=r"size is \[16, 24\]"):
        model.check_shape(replace(spec, size=(16, 16)))


@pytest.mark.parametrize("size", [(64,) * 3, (128,) * 3, (176, 176), (80, 96, 80)], ids=str)
def test_every_part_fits_any_size(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By shape alone, to which spectral norms, seconds of work on such a device, do nothing."""
    for module in ("spade", "convolutional"):
        monkeypatch.setattr(f"lit_medgen.networks.gans.{module}.spectral_norm", lambda layer: layer)
    with torch.device("meta"):
        net = SemanticGAN(K, size, channels=4)
        label_map = torch.zeros(1, 1, *size, dtype=torch.long)
        image = net.generator(label_map, torch.zeros(1, 256))
        assert image.shape == (1, 1, *size)
        assert len(net.features(label_map, image)) == 2
        assert net.encoder is not None
        assert net.encoder(image).shape == (1, 512)
