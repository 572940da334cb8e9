"""VDM: its bound in closed forms, what learns, samples of an exact network, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from data_modules.chestxray_tables import FINDINGS
from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    Bernoulli,
    ClassifierFree,
    DiscretisedLogistic,
    Gaussian,
    LinearGamma,
    MonotoneGamma,
    NoiseAt,
)
from lit_medgen.errors import InputError
from lit_medgen.methods import VDM
from lit_medgen.methods.vdm.bound_record import TERMS, BoundRecord, scores_of
from lit_medgen.methods.vdm.fitting import refuse_other_values
from lit_medgen.networks import Autoencoder, DenseAutoencoder, FourierFeatures, ScoreResNet, UNet
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.training.conditional import Conditioning

CONFIGS = Path(__file__).parents[2] / "configs"
SPEC = DataSpec(1, (8, 8), (1.0, 1.0), attributes={"age_years": (40.0, 80.0), "sex": (0.0, 1.0)})
PEOPLE = Covariates(numbers=("age_years",), categories={"sex": 2})
NUM = 64


def stirred(module: VDM) -> VDM:
    """Itself with random weights also where layers begin as zero, so that everything in it matters."""
    torch.manual_seed(3)
    for name, parameter in module.named_parameters():
        if "schedule" not in name and "likelihood" not in name and not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.05)
    return module


def built(kind: str = "pixels", **arguments: Any) -> VDM:
    """A small VDM of 8 x 8 images that has seen their spec; pixels, conv or dense."""
    torch.manual_seed(0)
    covariates = arguments.pop("covariates", None)
    sizes: dict[str, Any] = {"width": 8, "num_blocks": 1, "covariates": covariates}
    match kind:
        case "pixels":
            parts: dict[str, Any] = {"network": ScoreResNet(2, 1, **sizes)}
        case "conv":
            coder: nn.Module = Autoencoder(2, 1, 2, (4, 4), (False, False), 1, 4)
            parts = {"network": ScoreResNet(2, 2, **sizes), "autoencoder": coder}
        case _:
            coder = DenseAutoencoder((8, 8), 1, 4, 16, 1)
            parts = {"network": ScoreResNet(0, 4, **sizes), "autoencoder": coder}
    model = VDM(**{"sampler": Ancestral(4, spacing="log_snr")} | parts | arguments)
    model.spec = SPEC
    return model


each_kind = pytest.mark.parametrize("kind", ["pixels", "conv", "dense"])


def images(num: int = 8, seed: int = 0) -> Batch:
    """Grey values of 8 bits; people of all ages."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, 1, 8, 8), generator=generator) / 127.5 - 1
    attributes = {"age_years": torch.linspace(40, 80, num), "sex": torch.arange(num) % 2.0}
    return Batch(pixels, ["key"] * num, torch.eye(4).expand(num, 4, 4), Condition(attributes))


