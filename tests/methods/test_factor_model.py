"""The factor model: the closed form against conditioning done by brute force, what it is fitted to, what it samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import PADDING
from lit_medgen.methods.cdpm.factor_model import MIN_VARIANCE, NUM_FOLDS, FactorModel, fit_without, max_factors
from lit_medgen.seeds import SeededNoise

SHAPE = (2, 6, 4, 3)  # c n y x
NUM = torch.Size(SHAPE).numel()


@pytest.fixture
def model() -> FactorModel:
    torch.manual_seed(0)
    volumes = torch.randn(20, *SHAPE).cumsum(2)  # so that slices are alike
    return FactorModel.fit(volumes, 5)


def covariance(model: FactorModel, fit: int = 0) -> Tensor:
    """W W^T, without what the factors leave."""
    loadings = model.loadings[fit].flatten(1).double()
    return loadings.mT @ loadings


def residual(model: FactorModel) -> Tensor:
    """The covariance of what the factors leave: correlated along slices, at each position of the plane alone."""
    deviation = model.residual_variance.flatten().double().sqrt()
    c, n, y, x = (part.flatten() for part in torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    same = (c[:, None] == c) & (y[:, None] == y) & (x[:, None] == x)
    return deviation[:, None] * deviation * same * model.correlation ** (n[:, None] - n).abs()


def flat(slices: list[int]) -> Tensor:
    """Which voxels of a flattened volume the slices hold, in the order c n y x of the set."""
    return torch.arange(NUM).view(SHAPE)[:, slices].flatten()


def expected(
    model: FactorModel, known: Tensor, variance: list[float], slices: list[int], fit: int = 0
) -> dict[str, Tensor]:
    """The parts of a posterior, by the rules of joint Gaussians."""
    voxels = flat(slices)
    noise = torch.tensor(variance).double()[:, None, None].expand(SHAPE[0], *known.shape[1:]).flatten()
    mean, of_factors = model.mean[fit].flatten().double()[voxels], covariance(model, fit)[voxels][:, voxels]
    psi = residual(model)[voxels][:, voxels]
    gain = torch.linalg.solve(of_factors + psi + noise.diag(), known.flatten().double() - mean)
    spread = (psi - psi @ torch.linalg.solve(psi + noise.diag(), psi)).diag()
    parts = {
        "factor_mean": mean + of_factors @ gain,
        "x": mean + (of_factors + psi) @ gain,
        "deviation": spread.clamp(min=0).sqrt(),
        "standardised_residual": psi @ gain / (psi.diag() - spread).sqrt(),
    }
    return {name: part.view(known.shape) for name, part in parts.items()}


@pytest.mark.parametrize("seed", range(5))
def test_posterior_is_that_of_joint_gaussians(model: FactorModel, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    assert model.correlation > 0.3
    known = torch.randn(2, 2, 4, 4, 3, generator=random)
    variance = torch.rand(2, 4, generator=random) * torch.tensor([0.0, 1, 1, 100])
    index = torch.tensor([[5, 0, 3, PADDING], [1, 2, 4, 0]])
    found = model.posterior(known, variance, index, torch.tensor([0, 3]))
    for b, num, fit in ((0, 3, 0), (1, 4, 3)):
        right = expected(model, known[b, :, :num], variance[b, :num].tolist(), index[b, :num].tolist(), fit)
        for name, exact in right.items():
            assert torch.allclose(getattr(found, name)[b, :, :num].double(), exact, atol=1e-4), name


def test_nobody_is_in_the_fit_they_are_trained_with() -> None:
    torch.manual_seed(0)
    volumes = (torch.randn(10, 3) @ torch.randn(3, NUM) + 0.1 * torch.randn(10, NUM)).view(-1, *SHAPE)
    for person in range(len(volumes)):
        changed = volumes.clone()
        changed[person] += torch.randn(SHAPE)
        before, after = FactorModel.fit(volumes, 3), FactorModel.fit(changed, 3)
        assert torch.equal(before.mean[fit_without(person)], after.mean[fit_without(person)])
        axes = [
            torch.nn.functional.normalize(model.loadings[fit_without(person)].flatten(1)) for model in (before, after)
        ]
        assert torch.allclose(axes[0], axes[1], atol=1e-6)
        assert not torch.allclose(before.mean[0], after.mean[0])


def test_what_the_factors_leave_is_judged_on_people_left_out() -> None:
    # More factors than there is anything to find: on their own people they would leave almost nothing.
    torch.manual_seed(0)
    model = FactorModel.fit(0.3 * torch.randn(40, *SHAPE), 25)
    assert model.residual_variance.mean().sqrt() == pytest.approx(0.3, rel=0.1)
    variance = (covariance(model).diag() + model.residual_variance.flatten()).mean()
    assert variance.sqrt().item() == pytest.approx(0.3, rel=0.1)
    assert model.correlation == pytest.approx(0, abs=0.05)


def test_a_voxel_equal_in_all_people_stays_possible_elsewhere() -> None:
    volumes = torch.rand(8, *SHAPE)
    volumes[:, 0, 0, 0, 0] = -1
    model = FactorModel.fit(volumes, 2)
    assert model.residual_variance[0, 0, 0, 0] == MIN_VARIANCE
    known = volumes[:1]
    assert model.posterior(known, torch.zeros(1, 6), torch.arange(6)[None]).x.isfinite().all()


@pytest.mark.parametrize("people", [2, 3, 4, 5, 9])
def test_as_many_factors_as_people_allow(people: int) -> None:
    assert FactorModel.fit(torch.randn(people, *SHAPE), max_factors(people)).loadings.isfinite().all()


def test_the_factors_of_a_known_gaussian_are_found() -> None:
    torch.manual_seed(0)
    loadings = torch.linalg.qr(torch.randn(NUM, 2))[0].mT * torch.tensor([[3.0], [2.0]])
    rough = torch.linspace(0.05, 0.2, NUM)
    left = torch.randn(800, *SHAPE)
    for n in range(1, SHAPE[1]):
        left[:, :, n] = 0.6 * left[:, :, n - 1] + 0.8 * left[:, :, n]
    volumes = 5 + torch.randn(800, 2) @ loadings + rough * left.flatten(1)
    model = FactorModel.fit(volumes.view(-1, *SHAPE), 2)
    assert model.correlation == pytest.approx(0.6, abs=0.03)
    assert torch.allclose(model.mean, torch.tensor(5.0), atol=0.5)
    assert torch.allclose(model.residual_variance.flatten().sqrt(), rough, rtol=0.15)
    for fit in range(NUM_FOLDS + 1):
        assert torch.allclose(covariance(model, fit).float(), loadings.mT @ loadings, atol=0.1)


def test_the_priors_own_samples_have_its_mean_and_covariance(model: FactorModel) -> None:
    drawn = model.sample(SeededNoise(range(20_000))).flatten(1).double()
    wanted = covariance(model) + residual(model)
    torch.testing.assert_close(drawn.T.cov(), wanted, atol=0.06 * float(wanted.diagonal().max()), rtol=0)
    torch.testing.assert_close(drawn.mean(0), model.mean[0].flatten().double(), atol=0.1, rtol=0)
