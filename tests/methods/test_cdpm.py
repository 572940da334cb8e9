"""cDPM: what the loss sees, what sampling keeps, that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_run import TinyRun
from torch import Tensor, nn

from lit_medgen.__main__ import main
from lit_medgen.axes import AXES
from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import DDIM, DPMSolverPP2M
from lit_medgen.diffusion.reconstruction import LOG_SNRS
from lit_medgen.diffusion.samplers import NoiseLevel, NoiseLike
from lit_medgen.errors import InputError
from lit_medgen.methods import CDPM
from lit_medgen.methods.cdpm.schemes import Autoregressive, Hierarchy, LongRange, Scheme
from lit_medgen.networks import SliceUNet

SIZE = (8, 12, 10)


def spec(axis: str = "axial") -> DataSpec:
    return DataSpec(channels=1, size=SIZE, spacing_mm=(1.0, 1.0, 1.0), slice_axis=axis)


def responsive(network: SliceUNet) -> SliceUNet:
    """The network, with random weights in its zero-initialised layers."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)  # more would amplify rounding
    return network


def model(scheme: Scheme | None = None, axis: str = "axial") -> CDPM:
    """A small cDPM whose zero-initialised layers say something."""
    torch.manual_seed(0)
    network = responsive(SliceUNet((8, 16), (True, True), (False, True), num_res_blocks=1, head_channels=8))
    method = CDPM(network, sampler=DPMSolverPP2M(3), scheme=scheme or Autoregressive(4, 4)).eval()
    method.spec = spec(axis)
    return method


def batch(image: Tensor, index: list[int], observed: list[bool]) -> Batch:
    """Sets of slices, the same for every volume; image: b 1 n y x."""
    b = len(image)
    return Batch(
        image=image,
        key=["key"] * b,
        affine=torch.eye(4).expand(b, 4, 4),
        condition=Condition(
            slice_index=torch.tensor(index).expand(b, -1), observed=torch.tensor(observed).expand(b, -1)
        ),
    )


def test_loss_is_over_target_slices_alone() -> None:
    # A network that predicts zero leaves |eps|^2, whose mean over target voxels is 1; observed and padded places,
    # blown up here, must not enter.
    method = model()
    for parameter in method.denoiser.network.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    image = torch.zeros(64, 1, 4, 8, 12)
    image[:, :, [0, 3]] = 1e4
    torch.manual_seed(0)
    loss = method.loss(batch(image, [3, 5, 6, -1], [True, False, False, False]))["loss"].item()
    assert loss == pytest.approx(1, abs=0.05)


def test_loss_needs_slices() -> None:
    whole = Batch(image=torch.zeros(1, 1, *SIZE), key=["key"], affine=torch.eye(4)[None])
    with pytest.raises(InputError, match=r"data\.init_args\.view"):
        model().loss(whole)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(
    "scheme", [Autoregressive(4, 4), LongRange(4, 4), Hierarchy(4, 4)], ids=lambda s: type(s).__name__
)
def test_sample_has_the_size_of_the_data(axis: str, scheme: Scheme) -> None:
    samples = model(scheme, axis).sample(Condition(), [0, 1])
    assert samples.shape == (2, 1, *SIZE)
    assert samples.abs().max() <= 1
    assert not torch.equal(samples[0], samples[1])


def test_an_image_depends_on_its_seed_alone() -> None:
    method = model()
    together = method.sample(Condition(), [3, 1, 2])
    alone = torch.cat([method.sample(Condition(), [seed]) for seed in (3, 1, 2)])
    assert torch.allclose(together, alone, atol=2e-4)  # 1e-4 of the range of 2
    assert torch.equal(together, method.sample(Condition(), [3, 1, 2]))


def test_given_slices_are_kept_and_heard() -> None:
    method = model()
    image = torch.rand(1, 1, *SIZE) * 2 - 1
    observed = torch.zeros(1, 10, dtype=torch.bool)
    observed[:, [2, 7]] = True
    made = method.sample(Condition(image=image, observed=observed), [0])
    assert torch.equal(made[..., [2, 7]], image[..., [2, 7]])
    other = image.clone()
    other[..., 7] *= -1
    assert not torch.allclose(method.sample(Condition(image=other, observed=observed), [0])[..., 8], made[..., 8])


def test_the_command_line_completes_given_slices(trained: TinyRun, tmp_path: Path) -> None:
    assert trained.on_checkpoint("sample", "--num=2", f"--out={tmp_path / 'source'}") == 0
    words = f"--sources={tmp_path / 'source'}", "--given=[3,9]", f"--out={tmp_path / 'completed'}"
    assert trained.on_checkpoint("sample", *words) == 0
    completed = sorted((tmp_path / "completed").glob("completion_*.nii.gz"))
    sources = sorted((tmp_path / "source").glob("*.nii.gz"))
    assert len(completed) == len(sources) == 2
    for one, source in zip(completed, sources, strict=True):
        voxels, given = (nib.load(path).get_fdata() for path in (one, source))
        assert np.abs(voxels[..., [3, 9]] - given[..., [3, 9]]).max() < 1e-3
        assert np.abs(voxels - given).max() > 0.1


