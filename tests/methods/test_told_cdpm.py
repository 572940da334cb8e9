"""cDPM told age and sex: what training leaves out, what guidance does, what is heard."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_run import TinyRun, one_line
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import DPMSolverPP2M
from lit_medgen.errors import InputError
from lit_medgen.methods import CDPM
from lit_medgen.methods.cdpm.schemes import Autoregressive
from lit_medgen.networks import Covariates, SliceUNet
from lit_medgen.training.conditional import Conditioning

SIZE = (4, 4, 6)
AGE_AND_SEX = Covariates(("age",), {"sex": 2})
SPEC = DataSpec(
    1, SIZE, (1.0, 1.0, 1.0), slice_axis="axial", attributes={"age": (50.0, 90.0), "sex": (0.0, 1.0)}, codes=("sex",)
)


def slice_unet(covariates: Covariates | None) -> SliceUNet:
    torch.manual_seed(0)
    return SliceUNet((8, 16), (True, True), (False, True), 1, head_channels=8, covariates=covariates)


def told(conditioning: Conditioning | None = None) -> CDPM:
    """A small cDPM whose zero-initialised layers say something."""
    network = slice_unet(AGE_AND_SEX)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    method = CDPM(network, sampler=DPMSolverPP2M(2), scheme=Autoregressive(3, 3), conditioning=conditioning).eval()
    method.spec = SPEC
    return method


def asked(*ages: float) -> Condition:
    return Condition({"age": torch.tensor(ages), "sex": torch.ones(len(ages))})


def with_given(condition: Condition, given: list[list[int]]) -> Condition:
    """The condition with some slices of volumes of zeros given."""
    observed = torch.zeros(len(given), SIZE[2], dtype=torch.bool)
    for row, slices in enumerate(given):
        observed[row, slices] = True
    return replace(condition, image=torch.zeros(len(given), 1, *SIZE), observed=observed)


def sets(num: int) -> Batch:
    """Sets of three slices, of which the first is given."""
    condition = replace(
        asked(*[70.0] * num),
        slice_index=torch.tensor([0, 2, 3]).expand(num, -1),
        observed=torch.tensor([True, False, False]).expand(num, -1),
    )
    torch.manual_seed(1)
    return Batch(torch.rand(num, 1, 3, 4, 4), ["key"] * num, torch.eye(4).expand(num, 4, 4), condition)


class Recorder(nn.Module):
    """A slice network that keeps the conditions which it is given."""

    covariates = AGE_AND_SEX

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Condition] = []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.found.append(condition)
        return torch.zeros_like(x)


def test_every_subset_is_trained_on_and_given_slices_are_never_left_out() -> None:
    network, num = Recorder(), 20_000
    method = CDPM(network, conditioning=Conditioning(0.2, 0.3)).train()
    method.spec = SPEC
    torch.manual_seed(0)
    method.loss(sets(num))
    (condition,) = network.found
    known = torch.stack([condition.attributes[name].isfinite() for name in ("age", "sex")])
    for chosen in product((False, True), repeat=2):
        share = (known == torch.tensor(chosen)[:, None]).all(0).float().mean().item()
        expected = 0.8 * 0.7 ** sum(chosen) * 0.3 ** (2 - sum(chosen)) + (0.2 if not any(chosen) else 0)
        assert share == pytest.approx(expected, abs=0.012), chosen
    assert condition.observed is not None
    assert torch.equal(condition.observed, torch.tensor([True, False, False]).expand(num, -1))
    assert condition.attributes["age"].nanmean() == 0.5  # 70 of 50 to 90


def test_asked_for_nothing_is_the_null_condition() -> None:
    method = told()
    nothing = method.sample(Condition(), [0])
    assert torch.equal(nothing, method.sample(asked(torch.nan).drop(torch.tensor([True])), [0]))
    young, old = (method.sample(asked(age), [0]) for age in (50.0, 90.0))
    assert (young - old).abs().max() > 1e-3
    assert (young - nothing).abs().max() > 1e-3


@pytest.mark.parametrize("given", [[], [1, 4]])
def test_guidance_of_one_is_the_conditional_model_and_of_none_the_null(given: list[int]) -> None:
    """Bit for bit; given slices are no covariates: the model without a condition is told them too."""
    one, nothing = (with_given(each, [given]) if given else each for each in (asked(90.0), Condition()))
    conditional = told().sample(one, [0])
    nowhere = Conditioning(guidance_scale=3.0, guidance_interval=(0.0, 1e-9))
    assert torch.equal(told(nowhere).sample(one, [0]), conditional)
    assert torch.equal(told(Conditioning(guidance_scale=0.0)).sample(one, [0]), told().sample(nothing, [0]))
    assert not torch.equal(told(Conditioning(guidance_scale=3.0)).sample(one, [0]), conditional)


def test_a_scale_for_some_images_is_put_back() -> None:
    """Within, images are those of a model that was made with it; nothing else can be scaled."""
    one, method, strong = asked(90.0), told(), told(Conditioning(guidance_scale=3.0))
    before = method.sample(one, [0])
    assert method.guidance_scales == {"guidance_scale": 1.0}
    with method.guided_by({"guidance_scale": 3.0}):
        assert torch.equal(method.sample(one, [0]), strong.sample(one, [0]))
    assert torch.equal(method.sample(one, [0]), before)
    with (
        pytest.raises(InputError, match="guidance_scale, not 'classifier_scale'"),
        method.guided_by({"classifier_scale": 3.0}),
    ):
        pass


def test_volumes_with_different_given_slices_have_the_covariates_of_their_own() -> None:
    method = told()
    together = method.sample(with_given(asked(50.0, 90.0, 70.0), [[1], [4], [1]]), [0, 1, 2])
    for row, (age, given) in enumerate([(50.0, 1), (90.0, 4), (70.0, 1)]):
        alone = method.sample(with_given(asked(age), [[given]]), [row])
        assert torch.allclose(together[row : row + 1], alone, atol=2e-4)


def test_a_new_network_is_the_one_that_is_told_nothing() -> None:
    """At first covariates change nothing, and without them there is nothing new to initialise."""
    told, other = slice_unet(AGE_AND_SEX), slice_unet(None)
    assert not other.load_state_dict(told.state_dict(), strict=False).missing_keys
    assert all("encoder" not in name for name in other.state_dict())
    for network in (told, other):
        nn.init.ones_(network.conv_out.weight)
    batch, t = sets(2), torch.tensor([0.3, 0.6])
    assert torch.equal(told(batch.image, t, batch.condition), other(batch.image, t, batch.condition))


def test_the_condition_alarm_measures_target_slices_and_the_first_stage_of_volumes() -> None:
    method = told()
    assert method.swapped_groups == {"age": ("age",), "sex": ("sex",)}
    batch, condition = method.measured(sets(2))
    torch.manual_seed(0)
    predicted, error = method.prediction(batch, condition)
    assert predicted[:, :, 0].count_nonzero() == 0
    assert error.shape == (2,)
    torch.manual_seed(0)
    other, _ = method.prediction(batch, replace(condition, attributes={"age": torch.zeros(2)}))
    assert (predicted - other).abs().max() > 1e-3
    volumes = Batch(torch.rand(2, 1, *SIZE), ["key"] * 2, torch.eye(4).expand(2, 4, 4), asked(60.0, 80.0))
    batch, condition = method.measured(volumes)
    assert torch.equal(batch.image, volumes.image.movedim(4, 2)[:, :, :3])
    assert method.prediction(batch, condition)[1].shape == (2,)


def test_the_command_line_asks_for_age_and_sex_by_name(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/cdpm.yaml", "configs/with/age_and_sex.yaml"))
    assert run.fit("--trainer.max_steps=1", "--trainer.val_check_interval=1") == 0
    made = {}
    for name, asked in (("aged", '{"age_years": 70, "sex": "F"}'), ("nothing", "{}")):
        words = "--num=1", f"--attributes={asked}", f"--out={tmp_path / name}"
        assert run.on_checkpoint("sample", *words) == 0
        with (tmp_path / name / "manifest.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        made[name] = tuple(json.loads(row[column] or "{}") for column in ("condition", "categories"))
    assert made == {"aged": ({"age_years": 70, "sex": 0}, {"sex": "F"}), "nothing": ({}, {})}
    capsys.readouterr()
    assert run.on_checkpoint("sample", '--attributes={"sex": "W"}', f"--out={tmp_path / 'other'}") == 2
    assert "sex is 'W'; give F, M or the number of one" in one_line(capsys)
