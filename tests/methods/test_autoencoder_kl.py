"""The KL autoencoder, and what it shares with VQGAN: the contract of first stages, losses, scores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from tiny_run import ROOT
from torch import nn

from lit_medgen.batch import Batch, DataSpec, Images
from lit_medgen.methods import VQGAN, AutoencoderKL
from lit_medgen.methods.autoencoder import AdversarialAutoencoder
from lit_medgen.metrics import PairedPSNR, PerceptualDistance
from lit_medgen.networks import Autoencoder, NearestNeighbour, PatchDiscriminator
from lit_medgen.networks.bottlenecks import DiagonalGaussian
from lit_medgen.training.first_stage import FirstStage


def network(dim: int = 2, log_variance: bool = True, **more: Any) -> Autoencoder:
    torch.manual_seed(0)
    found = Autoencoder(dim, 1, 3, (8, 8), (False, False), 1, 8, False, log_variance, **more)
    for parameter in found.parameters():  # zero-initialised branches would hide what is behind them
        nn.init.normal_(parameter, std=0.1)
    return found


def kl_autoencoder(dim: int = 2, **more: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(dim, 1, 4, 1)
    return AutoencoderKL(network(dim), discriminator=discriminator, features="none", **more)


def vqgan() -> VQGAN:
    return VQGAN(network(log_variance=False), NearestNeighbour(16, 3), PatchDiscriminator(2, 1, 4, 1), features="none")


def batch(*size: int) -> Batch:
    images = torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, list("abcd"), torch.eye(4).expand(4, 4, 4))


@pytest.mark.parametrize("make", [kl_autoencoder, vqgan])
def test_first_stages_are_interchangeable(make: Any) -> None:
    """Whatever the bottleneck: latents are those of what is kept, have the stated shape and decode to images."""
    model = make().eval()
    model.spec = DataSpec(1, (8, 12), (1.0, 1.0))
    assert isinstance(model, AdversarialAutoencoder)
    assert isinstance(model, FirstStage)
    images = batch(8, 12).image
    with torch.no_grad():
        kept = model.kept(images)
        latents = model.latents(kept)
        assert latents.shape[1:] == model.latent_shape == (3, 4, 6)
        assert kept.shape[2:] == (latents.shape[2:] if kept.is_floating_point() else latents.shape[3:])
        assert torch.equal(latents, model.encode(images))
        assert torch.equal(model.reconstruct(images), model.decode(latents))
        model.loss(batch(8, 12))
        torch.testing.assert_close(model.output.clamp(-1, 1), model.reconstruct(images))  # validation's is evaluation's


def test_kept_moments_give_means_and_samples() -> None:
    model = kl_autoencoder().eval()
    with torch.no_grad():
        kept = model.kept(batch(8, 8).image)
        mean, log_variance = kept.chunk(2, 1)
        assert torch.equal(model.latents(kept), mean)
        torch.manual_seed(3)
        found = model.latents(kept, sample=True)
        torch.manual_seed(3)
        torch.testing.assert_close(found, mean + (log_variance / 2).exp() * torch.randn_like(mean))
    assert kept.dtype == torch.float32


def test_training_decodes_samples_and_weighs_the_divergence_of_an_image() -> None:
    model = kl_autoencoder(kl_weight=0.01, discriminator_start=10).train()
    losses = model.loss(batch(8, 8))
    kept = model.kept(batch(8, 8).image)
    nats = DiagonalGaussian.of(kept).kl()
    assert losses["kl"].item() == pytest.approx(nats.flatten(1).sum(1).mean().item(), rel=1e-5)
    assert losses["kl_per_dimension"].item() == pytest.approx(nats.mean().item(), rel=1e-5)
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.01 * losses["kl"])
    again = model.loss(batch(8, 8))
    assert not torch.equal(losses["l1"], again["l1"])
    model.eval()
    assert torch.equal(model.loss(batch(8, 8))["l1"], model.loss(batch(8, 8))["l1"])


def test_least_squares_losses_in_closed_form() -> None:
    model = kl_autoencoder(adversarial_loss="least_squares")
    model.discriminator = nn.Identity()  # type: ignore[assignment]
    model.output = torch.tensor([-2.0, 0.5]).view(2, 1, 1, 1)
    real = Batch(image=torch.tensor([2.0, 0.0]).view(2, 1, 1, 1), key=[], affine=torch.eye(4))
    found = model.discriminator_loss(real)["discriminator_loss"].item()
    assert found == pytest.approx(((1 + 1) / 2 + (4 + 0.25) / 2) / 2)
    assert model._adversarial(model.output).item() == pytest.approx((9 + 0.25) / 2)


def test_a_fixed_weight_is_the_weight() -> None:
    model = kl_autoencoder(
        discriminator_start=0, adaptive_weight=False, discriminator_weight=0.005, kl_weight=0.0
    ).train()
    losses = model.loss(batch(8, 8))
    assert losses["discriminator_weight"].item() == pytest.approx(0.005)
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.005 * losses["adversarial"])


def test_in_3d_with_recomputed_activations_the_gradient_is_the_same() -> None:
    found = []
    for recompute in (False, True):
        model = kl_autoencoder(3, kl_weight=1e-3, discriminator_start=0).train()
        model.network = network(3, gradient_checkpointing=recompute)
        torch.manual_seed(1)
        model.loss(batch(8, 8, 8))["loss"].backward()
        found.append([parameter.grad for parameter in model.network.parameters()])
        assert all(gradient is not None and gradient.any() for gradient in found[-1])
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_recomputing_keeps_fewer_activations() -> None:
    def kept(recompute: bool) -> int:
        sizes: list[int] = []
        hooks = (lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            network(2, gradient_checkpointing=recompute).encode(torch.randn(1, 1, 32, 32))
        return sum(sizes)

    assert kept(True) < kept(False) / 2


@pytest.mark.parametrize("middle", [True, False])
def test_the_middle_has_attention_only_if_asked(middle: bool) -> None:
    model = Autoencoder(2, 1, 4, (8, 8), (False, False), 1, 8, middle_attention=middle)
    assert any("qkv" in name for name, _ in model.named_parameters()) == middle


@pytest.mark.parametrize(
    ("config", "size", "latent"),
    [("autoencoder_kl", (160, 224, 160), (6, 20, 28, 20)), ("autoencoder_kl_2d", (160, 224), (8, 20, 28))],
)
def test_the_shipped_networks_have_the_latents_of_the_paper(
    config: str, size: tuple[int, ...], latent: tuple[int, ...]
) -> None:
    section = yaml.safe_load((ROOT / f"configs/{config}.yaml").read_text())["model"]["init_args"]["network"]
    with torch.device("meta"):
        found = Autoencoder(**section["init_args"] | {"gradient_checkpointing": False})
        assert found.encode(torch.empty(1, 1, *size)).shape[1:] == latent
    assert not any("qkv" in name for name, _ in found.named_parameters())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AutoencoderKL(network(log_variance=False)), "log_variance to true"),
        (lambda: VQGAN(network(), NearestNeighbour(16, 3)), "log_variance is true"),
        (lambda: kl_autoencoder(kl_weight=-1.0), "kl_weight is -1"),
        (lambda: kl_autoencoder(perceptual_share=0.0), "perceptual_share is 0"),
    ],
)
def test_impossible_values_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_scores_over_processes_and_over_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, of which one has no image, log what the statistics of all their images are."""
    model, logged = kl_autoencoder().eval(), {}
    model._measures = {"psnr": PairedPSNR()}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    model._trainer = type("Trainer", (), {"world_size": 3, "global_rank": 0, "num_val_batches": [1]})

    def gather(shares: list[Any], share: Any) -> None:
        shares[:] = [share, share, (None, {name: [] for name in share[1]})]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    images = batch(8, 8)
    model.on_validation_epoch_start()
    with torch.no_grad():
        model.validation_step(images, 0)
        model.on_validation_epoch_end()
        mean, log_variance = model.kept(images.image).double().chunk(2, 1)
    noise, total = log_variance.exp().mean((0, 2, 3)), mean.var((0, 2, 3), correction=0)
    share = (noise.sum() / (noise + total).sum()).item()
    assert logged["val/noise_share"].item() == pytest.approx(share, rel=1e-4)
    assert logged["val/noise_share_of_channel_2"].item() == pytest.approx((noise / (noise + total))[2].item(), rel=1e-4)
    data = type("Data", (), {"images": lambda *_: Images(list("abcd"), list("abcd"), images.image.__getitem__)})
    scores = model.scores(data())  # type: ignore[arg-type]
    assert scores["noise_share"].value == pytest.approx(share, rel=1e-4)
    assert scores["noise_share"].num == 4
    assert set(scores) == {
        name.removeprefix("val/") for name in logged if "psnr" not in name and "loss" not in name
    } - {
        "l1",
        "kl",
    }