class Silent(nn.Module):
    """A network that sees no noise anywhere."""

    def forward(self, z_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """Zeros."""
        return torch.zeros_like(z_t)


class Exact(nn.Module):
    """The noise in one image, which is all the data there is."""

    def __init__(self, schedule: Any, image: Tensor) -> None:
        super().__init__()
        self.gamma, self.image = lambda level: schedule.gamma_min + schedule.span * level.double(), image

    def forward(self, z_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """(z_t - alpha x) / sigma."""
        gamma = self.gamma(level).view(-1, 1, 1, 1)
        return ((z_t - torch.sigmoid(-gamma).sqrt() * self.image) / torch.sigmoid(gamma).sqrt()).to(z_t.dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("schedule", "num_steps"), [(LinearGamma(-6, 4), None), (MonotoneGamma(-6, 4), None), (LinearGamma(-6, 4), 5)]
)
def test_a_network_that_sees_nothing_pays_for_all_of_gamma(
    schedule: Any, num_steps: int | None, training: bool
) -> None:
    """(gamma_1 - gamma_0) / 2 nats for each value, whatever lies between; with T steps T expm1(range / T) / 2."""
    model = built(network=Silent(), schedule=schedule, bound_steps=num_steps).train(training)
    nats = 5 if num_steps is None else num_steps * math.expm1(10 / num_steps) / 2
    with torch.no_grad():
        found = [model.loss(images(NUM))["diffusion"] for _ in range(4)]
    assert float(torch.stack(found).mean()) * math.log(2) == pytest.approx(nats, rel=0.06)


@pytest.mark.parametrize("likelihood", [DiscretisedLogistic(), Gaussian(), Gaussian(None)])
def test_an_exact_network_pays_for_the_two_ends_alone(likelihood: Any) -> None:
    """The prior term in closed form, no diffusion term; and it samples the one image that there is."""
    schedule, batch = LinearGamma(-9, 5), images(1)
    model = built(network=Exact(schedule, batch.image), schedule=schedule, likelihood=likelihood).eval()
    with torch.no_grad():
        losses = model.loss(batch)
        alpha, sigma = (float(part) for part in schedule.alpha_sigma(torch.ones(())))
        kl = (alpha**2 * batch.image.square() + sigma**2 - 1 - 2 * math.log(sigma)).sum() / 2
        sample, shown = model.sample(Condition(), [3]), model.trajectory(Condition(), 3)
    assert float(losses["diffusion"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["prior"]) == pytest.approx(float(kl) / (64 * math.log(2)), rel=1e-3)
    noise = math.exp(-9 / 2)
    assert (sample - batch.image).abs().max() < 5 * noise
    assert (shown[:-1] - batch.image).abs().max() < 1e-3
    assert torch.equal(shown[-1:], sample)


@each_kind
def test_the_loss_is_the_sum_of_the_terms(kind: str) -> None:
    model = built(kind)
    losses = model.loss(images())
    assert torch.equal(losses["loss"], losses["bits_per_dimension"])
    torch.testing.assert_close(sum(losses[name] for name in TERMS), losses["loss"])
    torch.manual_seed(1)
    plain = model.loss(images())["loss"]
    model.gradient_difference = 0.5
    torch.manual_seed(1)
    losses = model.loss(images())
    torch.testing.assert_close(losses["loss"], plain + 0.5 * losses["gradient_difference"])
    torch.testing.assert_close(losses["bits_per_dimension"], plain)


@each_kind
def test_the_loss_reaches_everything_that_learns(kind: str) -> None:
    """Ends and interior of gamma, the scale of the likelihood, both halves of the autoencoder, the covariates."""
    arguments: dict[str, Any] = {"schedule": MonotoneGamma(-6, 4, num_features=4), "covariates": PEOPLE}
    model = stirred(built(kind, likelihood=DiscretisedLogistic(scale="learned"), **arguments)).train()
    model.loss(images())["loss"].backward()
    dead = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.abs().sum()]
    assert dead == []


@each_kind
def test_the_bound_of_few_images_falls(kind: str) -> None:
    model = built(kind, schedule=MonotoneGamma(-8, 5)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch, found = images(), []
    batch.image.copy_(batch.image[:1].expand_as(batch.image))
    for _ in range(30):
        loss = model.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


@each_kind
@pytest.mark.parametrize("sampler", [DDIM(3), Ancestral(3, spacing="log_snr")], ids=["ddim", "ancestral"])
def test_a_sample_depends_on_its_seed_and_condition_alone(kind: str, sampler: Any) -> None:
    model = stirred(built(kind, covariates=PEOPLE, sampler=sampler, conditioning=Conditioning(guidance_scale=2.0)))
    model = model.eval()
    condition = Condition({"age_years": torch.tensor([40.0, 80, 60]), "sex": torch.tensor([0.0, 1, torch.nan])})
    three = model.sample(condition, [4, 5, 6])
    assert three.shape == (3, 1, 8, 8)
    for i, seed in enumerate((4, 5, 6)):
        own = Condition({name: value[i : i + 1] for name, value in condition.attributes.items()})
        torch.testing.assert_close(three[i : i + 1], model.sample(own, [seed]), atol=1e-4, rtol=0)
    assert not torch.allclose(three[0], three[1], atol=1e-3)


def test_guidance_of_scale_one_is_the_conditional_model() -> None:
    model = stirred(built(covariates=PEOPLE)).eval()
    assert model.sampling_denoiser is model.denoiser
    condition = Condition({"sex": torch.tensor([1.0, 0.0])})
    expected = model.sample(condition, [1, 2])
    model.conditioning = Conditioning(guidance_scale=3.0, guidance_interval=(0.9998, 0.9999))
    assert isinstance(model.sampling_denoiser, ClassifierFree)
    assert torch.equal(model.sample(condition, [1, 2]), expected)
    model.conditioning = Conditioning(guidance_scale=3.0)
    assert not torch.allclose(model.sample(condition, [1, 2]), expected, atol=1e-3)


def test_the_network_is_told_noise_in_training_and_sampling_alike() -> None:
    """The level of a time, which is the schedule's, not the time itself."""
    model = built(schedule=(schedule := MonotoneGamma(-6, 4, num_features=4)))
    with torch.no_grad():
        schedule.height.copy_(torch.tensor([3.0, -2, 1, 4]))
    t = torch.tensor([0.0, 0.3, 0.9, 1.0])
    levels: list[Tensor] = []
    model.level_network.network.register_forward_hook(lambda _, arguments, __: levels.append(arguments[1]))
    model.denoiser(torch.zeros(4, 1, 8, 8), t, Condition())
    torch.testing.assert_close(levels[0], NoiseAt.of(model.schedule, t).level.float())
    assert (levels[0] - t).abs().max() > 0.02


def test_a_run_goes_on_with_the_bounds_it_noted() -> None:
    noted, other = BoundRecord(), BoundRecord()
    for step in (10, 20):
        for num, value in ((3, 1.0), (1, 5.0)):
            noted.add({name: torch.tensor(value * k) for k, name in enumerate(TERMS, 1)}, num)
        noted.close(step, 1)
    assert noted.rows == [[10, 2, 4, 6], [20, 2, 4, 6]]
    other.take(noted.state())
    assert other.rows == noted.rows
    other.add(dict.fromkeys(TERMS, torch.tensor(1.0)), 1)
    other.close(20, 1)  # a validation done again
    assert other.rows == [[10, 2, 4, 6], [20, 1, 1, 1]]


def test_scores_are_means_over_images_with_intervals_over_people() -> None:
    terms = {name: torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64) * k for k, name in enumerate(TERMS, 1)}
    scores = scores_of(terms, ["a", "a", "b"], "continuous time", True)
    assert scores["bits_per_dimension"].value == 18.0
    assert [scores[f"{name}_bits"].value for name in TERMS] == [3, 6, 9]
    assert scores_of(terms, ["a"] * 3, "5 steps", False)["prior_bits"].ci95 is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"schedule": MonotoneGamma()}, "schedule: MonotoneGamma, but this model was trained with LinearGamma"),
        ({"schedule": LinearGamma(-10, 5)}, "gamma_min and gamma_max other than this model was trained with"),
        ({"schedule": LinearGamma(learned_ends=True)}, "learned_ends: another than this model was trained with"),
        ({"likelihood": Gaussian()}, "likelihood: Gaussian .*, but this model was trained with DiscretisedLogistic"),
        ({"likelihood": DiscretisedLogistic(128)}, "num_values=128 .*, but this model was trained with"),
    ],
)
def test_another_schedule_or_likelihood_is_refused_where_a_run_goes_on(
    arguments: dict[str, Any], complaint: str
) -> None:
    facts = built().facts()
    built(bound_steps=1000).restore(facts)
    with pytest.raises(InputError, match=complaint):
        built(**arguments).restore(facts)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"network": ScoreResNet(2, 3)}, r"network.init_args.in_channels is 3, but images have 2 axes and 1 channels"),
        ({"network": ScoreResNet(3, 1)}, r"network.init_args.dim is 3, .*; give 2\."),
        (
            {"network": ScoreResNet(2, 2), "autoencoder": Autoencoder(2, 1, 2, (4,) * 5, (False,) * 5, 1, 4)},
            "autoencoder: images are 8 x 8, but the autoencoder takes multiples of 16",
        ),
        (
            {"network": ScoreResNet(0, 4), "autoencoder": DenseAutoencoder((4, 8), 1, 4, 8, 1)},
            "autoencoder: images are 8 x 8, but the autoencoder takes 4 x 8",
        ),
        (
            {"network": ScoreResNet(0, 8), "autoencoder": DenseAutoencoder((8, 8), 1, 4, 8, 1)},
            "in_channels is 8, but the autoencoder's latents have 0 axes and 4 channels",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_data(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        built(**arguments).before_data(SPEC, None)


def test_steps_do_not_train_what_lies_between_the_ends() -> None:
    """But may measure what was trained in continuous time."""
    model = built(schedule=MonotoneGamma(-6, 4), bound_steps=10)
    assert float(model.loss(images())["diffusion"]) > 0
    with pytest.raises(InputError, match="bound_steps is 10, but MonotoneGamma is trained for continuous time"):
        model.before_data(SPEC, None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"bound_steps": 0}, "bound_steps is 0; give at least 1"),
        ({"times_each": 0}, "times_each is 0; give at least 1"),
        ({"likelihood": Bernoulli()}, "locations are logits that a decoder gives; in pixels"),
        ({"gradient_difference": -1.0}, "gradient_difference is -1.0; give 0 or more"),
        ({"conditioning": Conditioning(guidance_scale=2.0)}, "guidance_scale is 2.0, but the network has no"),
        (
            {"autoencoder": DenseAutoencoder((8, 8)), "likelihood": DiscretisedLogistic()},
            "scale is null, the noise of z_0 in pixels",
        ),
    ],
)
def test_what_cannot_work_together_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        built(**arguments)


