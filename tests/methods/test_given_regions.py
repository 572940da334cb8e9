"""A given region of an image: every diffusion model keeps it, reads nothing beyond it, and images stand alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ddpm import built as ddpm
from test_ldm import PARTS
from test_ldm import built as ldm
from test_vdm import built as vdm
from test_vdm import stirred
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import Ancestral, RePaint
from lit_medgen.errors import InputError

MODELS: dict[str, Any] = {
    "ddpm": ddpm(parametrisation="v"),
    "ddpm_3d": ddpm(dim=3, parametrisation="v"),
    "ldm": ldm(PARTS["kl"]),
    "ldm_on_codes": ldm(PARTS["vqgan"], sampler=RePaint(Ancestral(4), resamplings=2, jump=2)),
    "vdm": stirred(vdm()),
    "vdm_in_latents": stirred(vdm("conv")),
    "vdm_in_codes_without_axes": stirred(vdm("dense")),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def given(model: Any, num: int = 3) -> Condition:
    """Images, all but one corner of each given, of another size in each."""
    generator = torch.Generator().manual_seed(0)
    size = model.needed_spec().size
    image = torch.rand(num, 1, *size, generator=generator) * 2 - 1
    observed = torch.ones(num, 1, *size, dtype=torch.bool)
    for k in range(num):
        observed[k, 0, : 3 + k, : 4 + k] = False
    return Condition(image=image, observed=observed)


def of_row(condition: Condition, k: int) -> Condition:
    assert condition.image is not None
    assert condition.observed is not None
    return Condition(image=condition.image[k : k + 1], observed=condition.observed[k : k + 1])


def changed(condition: Condition, **parts: Tensor) -> Condition:
    return Condition(**{"image": condition.image, "observed": condition.observed} | parts)


@each_model
def test_what_is_given_comes_back_and_nothing_else_of_the_image_is_read(model: Any) -> None:
    condition, seeds = given(model), [4, 5, 6]
    image, observed = condition.image, condition.observed
    assert image is not None
    assert observed is not None
    found = model.sample(condition, seeds)
    assert torch.equal(torch.where(observed, found, 0), torch.where(observed, image, 0))
    other = changed(condition, image=torch.where(observed, image, -0.3))
    assert torch.equal(model.sample(other, seeds), found)
    everything = changed(condition, observed=torch.ones_like(observed))
    assert torch.equal(model.sample(everything, seeds), image)


@each_model
def test_nothing_given_is_a_plain_sample(model: Any) -> None:
    condition, seeds = given(model), [4, 5, 6]
    assert condition.observed is not None
    nothing = changed(condition, observed=torch.zeros_like(condition.observed))
    found, plain = model.sample(nothing, seeds), model.sample(Condition(), seeds)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)  # bit for bit by an exact denoiser: test_completing


@each_model
def test_a_completion_depends_on_its_own_seed_and_image_alone(model: Any) -> None:
    condition = given(model)
    together = model.sample(condition, [4, 5, 6])
    for k, seed in enumerate((4, 5, 6)):
        alone = model.sample(of_row(condition, k), [seed])
        torch.testing.assert_close(alone[0], together[k], atol=1e-4, rtol=0)
    assert not torch.equal(model.sample(of_row(condition, 0), [9])[0], together[0])


def test_the_network_is_told_nothing_of_the_region() -> None:
    """Nor do losses, whose batches may say which slices they show."""
    for model in MODELS.values():
        assert model.scaled(given(model)).parts == set()
        assert "image" in model.optional


def test_regions_of_another_size_are_refused() -> None:
    condition = given(MODELS["ddpm"])
    assert condition.observed is not None
    with pytest.raises(InputError, match=r"condition.observed has the shape \(8, 12\)"):
        MODELS["ddpm"].sample(changed(condition, observed=condition.observed[:, 0]), [1, 2, 3])