def test_completions_of_test_people_are_compared_with_them(trained: TinyRun, tmp_path: Path) -> None:
    made, report = tmp_path / "made", tmp_path / "report"
    assert trained.on_checkpoint("sample", "--like=test", "--given=[3,9]", "--num=3", f"--out={made}") == 0
    assert main(["evaluate", f"--samples={made}", f"--out={report}", "--features=none"]) == 0
    assert json.loads((report / "report.json").read_text())["pairs"]["psnr"]["num_pairs"] == 3


def test_volumes_may_have_different_given_slices() -> None:
    method, image = model(), torch.rand(4, 1, *SIZE) * 2 - 1
    observed = torch.zeros(4, 10, dtype=torch.bool)
    observed[[0, 2], 5] = observed[1, [0, 9]] = True
    together = method.sample(Condition(image=image, observed=observed), [3, 1, 2, 0])
    for row, seed in enumerate((3, 1, 2, 0)):
        condition = Condition(image=image[[row]], observed=observed[[row]])
        assert torch.allclose(method.sample(condition, [seed])[0], together[row], atol=2e-4)
        assert torch.equal(together[row][..., observed[row]], image[row][..., observed[row]])
    assert torch.allclose(method.sample(Condition(), [0])[0], together[3], atol=2e-4)


@pytest.mark.parametrize(("size", "num"), [((8, 12, 9), 9), (SIZE, 9)])
def test_given_slices_of_another_size_are_refused(size: tuple[int, ...], num: int) -> None:
    given = Condition(image=torch.zeros(1, 1, *size), observed=torch.ones(1, num, dtype=torch.bool))
    with pytest.raises(InputError, match=rf"has the shape .*{num}.*this model expects .*10"):
        model().sample(given, [0])


def test_seams_are_where_stages_meet() -> None:
    assert model(Autoregressive(4, 4)).seams() == (2, [3, 7])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"slice_axis": ""}, "view is not set"), ({"size": (9, 12, 10)}, "9 x 12")],
)
def test_data_that_does_not_fit_is_refused(wrong: dict[str, object], words: str) -> None:
    facts = spec().plain() | wrong
    with pytest.raises(InputError, match=words):
        model().check(DataSpec.from_plain(facts))


def test_overfits_one_batch() -> None:
    method = model().train()
    ramp = torch.linspace(-1, 1, 12).expand(2, 1, 4, 8, 12) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    one = batch(ramp, [0, 1, 2, 3], [True, False, False, False])
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for step in range(150):
        torch.manual_seed(step % 4)
        loss = method.loss(one)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.25 * sum(losses[:8])


class Largest(DDIM):
    """Keeps the largest value of any estimate."""

    estimate = 0.0

    def step(self, x: Tensor, x_hat: Tensor, t: NoiseLevel, s: NoiseLevel, noise: NoiseLike) -> Tensor:
        self.estimate = max(self.estimate, x_hat.abs().max().item())
        return super().step(x, x_hat, t, s, noise)


def test_every_step_clips() -> None:
    method = model()
    method.sampler = Largest(2)
    method.sample(Condition(), range(2))
    assert method.sampler.estimate == 1


@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_surprise_is_of_the_first_stage_and_of_each_image_and_its_seed_alone(axis: str) -> None:
    method = model(Autoregressive(4, 4), axis)
    where = AXES[axis] + 2
    images = torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = method.surprise(images, [5, 6, 7])
    assert len(together) == len(LOG_SNRS)
    for name, alone in method.surprise(images[1:2], [6]).items():
        torch.testing.assert_close(alone, together[name][1:2])
    first = method.scheme.stages(SIZE[AXES[axis]])[0].target
    others = torch.tensor([i for i in range(SIZE[AXES[axis]]) if i not in first])
    for slices, matter in ((others, False), (torch.tensor(first), True)):
        changed = method.surprise(images.index_fill(where, slices, 0.0), [5, 6, 7])
        assert all(torch.equal(changed[name], together[name]) != matter for name in together)
    assert method.sampler.num_steps == 3


class Peeking(nn.Module):
    """Keeps the image of the condition, and returns it."""

    image: Tensor

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.image is not None
        self.image = condition.image
        return self.image


def test_no_network_can_read_what_it_is_to_predict() -> None:
    network = Peeking()
    method = CDPM(network, sampler=DPMSolverPP2M(2), scheme=Autoregressive(4, 4))
    method.spec = spec()
    image = torch.rand(2, 1, 4, 8, 12) + 1
    method.loss(batch(image, [0, 1, 2, 3], [True, False, True, False]))
    assert torch.equal(network.image[:, :, [0, 2]], image[:, :, [0, 2]])
    assert not network.image[:, :, [1, 3]].any()
    known = torch.rand(1, 1, *SIZE) + 1
    method.sample(Condition(image=known, observed=torch.arange(10)[None] == 9), [0])  # the last stage: 8, from 2..7, 9
    assert not network.image[:, :, -1].any()
