"""cDPM with a factor prior: what its untrained copy samples, what checkpoints keep, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_cdpm import SIZE, Largest, batch, responsive, spec
from test_factor_model import SHAPE, expected
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import Cosine, DPMSolverPP2M, ParametrisationName, RectifiedFlow, Schedule, ZeroTerminalSNR
from lit_medgen.errors import InputError
from lit_medgen.methods import FactorPriorCDPM
from lit_medgen.methods.cdpm.factor_model import FactorModel, fit_without
from lit_medgen.methods.cdpm.factor_prior import FactorPriorDenoiser
from lit_medgen.methods.cdpm.schemes import Autoregressive
from lit_medgen.networks import FactorPriorSliceUNet, SliceUNet


class Silent(nn.Module):
    """A network that corrects nothing, and keeps what it read."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.image, self.x = condition.image, x
        return torch.zeros_like(x)


def untrained() -> FactorPriorSliceUNet:
    return FactorPriorSliceUNet((8, 16), (True, True), (False, True), num_res_blocks=1, head_channels=8)


def method(factor_model: FactorModel | None = None) -> FactorPriorCDPM:
    """A small method whose zero-initialised layers say something."""
    torch.manual_seed(0)
    made = FactorPriorCDPM(
        responsive(untrained()), sampler=DPMSolverPP2M(3), scheme=Autoregressive(4, 4), num_factors=2
    ).eval()
    made.spec = spec()
    made.denoiser.factor_model = factor_model
    return made


def fitted(scale: float = 1.0) -> FactorModel:
    return FactorModel.fit(scale * torch.rand(4, 1, 10, 8, 12), 2)


@pytest.mark.parametrize("parametrisation", ["x", "eps", "v"])
def test_a_silent_network_leaves_the_exact_denoiser(parametrisation: ParametrisationName) -> None:
    torch.manual_seed(0)
    network = Silent()
    denoiser = FactorPriorDenoiser(network, Cosine(), parametrisation)
    denoiser.factor_model = FactorModel.fit(torch.randn(20, *SHAPE).cumsum(2), 5)
    image, x_t, t = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE), torch.tensor([0.6])
    observed = torch.tensor([[True, False, False, True, False, False]])
    condition = Condition(image=image, observed=observed, slice_index=torch.arange(6)[None])
    alpha_t, sigma_t = (value.item() for value in Cosine().alpha_sigma(t))
    variance = [0.0 if given else (sigma_t / alpha_t) ** 2 for given in observed[0].tolist()]
    known = torch.where(observed[0, None, :, None, None], image[0], x_t[0] / alpha_t)
    right = expected(denoiser.factor_model, known, variance, list(range(6)))
    with torch.autocast("cpu", torch.bfloat16):
        x = denoiser(x_t, t, condition)
    target = ~observed[0]
    assert torch.allclose(x[0, :, target].double(), right["x"][:, target], atol=1e-4)
    assert network.image is not None
    assert torch.allclose(network.image[0, :, target].double(), right["factor_mean"][:, target], atol=1e-4)
    assert torch.allclose(network.x[0, :, target].double(), right["standardised_residual"][:, target], atol=1e-4)
    assert torch.equal(network.image[0, :, observed[0]], image[0, :, observed[0]])


def test_training_takes_the_fit_without_the_person() -> None:
    one = fitted()
    mine = method(one)
    mine.fits = {"key": fit_without(1)}
    sets = batch(torch.rand(2, 1, 4, 8, 12), [0, 1, 2, 3], [True, False, False, False])

    def loss(sets: Batch) -> Tensor:
        torch.manual_seed(0)
        return mine.loss(sets)["loss"]

    before = loss(sets)
    one.mean[fit_without(0)] += 1
    one.mean[0] += 1
    assert torch.equal(loss(sets), before)
    sets.key[1] = "a person of another part"
    assert not torch.equal(loss(sets), before)
    sets.key[1] = "key"
    one.mean[fit_without(1)] += 1
    assert not torch.equal(loss(sets), before)


def test_the_factor_model_travels_in_the_checkpoint_and_changes_samples() -> None:
    first = method(fitted())
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    other = method()
    other.on_load_checkpoint(checkpoint)
    assert torch.equal(other.sample(Condition(), [0]), first.sample(Condition(), [0]))
    other.denoiser.factor_model = fitted(-1)
    assert not torch.allclose(other.sample(Condition(), [0]), first.sample(Condition(), [0]))


def test_without_a_factor_model_nothing_is_predicted() -> None:
    with pytest.raises(InputError, match="no factor model was fitted"):
        method().loss(batch(torch.rand(2, 1, 4, 8, 12), [0, 1, 2, 3], [True, False, False, False]))
    with pytest.raises(InputError, match="no factor model was fitted"):
        method().sample(Condition(), [0])
    assert method().prior_samples([0]) is None


def test_a_network_that_does_not_read_the_prior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network: SliceUNet .*FactorPriorSliceUNet"):
        FactorPriorCDPM(SliceUNet((8, 16), (True, True), (False, True), head_channels=8), num_factors=3)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), ZeroTerminalSNR(Cosine())])
def test_pure_noise_of_which_the_prior_knows_no_data_is_refused(schedule: Schedule) -> None:
    """This is said before what is wrong with the sampler or "eps": with others it would be refused all the same."""
    parametrisation: ParametrisationName
    for parametrisation in ("v", "eps"):
        with pytest.raises(ValueError, match=r"schedule: .* ends in pure noise .*; give Cosine"):
            FactorPriorCDPM(untrained(), schedule=schedule, parametrisation=parametrisation)


def test_a_negative_number_of_factors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_factors is -1; give 0 or more"):
        FactorPriorCDPM(untrained(), num_factors=-1)


def test_only_the_last_step_clips() -> None:
    mine = method(FactorModel.fit(3 * torch.randn(8, 1, 10, 8, 12), 2))
    mine.sampler = Largest(2)
    assert mine.sample(Condition(), range(2)).abs().amax() <= 1
    assert mine.sampler.estimate > 1


def test_prior_samples_are_those_of_the_factor_model() -> None:
    mine = method(fitted())
    samples = mine.prior_samples([0, 7])
    assert samples is not None
    assert samples.shape == (2, 1, *SIZE)
    assert samples.abs().max() <= 1
    assert torch.equal(samples[1:], mine.prior_samples([7]))


def test_an_untrained_copy_samples_the_prior() -> None:
    # The mean and covariance of a Gaussian survive any factorisation into stages, if each stage is exact.
    torch.manual_seed(0)
    size = (4, 4, 6)
    smooth = torch.linspace(0, 3, 96).view(size).cos()
    volumes = 0.1 * torch.randn(40, 1, 1, 1) * smooth + 0.02 * torch.randn(40, *size)
    mine = FactorPriorCDPM(
        untrained(), sampler=DPMSolverPP2M(25, "log_snr"), scheme=Autoregressive(2, 4), num_factors=1
    ).eval()
    mine.spec = DataSpec(channels=1, size=size, spacing_mm=(1.0, 1.0, 1.0), slice_axis="axial")
    mine.denoiser.factor_model = FactorModel.fit(volumes[:, None].movedim(4, 2), 1)
    samples = mine.sample(Condition(), range(400)).squeeze(1)
    direction = (smooth / smooth.norm()).flatten()
    spread = ((samples - samples.mean(0)).flatten(1) @ direction).std()
    of_people = ((volumes - volumes.mean(0)).flatten(1) @ direction).std()
    assert spread == pytest.approx(of_people.item(), rel=0.15)
    assert torch.allclose(samples.mean(0), volumes.mean(0), atol=0.05)
