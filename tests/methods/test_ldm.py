"""LDM: its loss in closed form, samples of an exact denoiser, both first stages, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import (
    DDIM,
    ClassifierFree,
    FlowEuler,
    FlowHeun,
    Heun,
    LogitNormal,
    MinSNR,
    OptimalTransport,
    RectifiedFlow,
    ScaledLinearBeta,
    ZeroTerminalSNR,
)
from lit_medgen.errors import InputError
from lit_medgen.methods import LDM, VQGAN, AutoencoderKL
from lit_medgen.networks import Autoencoder, NearestNeighbour, SemanticUNet, UNet
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.latents import encoded

SPEC = DataSpec(1, (16, 16), (1.0, 1.0), attributes={"age_years": (40.0, 80.0), "sex": (0.0, 1.0)})
PEOPLE = Covariates(numbers=("age_years",), categories={"sex": 2})
FLOW: dict[str, Any] = {"schedule": RectifiedFlow(), "parametrisation": "velocity", "sampler": FlowHeun(4)}


def first_stage(kind: type[Any], dim: int = 2) -> Any:
    """An untrained one, whose latents are 4 8 8 (8)."""
    torch.manual_seed(1)
    is_kl = kind is AutoencoderKL
    net = Autoencoder(dim, 1, 4, (8, 8), (False, False), 1, log_variance=is_kl)
    model = kind(net, features="none") if is_kl else kind(net, NearestNeighbour(16, 4), features="none")
    model.spec = DataSpec(1, (16,) * dim, (1.0,) * dim)
    return model.eval()


PARTS = {"vqgan": first_stage(VQGAN), "kl": first_stage(AutoencoderKL), "kl_3d": first_stage(AutoencoderKL, 3)}
each_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)


@pytest.fixture
def vqgan() -> VQGAN:
    return PARTS["vqgan"]


def network(dim: int = 2, **arguments: Any) -> UNet:
    """For latents 4 8 8 (8); its last layer, and what it makes of covariates, are no longer zero."""
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 4, "channels": (8, 8), "attention": (False, True), "head_channels": 8}
    found = UNet(dim, **sizes | {"num_res_blocks": 1} | arguments)
    for name, parameter in found.named_parameters():
        if name.startswith("conv_out.weight") or ".out." in name or name.startswith("encoder.out"):
            nn.init.normal_(parameter, std=0.3)
    return found


def built(part: Any, net: nn.Module | None = None, **arguments: Any) -> LDM:
    """An LDM on a first stage, without a trainer, with a latent scale as if it were measured."""
    model = LDM(net or network(len(part.spec.size)), "", **{"sampler": DDIM(3)} | arguments)
    model.spec = DataSpec(1, part.spec.size, part.spec.spacing_mm, attributes=SPEC.attributes)
    model.take_parts(first_stage=part)
    model.scale.shift.fill_(0.3)
    model.scale.scale.fill_(1.7)
    return model.eval()


def images(part: Any, num: int = 6) -> Batch:
    pixels = torch.rand(num, 1, *part.spec.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    attributes = {"age_years": torch.linspace(40, 80, num), "sex": torch.arange(num) % 2.0}
    return Batch(pixels, ["key"] * num, torch.eye(4).expand(num, 4, 4), Condition(attributes))


class Exact(nn.Module):
    """What a network should predict of latents that are all the same."""

    def __init__(self, model: LDM, z: Tensor) -> None:
        super().__init__()
        self.target, self.z = model.denoiser.target, z

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.target(self.z.expand_as(z_t), z_t, t)


@each_part
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"parametrisation": "eps", "weight": MinSNR()},
        {"schedule": ZeroTerminalSNR(ScaledLinearBeta()), "sampler": DDIM(3, "trailing")},
        FLOW | {"training_times": LogitNormal()},
        FLOW | {"sampler": FlowEuler(3), "coupling": OptimalTransport()},
    ],
    ids=["v", "eps", "zero_terminal_snr", "flow", "coupled_flow"],
)
def test_an_exact_denoiser_has_no_loss_and_samples_the_image(part: Any, arguments: dict[str, Any]) -> None:
    """Encoding, normalising, denoising and decoding are inverses where they should be."""
    model, batch = built(part, **arguments), images(part, 1)
    with torch.no_grad():
        model.denoiser.network = Exact(model, model.latents(batch))
        for training in (True, False):
            assert model.train(training).loss(batch)["loss"].item() == pytest.approx(0, abs=1e-6)
        expected = part.reconstruct(batch.image)
        for image in (model.sample(Condition(), [3])[0], *model.trajectory(Condition(), 3)):
            torch.testing.assert_close(image, expected[0], atol=1e-3, rtol=0)
        for error in model.surprise(batch.image, [3]).values():  # all that is left is the first stage's
            torch.testing.assert_close(error, (expected - batch.image).square().flatten(1).mean(1), atol=1e-3, rtol=0)


def test_the_loss_of_a_network_that_predicts_nothing_is_the_size_of_its_target(vqgan: VQGAN) -> None:
    """1, for noise, whatever is in the latents."""
    model = built(vqgan, parametrisation="eps")
    nn.init.zeros_(model.denoiser.network.conv_out.weight)
    nn.init.zeros_(model.denoiser.network.conv_out.bias)
    torch.manual_seed(0)
    losses = [model.train().loss(images(vqgan, 64))["loss"] for _ in range(4)]
    assert torch.stack(losses).mean().item() == pytest.approx(1, abs=0.03)


@each_part
def test_latents_of_a_store_are_those_of_the_images(part: Any) -> None:
    model, batch = built(part), images(part)
    kept = encoded(part, batch.image)
    stored = Batch(torch.empty(6, 0), batch.key, batch.affine, batch.condition, kept)
    assert torch.equal(model.latents(stored), model.latents(batch))
    torch.testing.assert_close(model.latents(batch) * 1.7 + 0.3, part.encode(batch.image))


def test_samples_on_codes_are_decoded_codes_and_others_stay_as_they_are(vqgan: VQGAN) -> None:
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    model = built(vqgan)
    made = model.imaged(z)
    assert torch.equal(made, vqgan.decode_codes(vqgan.quantizer.codes(model.scale.denormalise(z))))
    moved = model.imaged(z + 1e-6)  # between codes nothing changes
    assert (made != moved).float().mean() < 0.05
    kl = built(PARTS["kl"])
    assert torch.equal(kl.imaged(z), PARTS["kl"].decode(kl.scale.denormalise(z)))
    assert torch.equal(PARTS["kl"].nearest(z), z)
    embedded = vqgan.encode(images(vqgan).image)
    assert torch.equal(vqgan.nearest(embedded), embedded)


def test_latents_are_sampled_around_their_mean() -> None:
    part = PARTS["kl"]
    model, batch = built(part, latent="sample"), images(part)
    kept = encoded(part, batch.image)
    stored = Batch(torch.empty(6, 0), batch.key, batch.affine, batch.condition, kept)
    draws = torch.stack([model.latents(stored) for _ in range(200)])
    mean = built(part).latents(batch)
    std = part.variance(kept).sqrt() / 1.7
    assert ((draws.mean(0) - mean).abs() < 6 * std / 200**0.5).all()
    torch.testing.assert_close(draws.std(0).mean(), std.mean(), rtol=0.02, atol=0)


def test_each_channel_has_a_scale_of_its_own_if_asked(vqgan: VQGAN) -> None:
    assert built(vqgan).scale.scale.shape == (1,)
    assert built(vqgan, latent_scale="channel").scale.scale.shape == (4,)


@each_part
@pytest.mark.parametrize("arguments", [{}, FLOW, {"sampler": DDIM(3, eta=1.0)}], ids=["ddim", "flow", "noise"])
def test_a_sample_depends_on_its_seed_and_condition_alone(part: Any, arguments: dict[str, Any]) -> None:
    net = network(len(part.spec.size), covariates=PEOPLE)
    model = built(part, net, **arguments, conditioning=Conditioning(guidance_scale=2.0))
    condition = Condition({"age_years": torch.tensor([40.0, 80, 60]), "sex": torch.tensor([0.0, 1, torch.nan])})
    three = model.sample(condition, [4, 5, 6])
    for i, seed in enumerate((4, 5, 6)):
        own = Condition({name: value[i : i + 1] for name, value in condition.attributes.items()})
        torch.testing.assert_close(three[i : i + 1], model.sample(own, [seed]), atol=1e-4, rtol=0)
    other = model.sample(Condition({"age_years": torch.tensor([80.0]), "sex": torch.tensor([0.0])}), [4])
    assert not torch.allclose(three[0], three[1], atol=1e-2)
    assert not torch.allclose(three[:1], other, atol=1e-3)


def test_guidance_of_scale_one_is_the_conditional_model(vqgan: VQGAN) -> None:
    model = built(vqgan, network(covariates=PEOPLE))
    assert model.sampling_denoiser is model.denoiser
    guided = built(vqgan, model.denoiser.network, conditioning=Conditioning(guidance_scale=3.0))
    assert isinstance(guided.sampling_denoiser, ClassifierFree)
    assert len(guided.trajectory(Condition({"sex": torch.tensor([1.0])}), 0)) == 4
    nowhere = Conditioning(guidance_scale=3.0, guidance_interval=(0.998, 0.999))
    condition = Condition({"sex": torch.tensor([1.0, 0.0])})
    outside = built(vqgan, model.denoiser.network, conditioning=nowhere).sample(condition, [1, 2])
    assert torch.equal(outside, model.sample(condition, [1, 2]))
    assert not torch.allclose(guided.sample(condition, [1, 2]), outside, atol=1e-3)


def test_nothing_that_is_unknown_is_a_condition(vqgan: VQGAN) -> None:
    model = built(vqgan, network(covariates=PEOPLE))
    unknown = Condition({"age_years": torch.full((1,), torch.nan), "sex": torch.full((1,), torch.nan)})
    assert torch.equal(model.sample(unknown, [1]), model.sample(Condition(), [1]))


def test_coupling_exchanges_noise_within_classes_in_training_alone(vqgan: VQGAN) -> None:
    bins = OptimalTransport({"age_years": [55.0]})
    model, batch = built(vqgan, network(covariates=PEOPLE), coupling=bins), images(vqgan, 12)
    z = torch.randn(12, 4, 8, 8)
    eps = torch.randn_like(z)
    assert torch.equal(model.coupled(z, eps, batch.condition), eps)
    found = model.train().coupled(z, eps, batch.condition)
    order = (found[:, None] == eps[None]).flatten(2).all(2).int().argmax(1)
    assert sorted(order.tolist()) == list(range(12))
    classes = torch.stack([batch.condition.attributes["sex"], batch.condition.attributes["age_years"] > 55]).T
    assert torch.equal(classes[order], classes)
    assert (found - z).square().sum() < (eps - z).square().sum()


def test_predictions_for_the_alarm_are_those_of_the_loss(vqgan: VQGAN) -> None:
    """At equal noise and times; nothing is dropped in evaluation."""
    model, batch = built(vqgan, network(covariates=PEOPLE)), images(vqgan)
    model.times_and_shares = lambda num, *_: (torch.linspace(0.1, 0.9, num), torch.ones(num))
    torch.manual_seed(3)
    loss = model.loss(batch)["loss"]
    torch.manual_seed(3)
    predicted, error = model.prediction(batch, model.scaled(batch.condition))
    torch.testing.assert_close(error.mean(), loss)
    assert predicted.shape == (6, 4, 8, 8)


def test_volumes_are_decoded_in_slabs() -> None:
    part = PARTS["kl_3d"]
    one, slabs = (built(part, slabs=planes).sample(Condition(), [1]) for planes in (None, 3))
    torch.testing.assert_close(one, slabs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"in_channels": 3}, r"network.init_args.in_channels is 3, .*; give 4\."),
        ({"out_channels": 8}, r"network.init_args.out_channels is 8, .*; give 4\."),
        ({"dim": 3}, r"network.init_args.dim is 3, .*; give 2\."),
    ],
)
def test_latents_that_do_not_fit_the_network_are_refused(arguments: Any, complaint: str, vqgan: VQGAN) -> None:
    with pytest.raises(InputError, match=complaint):
        built(vqgan, network(**arguments))


def test_a_size_that_a_network_of_ones_own_does_not_take_is_refused(vqgan: VQGAN) -> None:
    own = network()
    own.divisor = 3
    with pytest.raises(InputError, match=r"are 8 x 8, but the network takes multiples of 3"):
        built(vqgan, own)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"schedule": RectifiedFlow(), "parametrisation": "eps"}, "parametrisation is 'eps', but schedule Rect"),
        ({"schedule": RectifiedFlow(), "sampler": Heun(4)}, "sampler is Heun, which divides by alpha"),
        (
            {"conditioning": Conditioning(guidance_scale=2.0)},
            "guidance_scale is 2.0, but the network has no",
        ),
        ({"coupling": OptimalTransport({"age_years": [60]})}, "bins of 'age_years'"),
        ({"network": network(covariates=PEOPLE), "coupling": OptimalTransport()}, "'age_years' is continuous"),
        ({"slabs": 0}, "slabs is 0; give at least 1"),
        ({"network": SemanticUNet(3)}, r"SemanticUNet reads a label map, of which LDM gives none; take \S+LSDM"),
    ],
)
def test_what_cannot_work_together_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LDM(**{"network": network(), "first_stage": ""} | arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"parametrisation": "eps"}, "parametrisation is eps, but this model was trained with v"),
        ({"latent_scale": "channel"}, "latent_scale is channel, but this model was trained with global"),
        ({"schedule": ScaledLinearBeta(beta_end=0.03)}, "schedule: another than this model was trained with"),
    ],
)
def test_a_trained_network_is_not_asked_for_what_it_has_not_learned(
    arguments: dict[str, Any], complaint: str, vqgan: VQGAN
) -> None:
    facts = built(vqgan).facts()
    built(vqgan).restore(facts)
    with pytest.raises(InputError, match=complaint):
        built(vqgan, **arguments).restore(facts)
