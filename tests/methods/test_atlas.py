"""The atlas: the closed form against conditioning done by brute force, and what its samples are worth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import PADDING, Condition, DataSpec
from lit_medgen.diffusion import Cosine, DPMSolverPP2M, ParametrisationName
from lit_medgen.methods import CDPM
from lit_medgen.methods.cdpm.factor_model import MIN_VARIANCE, NUM_PARTS, Atlas, AtlasDenoiser, max_modes, without
from lit_medgen.methods.cdpm.schemes import Autoregressive
from lit_medgen.networks import SliceUNet
from lit_medgen.seeds import SeededNoise

SHAPE = (2, 6, 4, 3)  # c n y x
NUM = torch.Size(SHAPE).numel()


class Silent(nn.Module):
    """A network that adds nothing, and keeps what it saw."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.seen, self.x = condition.image, x
        return torch.zeros_like(x)


@pytest.fixture
def atlas() -> Atlas:
    torch.manual_seed(0)
    volumes = torch.randn(20, *SHAPE).cumsum(2)  # so that slices are alike
    return Atlas.of(volumes, 5)


def covariance(atlas: Atlas, which: int = 0) -> Tensor:
    """W W^T, without what the modes leave."""
    modes = atlas.modes[which].flatten(1).double()
    return modes.mT @ modes


