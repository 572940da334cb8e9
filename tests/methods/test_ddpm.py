"""DDPM: its loss and its samples where the denoiser is known, its seeds, label maps, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import ABSENT_CLASS, Batch, Condition, DataSpec
from lit_medgen.diffusion import (
    DDIM,
    Cosine,
    DPMSolverPP2M,
    FlowHeun,
    MinSNR,
    RectifiedFlow,
    ScaledLinearBeta,
    ZeroTerminalSNR,
)
from lit_medgen.errors import InputError
from lit_medgen.methods import DDPM
from lit_medgen.networks import SemanticUNet, UNet
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.training.conditional import Conditioning

AGES = {"age_years": (40.0, 80.0)}
MEAN, STD = 0.25, 0.2
V = {"parametrisation": "v"}  # at the first step eps would amplify rounding a hundredfold
FLOW: dict[str, Any] = {"schedule": RectifiedFlow(), "parametrisation": "velocity", "sampler": FlowHeun(4)}


def spec(dim: int = 2, classes: tuple[str, ...] = ()) -> DataSpec:
    return DataSpec(1, (8, 12, 10)[:dim], (1.0,) * dim, attributes=AGES, classes=classes)


def network(dim: int = 2, **arguments: Any) -> UNet:
    """A small one that says something from the start."""
    torch.manual_seed(0)
    found = UNet(dim, **{"channels": (8, 8), "attention": (False, True), "num_res_blocks": 1} | arguments)
    for parameter in found.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)  # more would amplify rounding
    return found


def built(net: nn.Module | None = None, dim: int = 2, classes: tuple[str, ...] = (), **arguments: Any) -> DDPM:
    model = DDPM(net or network(dim), **{"sampler": DDIM(3)} | arguments)
    model.spec = spec(dim, classes)
    return model.eval()


def batch(image: Tensor, **condition: Any) -> Batch:
    num = len(image)
    return Batch(image, ["key"] * num, torch.eye(4).expand(num, 4, 4), Condition(**condition))


class OfGaussian(nn.Module):
    """The best prediction of data whose voxels are N(MEAN, STD^2), independent of one another."""

    def __init__(self, model: DDPM) -> None:
        super().__init__()
        self.process, self.target = model.denoiser.process, model.denoiser.target

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What should be predicted of E[x | x_t]."""
        alpha, sigma = self.process.coefficients(t, x_t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return self.target(MEAN + gain * (x_t - alpha * MEAN), x_t, t)


class Exact(nn.Module):
    """What should be predicted where there is one image alone."""

    def __init__(self, model: DDPM, image: Tensor) -> None:
        super().__init__()
        self.target, self.image = model.denoiser.target, image

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.target(self.image.expand_as(x_t), x_t, t)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampler": None},
        {"parametrisation": "v", "sampler": DPMSolverPP2M(25)},
        {"parametrisation": "x", "schedule": ScaledLinearBeta(), "sampler": DDIM(100)},
    ],
    ids=["as published", "v in 25 steps", "x"],
)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_perfect_denoiser_samples_the_distribution_of_the_data(arguments: dict[str, Any], dim: int) -> None:
    model = built(dim=dim, **arguments)
    model.denoiser.network = OfGaussian(model)
    samples = model.sample(Condition(), range(8 if dim == 3 else 64))
    num = samples.numel()
    assert samples.mean().item() == pytest.approx(MEAN, abs=5 * STD / num**0.5)
    assert samples.std().item() == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"loss_kind": "l2", "weight": MinSNR(), "parametrisation": "v"},
        {"schedule": ZeroTerminalSNR(Cosine(250)), "parametrisation": "v", "sampler": DDIM(3, "trailing")},
        FLOW,
    ],
    ids=["as published", "v", "zero_terminal_snr", "flow"],
)
@pytest.mark.parametrize("dim", [2, 3])
def test_an_exact_denoiser_has_no_loss_and_samples_the_image(arguments: dict[str, Any], dim: int) -> None:
    model = built(dim=dim, **arguments)
    image = torch.rand(1, 1, *spec(dim).size) * 2 - 1
    model.denoiser.network = Exact(model, image)
    for training in (True, False):
        assert model.train(training).loss(batch(image))["loss"].item() == pytest.approx(0, abs=1e-5)
    for found in (model.sample(Condition(), [3]), model.trajectory(Condition(), 3)):
        torch.testing.assert_close(found, image.expand_as(found), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("loss_kind", "expected"), [("l1", math.sqrt(2 / math.pi)), ("l2", 1.0)])
def test_the_loss_of_a_network_that_predicts_nothing_is_the_moment_of_the_noise(
    loss_kind: Any, expected: float
) -> None:
    model = built(loss_kind=loss_kind)
    for parameter in model.denoiser.network.conv_out.parameters():
        nn.init.zeros_(parameter)
    torch.manual_seed(0)
    loss = model.train().loss(batch(torch.rand(64, 1, 8, 12)))["loss"]
    assert loss.item() == pytest.approx(expected, abs=0.03)