@pytest.mark.parametrize("num_values", [16, 255, 1000])
def test_grey_values_that_a_likelihood_does_not_know_are_refused(num_values: int) -> None:
    """Those of 8 bits lie on the grids of 256 and of 2 x 255 + 1 values."""
    batch = images()
    for fitting in (DiscretisedLogistic(256), Gaussian(511), Gaussian(None), Bernoulli()):
        refuse_other_values(fitting, batch.image)
    with pytest.raises(InputError, match=f"num_values is {num_values}, but images have values between"):
        refuse_other_values(DiscretisedLogistic(num_values), batch.image)


@pytest.mark.parametrize("config", ["vdm", "vdm_latent"])
def test_shipped_configs_name_the_findings_of_the_data(config: str) -> None:
    """All 14, which runs of the tests are too small for."""
    network = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["model"]["init_args"]["network"]["init_args"]
    covariates = network.get("covariates") or network["network"]["init_args"]["covariates"]
    assert covariates["labels"]["findings"] == [*FINDINGS]


def test_pixels_may_be_coins() -> None:
    """Bernoulli's locations are logits; an image of them lies in [-1, 1]."""
    model = built("dense", likelihood=Bernoulli())
    assert model.loss(images())["loss"].isfinite()
    assert model.sample(Condition(), [0]).abs().max() <= 1