def test_the_perceptual_loss_of_a_share_of_slices() -> None:
    """All slices are the 2D distance's mean; a share is an unbiased estimate, drawn anew, with gradients."""

    def layers(slices: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([slices[:, 0], slices[:, 0].square() + 1], 1)]

    distance = PerceptualDistance(layers, "two channels")
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 8, 12, 16, requires_grad=True), torch.randn(2, 1, 8, 12, 16)
    whole = distance.distance(x, y)
    flat = [distance.distance(x.select(a, i), y.select(a, i)) for a in (2, 3, 4) for i in range(x.shape[a])]
    weights = [1 / 3 / x.shape[a] for a in (2, 3, 4) for _ in range(x.shape[a])]
    torch.testing.assert_close(whole, sum(w * f for w, f in zip(weights, flat, strict=True)))
    found = torch.stack([distance.distance(x, y, 0.25) for _ in range(400)])
    assert found.std(0).min() > 0
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - whole).abs() < 4 * error).all()
    distance.distance(x, y, 0.25).sum().backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    assert [int(seen.all(dim=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1))] == [2, 3, 4]


def test_a_spec_of_other_size_changes_the_latent_shape() -> None:
    model = kl_autoencoder(3)
    model.spec = DataSpec(1, (8, 16, 24), (1.0, 1.0, 1.0))
    assert model.latent_shape == (3, 4, 8, 12)
    model.spec = replace(model.spec, size=(16, 16, 16))
    assert model.latent_shape == (3, 8, 8, 8)
