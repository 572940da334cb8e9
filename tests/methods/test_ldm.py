"""LDM: its loss in closed form, samples of an exact denoiser, both first stages, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import first_stage
from torch import Tensor, nn

import lit_medgen
from lit_medgen.batch import Batch, Condition
from lit_medgen.diffusion import DPMSolverPP2M
from lit_medgen.errors import InputError
from lit_medgen.methods import LDM, VQGAN
from lit_medgen.networks import UNet


@pytest.fixture(scope="module")
def vqgan(phantoms: Path) -> VQGAN:
    model = lit_medgen.load(first_stage(phantoms))
    assert isinstance(model, VQGAN)
    return model


def network(**arguments: Any) -> UNet:
    """For the tiny first stages, whose latents are 4 8 8; its last layer is no longer zero."""
    torch.manual_seed(0)
    found = UNet(**{"in_channels": 4, "out_channels": 4, "channels": (8,), "attention": (False,)} | arguments)
    nn.init.normal_(found.conv_out.weight, std=0.1)
    return found


def built(part: Any, net: nn.Module | None = None, **arguments: Any) -> LDM:
    """An LDM on a first stage, without a trainer."""
    model = LDM(net or network(head_channels=8, num_res_blocks=1), "", sampler=DPMSolverPP2M(4), **arguments)
    model.spec = part.spec
    model.take_parts(first_stage=part)
    return model.eval()


def images(num: int = 6) -> Batch:
    pixels = torch.rand(num, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(image=pixels, key=["key"] * num, affine=torch.eye(4).expand(num, 4, 4))


class Exact(nn.Module):
    """The v of latents that are all the same."""

    def __init__(self, model: LDM, z: Tensor) -> None:
        super().__init__()
        self.schedule, self.z = model.denoiser.schedule, z

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha_t, sigma_t = (value.view(-1, 1, 1, 1) for value in self.schedule.alpha_sigma(t))
        return (alpha_t * z_t - self.z) / sigma_t


def test_an_exact_denoiser_has_no_loss_and_samples_the_image(vqgan: VQGAN) -> None:
    """Encoding, normalising, denoising and decoding are inverses where they should be."""
    model, batch = built(vqgan), images(1)
    with torch.no_grad():
        model.denoiser.network = Exact(model, model.latents(batch))
        assert model.loss(batch)["loss"].item() == pytest.approx(0, abs=1e-6)
        expected = vqgan.reconstruct(batch.image)
        for i, image in enumerate([model.sample(Condition(), [3])[0], model.trajectory(Condition(), 3)[0]]):
            torch.testing.assert_close(image, expected[0], atol=1e-4, rtol=0, msg=str(i))


def test_a_sample_depends_on_its_seed_alone(vqgan: VQGAN) -> None:
    model = built(vqgan)
    three = model.sample(Condition(), [4, 5, 6])
    for i, seed in enumerate((4, 5, 6)):
        torch.testing.assert_close(three[i : i + 1], model.sample(Condition(), [seed]), atol=1e-4, rtol=0)
    assert not torch.allclose(three[0], three[1], atol=1e-2)


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
        built(vqgan, network(head_channels=8, num_res_blocks=1, **arguments))
