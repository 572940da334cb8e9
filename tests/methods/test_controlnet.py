"""Laws of ControlNet: it begins as its base, leaves that alone, and follows its source."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_medgen import cascades
from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.completion_requests import refuse_unfit_completion
from lit_medgen.diffusion import DDIM
from lit_medgen.errors import InputError
from lit_medgen.methods import DDPM, ControlNet
from lit_medgen.networks import Covariates, UNet
from lit_medgen.requests import RequestOptions

AGES = Condition({"age": torch.tensor([50.0, torch.nan])})


def base(dim: int = 2, **arguments: Any) -> DDPM:
    """A DDPM of random weights on images of 16 voxels a side, told ages."""
    torch.manual_seed(0)
    network = UNet(dim, 1, 1, [8, 16], [False, True], 1, 8, covariates=Covariates(numbers=["age"]))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = DDPM(network, sampler=DDIM(4), **arguments)
    model.spec = DataSpec(1, (16,) * dim, (1.0,) * dim, attributes={"age": (40.0, 80.0)})
    return model


def controlled(part: DDPM, **arguments: Any) -> ControlNet:
    model = ControlNet("base.ckpt", **{"channels": [8], **arguments})
    model.take_parts(base=part)
    spec = part.needed_spec()
    model.spec = replace(spec, sources=("flair",), source_size=spec.size)
    return model


def moved(model: ControlNet) -> ControlNet:
    """As after some training: what was zero at first is not."""
    for parameter in model.denoiser.network.control.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(dim: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images, source = (torch.rand(2, 1, *(16,) * dim, generator=generator) * 2 - 1 for _ in range(2))
    return Batch(images, ["a", "b"], torch.eye(4).expand(2, 4, 4), replace(AGES, source=source))


@pytest.mark.parametrize("dim", [2, 3])
def test_it_begins_as_its_base(dim: int) -> None:
    part = base(dim)
    model, given = controlled(part).eval(), batch(dim).condition
    assert torch.equal(model.sample(given, [1, 2]), part.eval().sample(AGES, [1, 2]))


def test_scale_0_is_the_base_and_1_is_not() -> None:
    part, given = base().eval(), batch().condition
    samples = {scale: moved(controlled(part, scale=scale)).eval().sample(given, [1, 2]) for scale in (0.0, 0.5, 1.0)}
    assert torch.equal(samples[0.0], part.sample(AGES, [1, 2]))
    far = [(samples[scale] - samples[0.0]).abs().mean().item() for scale in (0.5, 1.0)]
    assert 1e-3 < far[0] < far[1]


def test_training_moves_the_control_alone() -> None:
    model = controlled(base()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(3):  # zero convolutions let gradients through to what stands before them after a step
        optimizer.zero_grad()
        model.loss(batch())["loss"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("denoiser.network.control.") for name in changed)
    still = {name for name in before if name.startswith("denoiser.network.control.")} - changed
    assert not still, still
    assert not any(name.startswith("denoiser.network.unet") for name in before)  # the base is kept once
    other = replace(batch().condition, source=batch(seed=1).condition.source)
    mine, theirs = (model.eval().sample(given, [1, 2]) for given in (batch().condition, other))
    assert (mine - theirs).abs().max() > 1e-4


def test_an_absent_source_is_a_null_of_its_own() -> None:
    model, given = moved(controlled(base())).eval(), batch().condition
    assert given.source is not None
    absent = given.source.clone()
    absent[1] = torch.nan
    found = model.sample(replace(given, source=absent), [1, 2])
    assert found.isfinite().all()
    both = model.sample(given, [1, 2])
    torch.testing.assert_close(found[0], both[0], rtol=0, atol=1e-5)
    zeros = given.source.clone()
    zeros[1] = 0
    assert (found[1] - model.sample(replace(given, source=zeros), [1, 2])[1]).abs().max() > 1e-4


def test_sources_are_left_out_as_often_as_asked() -> None:
    model = controlled(base(), drop_source=0.25).train()
    source = torch.zeros(4000, 1, 2, 2)
    torch.manual_seed(0)
    dropped = model.training_condition(Condition(source=source), 4000).source
    assert dropped is not None
    assert dropped.isnan().flatten(1).any(1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = model.eval().training_condition(Condition(source=source), 4000).source
    assert kept is not None
    assert not kept.isnan().any()


def test_what_cannot_be_steered_is_refused() -> None:
    maps = DDPM(UNet(2, 3, 1, [8, 16], [False, True], 1, 8), concatenate=True)
    maps.spec = DataSpec(1, (16, 16), (1.0, 1.0), classes=("air", "lung"))
    with pytest.raises(InputError, match="makes images from its label_map by a UNet"):
        controlled(maps)
    with pytest.raises(InputError, match=r"channels has 2 widths, for 1 halvings, but images are 16 x 16"):
        controlled(base(), channels=[8, 8])
    for name, value in (("drop_source", 1.0), ("channels", []), ("channels", [8, 0]), ("scale", math.nan)):
        with pytest.raises(ValueError, match=f"model.init_args.{name} is "):
            ControlNet("base.ckpt", **{name: value})


def test_a_first_model_of_volumes_makes_no_sources_of_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, first, file = controlled(base()), base(3), tmp_path / "base.ckpt"
    file.touch()
    monkeypatch.setattr(cascades, "load", lambda path: first)
    with pytest.raises(InputError, match=r"its images have size \(16, 16, 16\), .* of \(16, 16\)"):
        cascades.cascaded(str(file), RequestOptions(num=1), model, model.needed_spec(), torch.device("cpu"))


def test_it_takes_no_masks() -> None:
    with pytest.raises(InputError, match="--masks: ControlNet takes no masks, as it completes no images"):
        refuse_unfit_completion({"mask": "mask.png"}, controlled(base()), DataSpec(1, (16, 16), (1.0, 1.0)))
    model = controlled(base())
    with pytest.raises(InputError, match="source_channels is 1, but the data has no sources"):
        model.check(base().needed_spec())
    with pytest.raises(InputError, match="sources of 8 x 8 voxels, but images of 16 x 16"):
        model.check(replace(model.needed_spec(), source_size=(8, 8)))