def residual(atlas: Atlas) -> Tensor:
    """The covariance of what the modes leave: correlated along slices, at each place of the plane alone."""
    deviation = atlas.residual.flatten().double().sqrt()
    c, n, y, x = (part.flatten() for part in torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    same = (c[:, None] == c) & (y[:, None] == y) & (x[:, None] == x)
    return deviation[:, None] * deviation * same * atlas.correlation ** (n[:, None] - n).abs()


def flat(slices: list[int]) -> Tensor:
    """Which voxels of a flattened volume the slices hold, in the order c n y x of the set."""
    return torch.arange(NUM).view(SHAPE)[:, slices].flatten()


def expected(
    atlas: Atlas, known: Tensor, variance: list[float], slices: list[int], which: int = 0
) -> dict[str, Tensor]:
    """The parts of a posterior, by the rules of joint Gaussians."""
    voxels = flat(slices)
    noise = torch.tensor(variance).double()[:, None, None].expand(SHAPE[0], *known.shape[1:]).flatten()
    mean, modes = atlas.mean[which].flatten().double()[voxels], covariance(atlas, which)[voxels][:, voxels]
    psi = residual(atlas)[voxels][:, voxels]
    gain = torch.linalg.solve(modes + psi + noise.diag(), known.flatten().double() - mean)
    spread = (psi - psi @ torch.linalg.solve(psi + noise.diag(), psi)).diag()
    parts = {
        "bent": mean + modes @ gain,
        "x": mean + (modes + psi) @ gain,
        "deviation": spread.clamp(min=0).sqrt(),
        "standardised_residual": psi @ gain / (psi.diag() - spread).sqrt(),
    }
    return {name: part.view(known.shape) for name, part in parts.items()}


@pytest.mark.parametrize("seed", range(5))
def test_posterior_is_that_of_joint_gaussians(atlas: Atlas, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    assert atlas.correlation > 0.3
    known = torch.randn(2, 2, 4, 4, 3, generator=random)
    variance = torch.rand(2, 4, generator=random) * torch.tensor([0.0, 1, 1, 100])
    index = torch.tensor([[5, 0, 3, PADDING], [1, 2, 4, 0]])
    found = atlas.posterior(known, variance, index, torch.tensor([0, 3]))
    for b, num, which in ((0, 3, 0), (1, 4, 3)):
        right = expected(atlas, known[b, :, :num], variance[b, :num].tolist(), index[b, :num].tolist(), which)
        for name, exact in right.items():
            assert torch.allclose(getattr(found, name)[b, :, :num].double(), exact, atol=1e-4), name


@pytest.mark.parametrize("parametrisation", ["x", "eps", "v"])
def test_a_silent_network_leaves_the_exact_denoiser(atlas: Atlas, parametrisation: ParametrisationName) -> None:
    network = Silent()
    denoiser = AtlasDenoiser(network, Cosine(), parametrisation)
    denoiser.atlas = atlas
    torch.manual_seed(1)
    image, x_t, t = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE), torch.tensor([0.6])
    observed = torch.tensor([[True, False, False, True, False, False]])
    condition = Condition(image=image, observed=observed, slice_index=torch.arange(6)[None])
    alpha_t, sigma_t = (value.item() for value in Cosine().alpha_sigma(t))
    variance = [0.0 if given else (sigma_t / alpha_t) ** 2 for given in observed[0].tolist()]
    known = torch.where(observed[0, None, :, None, None], image[0], x_t[0] / alpha_t)
    right = expected(atlas, known, variance, list(range(6)))
    with torch.autocast("cpu", torch.bfloat16):
        x = denoiser(x_t, t, condition)
    target = ~observed[0]
    assert torch.allclose(x[0, :, target].double(), right["x"][:, target], atol=1e-4)
    assert network.seen is not None
    assert torch.allclose(network.seen[0, :, target].double(), right["bent"][:, target], atol=1e-4)
    assert torch.allclose(network.x[0, :, target].double(), right["standardised_residual"][:, target], atol=1e-4)
    assert torch.equal(network.seen[0, :, observed[0]], image[0, :, observed[0]])


def test_nobody_is_in_the_atlas_they_are_trained_with() -> None:
    torch.manual_seed(0)
    volumes = (torch.randn(10, 3) @ torch.randn(3, NUM) + 0.1 * torch.randn(10, NUM)).view(-1, *SHAPE)
    for person in range(len(volumes)):
        changed = volumes.clone()
        changed[person] += torch.randn(SHAPE)
        before, after = Atlas.of(volumes, 3), Atlas.of(changed, 3)
        assert torch.equal(before.mean[without(person)], after.mean[without(person)])
        axes = [torch.nn.functional.normalize(atlas.modes[without(person)].flatten(1)) for atlas in (before, after)]
        assert torch.allclose(axes[0], axes[1], atol=1e-6)
        assert not torch.allclose(before.mean[0], after.mean[0])


def test_what_the_modes_leave_is_judged_on_people_left_out() -> None:
    # More modes than there is anything to find: on their own people they would leave almost nothing.
    torch.manual_seed(0)
    atlas = Atlas.of(0.3 * torch.randn(40, *SHAPE), 25)
    assert atlas.residual.mean().sqrt() == pytest.approx(0.3, rel=0.1)
    variance = (covariance(atlas).diag() + atlas.residual.flatten()).mean()
    assert variance.sqrt().item() == pytest.approx(0.3, rel=0.1)
    assert atlas.correlation == pytest.approx(0, abs=0.05)


def test_a_voxel_equal_in_all_people_stays_possible_elsewhere() -> None:
    volumes = torch.rand(8, *SHAPE)
    volumes[:, 0, 0, 0, 0] = -1
    atlas = Atlas.of(volumes, 2)
    assert atlas.residual[0, 0, 0, 0] == MIN_VARIANCE
    known = volumes[:1]
    assert atlas.posterior(known, torch.zeros(1, 6), torch.arange(6)[None]).x.isfinite().all()


@pytest.mark.parametrize("people", [2, 3, 4, 5, 9])
def test_as_many_modes_as_people_allow(people: int) -> None:
    assert Atlas.of(torch.randn(people, *SHAPE), max_modes(people)).modes.isfinite().all()


def test_the_modes_of_a_known_gaussian_are_found() -> None:
    torch.manual_seed(0)
    modes = torch.linalg.qr(torch.randn(NUM, 2))[0].mT * torch.tensor([[3.0], [2.0]])
    rough = torch.linspace(0.05, 0.2, NUM)
    left = torch.randn(800, *SHAPE)
    for n in range(1, SHAPE[1]):
        left[:, :, n] = 0.6 * left[:, :, n - 1] + 0.8 * left[:, :, n]
    volumes = 5 + torch.randn(800, 2) @ modes + rough * left.flatten(1)
    atlas = Atlas.of(volumes.view(-1, *SHAPE), 2)
    assert atlas.correlation == pytest.approx(0.6, abs=0.03)
    assert torch.allclose(atlas.mean, torch.tensor(5.0), atol=0.5)
    assert torch.allclose(atlas.residual.flatten().sqrt(), rough, rtol=0.15)
    for which in range(NUM_PARTS + 1):
        assert torch.allclose(covariance(atlas, which).float(), modes.mT @ modes, atol=0.1)


def test_the_priors_own_samples_have_its_mean_and_covariance(atlas: Atlas) -> None:
    drawn = atlas.sample(SeededNoise(range(20_000))).flatten(1).double()
    wanted = covariance(atlas) + residual(atlas)
    torch.testing.assert_close(drawn.T.cov(), wanted, atol=0.06 * float(wanted.diagonal().max()), rtol=0)
    torch.testing.assert_close(drawn.mean(0), atlas.mean[0].flatten().double(), atol=0.1, rtol=0)


def test_a_model_with_an_atlas_shows_its_prior(atlas: Atlas) -> None:
    method = CDPM(SliceUNet((8, 16), (True, True), (False, True), num_res_blocks=1, head_channels=8, atlas=True))
    method.spec = DataSpec(channels=2, size=(3, 4, 6), spacing_mm=(1.0, 1.0, 1.0), slice_axis="axial")
    assert method.prior_samples([0]) is None
    method.denoiser.atlas = Atlas(atlas.mean.mT, atlas.modes.mT, atlas.residual.mT, atlas.correlation)
    both = method.prior_samples([0, 7])
    assert both is not None
    assert both.shape == (2, 2, 3, 4, 6)
    assert both.abs().max() <= 1
    assert torch.equal(both[1:], method.prior_samples([7]))


def test_samples_made_in_stages_vary_as_the_training_volumes_do() -> None:
    # The mean and covariance of a Gaussian survive any factorisation into stages, if each stage is exact.
    torch.manual_seed(0)
    size = (4, 4, 6)
    smooth = torch.linspace(0, 3, 96).view(size).cos()
    volumes = 0.1 * torch.randn(40, 1, 1, 1) * smooth + 0.02 * torch.randn(40, *size)
    network = SliceUNet((8, 16), (True, True), (False, True), num_res_blocks=1, head_channels=8, atlas=True)
    method = CDPM(network, sampler=DPMSolverPP2M(25, "log_snr"), scheme=Autoregressive(2, 4), atlas_modes=1).eval()
    method.spec = DataSpec(channels=1, size=size, spacing_mm=(1.0, 1.0, 1.0), slice_axis="axial")
    method.denoiser.atlas = Atlas.of(volumes[:, None].movedim(4, 2), 1)
    samples = method.sample(Condition(), range(400)).squeeze(1)
    direction = (smooth / smooth.norm()).flatten()
    spread = ((samples - samples.mean(0)).flatten(1) @ direction).std()
    wanted = ((volumes - volumes.mean(0)).flatten(1) @ direction).std()
    assert spread == pytest.approx(wanted.item(), rel=0.15)
    assert torch.allclose(samples.mean(0), volumes.mean(0), atol=0.05)