def test_samples_lie_in_the_range_of_images_whatever_the_network_says() -> None:
    model = built(sampler=DDIM(4))
    for parameter in model.denoiser.network.conv_out.parameters():
        nn.init.normal_(parameter, std=30)
    assert model.sample(Condition(), [0, 1]).abs().max() <= 1
    assert model.trajectory(Condition(), 0).abs().max() <= 1


@pytest.mark.parametrize("arguments", [V, FLOW, V | {"sampler": DDIM(3, eta=1.0)}], ids=["ddim", "flow", "noise"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_sample_depends_on_its_seed_and_condition_alone(arguments: dict[str, Any], dim: int) -> None:
    net = network(dim, covariates=Covariates(numbers=("age_years",)))
    model = built(net, dim, **arguments, conditioning=Conditioning(guidance_scale=2.0))
    ages = torch.tensor([40.0, 80.0, torch.nan])
    three = model.sample(Condition({"age_years": ages}), [4, 5, 6])
    for i, seed in enumerate((4, 5, 6)):
        own = model.sample(Condition({"age_years": ages[i : i + 1]}), [seed])
        torch.testing.assert_close(three[i : i + 1], own, atol=2e-4, rtol=0)  # 1e-4 of the range of 2
    assert not torch.allclose(three[0], model.sample(Condition({"age_years": ages[1:2]}), [4])[0], atol=1e-3)


def test_a_loss_is_the_mean_of_those_of_its_images() -> None:
    """At equal times and noise, so that a batch is no more than its images."""
    model, images = built(), torch.rand(4, 1, 8, 12)
    model.times_and_shares = lambda num, *_: (torch.full((num,), 0.3), torch.ones(num))
    torch.manual_seed(1)
    together = model.loss(batch(images))["loss"]
    torch.manual_seed(1)
    alone = [model.loss(batch(image[None]))["loss"] for image in images]
    torch.testing.assert_close(together, torch.stack(alone).mean())


# Label maps.


def with_maps(**arguments: Any) -> DDPM:
    net, classes = network(in_channels=4), ("air", "brain", "tumour")
    return built(net, classes=classes, concatenate=True, **V | arguments)


def test_a_network_reads_the_label_map_of_each_image() -> None:
    """One that is absent is a map of no class; guidance has nothing to drop, and keeps it."""
    model = with_maps()
    assert model.required == ("label_map",)
    maps = torch.randint(0, 3, (3, 1, 8, 12), generator=torch.Generator().manual_seed(0))
    maps[2] = ABSENT_CLASS
    source = model.scaled(Condition(label_map=maps)).source
    assert source is not None
    assert torch.equal(source.sum(1), (maps >= 0)[:, 0].float())
    assert torch.equal(source.argmax(1)[:2], maps[:2, 0])
    three = model.sample(Condition(label_map=maps), [1, 1, 1])
    torch.testing.assert_close(three[1:2], model.sample(Condition(label_map=maps[1:2]), [1]), atol=2e-4, rtol=0)
    assert not torch.allclose(three[0], three[1], atol=1e-3)
    assert torch.isfinite(model.loss(batch(torch.rand(3, 1, 8, 12), label_map=maps))["loss"])
    with pytest.raises(InputError, match=r"condition\.label_map is missing"):
        model.sample(Condition(), [1])


# What is refused.


@pytest.mark.parametrize(
    ("net", "shape", "complaint"),
    [
        (network(), spec(3), r"network.init_args.dim is 2, but images have 3 axes and 1 channels; give 3\."),
        (network(in_channels=2), spec(), r"in_channels is 2, .*; give 1\."),
        (network(out_channels=2), spec(), r"out_channels is 2, .*; give 1\."),
    ],
)
def test_images_that_do_not_fit_the_network_are_refused(net: UNet, shape: DataSpec, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        DDPM(net).before_data(shape, None)


def test_label_maps_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(InputError, match=r"in_channels is 4, .* 1 channels, beside which it takes 2; give 3\."):
        with_maps().before_data(spec(classes=("air", "brain")), None)
    with pytest.raises(InputError, match="no label maps, from which DDPM makes images"):
        with_maps().before_data(spec(), None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"weight": MinSNR()}, "weight is MinSNR, a weight of squared errors, but .*loss_kind is l1"),
        ({"schedule": RectifiedFlow()}, "parametrisation is 'eps', but schedule Rect"),
        ({"conditioning": Conditioning(guidance_scale=2.0)}, "guidance_scale is 2.0, but the network has no"),
        ({"network": SemanticUNet(3)}, "SemanticUNet reads a label map, of which DDPM gives none"),
    ],
)
def test_what_cannot_work_together_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DDPM(**{"network": network()} | arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"parametrisation": "v"}, "parametrisation is v, but this model was trained with eps"),
        ({"schedule": ScaledLinearBeta()}, "schedule: another than this model was trained with"),
        ({"concatenate": True}, "concatenate is True, but this model was trained with False"),
    ],
)
def test_a_trained_network_is_not_asked_for_what_it_has_not_learned(arguments: dict[str, Any], complaint: str) -> None:
    facts = built().facts()
    built(loss_kind="l2").restore(facts)
    with pytest.raises(InputError, match=complaint):
        built(**arguments).restore(facts)