def test_fine_differences_are_told_apart_by_waves() -> None:
    """Two neighbouring grey values differ by 1.4 in the sine and cosine of 2^6 pi z, by 0.008 in z."""
    seen: list[Tensor] = []
    inner = UNet(2, 5, 1, (8,), (False,), 1, 8)
    network = FourierFeatures(inner, (6, 7))
    inner.conv_in.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    z = torch.tensor([10, 11]).view(2, 1, 1, 1) / 127.5 - 1
    network(z, torch.zeros(2))
    assert seen[0].shape[1] == 5
    distance = (seen[0][0] - seen[0][1]).flatten()[1:3].norm()
    assert float(distance) == pytest.approx(2 * math.sin(2**6 * math.pi / 255), rel=1e-3)
    for exponents in ((), (6, 6), (-3, 7), (6, 60)):
        with pytest.raises(ValueError, match="give different whole numbers from 0 to 20"):
            FourierFeatures(inner, exponents)
    with pytest.raises(ValueError, match=r"in_channels is 5, but 5 channels .* of 2 exponents are 25; give that"):
        FourierFeatures(ScoreResNet(2, 5, 8, 1))


def test_surprise_is_the_bound_whatever_the_number_of_times() -> None:
    """One time for each of many seeds, and many times for a seed: means of the same terms."""
    model = stirred(built(times_each=1)).eval()
    image = images(1).image
    once = model.surprise(image.expand(400, 1, 8, 8), range(400))["bits_per_dimension"]
    model.times_each = 400
    often = model.surprise(image, [0])["bits_per_dimension"]
    assert once.std() > 0
    assert abs(once.mean() - often).item() < 4 * once.std().item() / 400**0.5
