"""Methods whose network is told covariates: what is dropped how often, scales, values that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.networks import Covariates, UNet
from lit_medgen.training.conditional import Conditional, Conditioning

SPEC = DataSpec(
    1, (4, 4), (1.0, 1.0), attributes={"age": (50.0, 90.0), "site": (3.0, 3.0), "sex": (0.0, 1.0), "mass": (0.0, 1.0),
    "nodule": (0.0, 0.0)}, codes=("sex", "mass"),
)  # fmt: skip
EVERY = Covariates(("age", "site"), {"sex": 2}, {"findings": ("mass", "nodule")}, text_channels=4, text_tokens=2)


class Told(Conditional):
    """Predicts an image from its noisy version; one that is deaf does not hear its condition."""

    def __init__(
        self, covariates: Covariates = EVERY, conditioning: Conditioning | None = None, deaf: bool = False
    ) -> None:
        super().__init__(covariates, conditioning)
        torch.manual_seed(0)
        self.network = UNet(
            2, channels=(8,), attention=(False,), num_res_blocks=1, head_channels=8, covariates=covariates
        )
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.deaf, self.spec = deaf, SPEC

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        noisy = batch.image + torch.randn_like(batch.image)
        found = self.network(noisy, self.times(len(noisy), 0.0), Condition() if self.deaf else condition)
        return found, (found - batch.image).square().flatten(1).mean(1)

    def loss(self, batch: Batch) -> Tensor:
        return self.prediction(batch, self.training_condition(batch.condition, len(batch.image)))[1].mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        raise NotImplementedError


def told(num: int, **more: Any) -> Condition:
    """All covariates, known, of so many images."""
    values = {"age": 70.0, "site": 3.0, "sex": 1.0, "mass": 0.0, "nodule": 0.0} | more
    return Condition({name: torch.full((num,), value) for name, value in values.items()}, text=torch.zeros(num, 2, 4))


def test_covariates_are_dropped_one_by_one_and_together() -> None:
    """Every subset is trained on at its stated rate, a set of labels as one; in evaluation nothing is dropped."""
    model, num = Told(conditioning=Conditioning(0.2, 0.3)), 20_000
    torch.manual_seed(0)
    condition = model.train().training_condition(told(num), num)
    assert condition.text is not None
    known = {name: value.isfinite() for name, value in condition.attributes.items()}
    assert torch.equal(known["mass"], known["nodule"])
    each = torch.stack(
        [known[name] for name in ("age", "site", "sex", "mass")] + [condition.text.isfinite().all((1, 2))]
    )
    for chosen in product((False, True), repeat=5):
        share = (each == torch.tensor(chosen)[:, None]).all(0).float().mean().item()
        expected = 0.8 * 0.7 ** sum(chosen) * 0.3 ** (5 - sum(chosen)) + (0.2 if not any(chosen) else 0)
        assert share == pytest.approx(expected, abs=0.012), chosen
    evaluated = model.eval().training_condition(told(num), num)
    assert all(value.isfinite().all() for value in evaluated.attributes.values())


def test_one_covariate_is_left_out_as_often_as_stated() -> None:
    model = Told(Covariates(("age",)), Conditioning(0.2, 0.9))
    torch.manual_seed(0)
    found = model.train().training_condition(told(20_000), 20_000).attributes
    assert list(found) == ["age"]  # the others are not the network's
    assert found["age"].isnan().float().mean().item() == pytest.approx(0.2, abs=0.015)


def test_numbers_are_scaled_by_the_training_range_and_go_beyond_it() -> None:
    condition = Condition({"age": torch.tensor([50.0, 90.0, 110.0, torch.nan]), "sex": torch.ones(4)})
    found = Told().scaled(condition).attributes
    torch.testing.assert_close(found["age"], torch.tensor([0.0, 1.0, 1.5, torch.nan]), equal_nan=True)
    assert torch.equal(found["sex"], torch.ones(4))
    assert torch.equal(Told().scaled(Condition({"site": torch.tensor([3.0])})).attributes["site"], torch.zeros(1))


def test_parts_are_those_of_the_network() -> None:
    assert Told().optional == ("attributes", "text")
    assert Told().attributes == EVERY.names
    assert Told(Covariates(text_channels=4, text_tokens=2)).optional == ("text",)
    assert Told(Covariates()).optional == ()


@pytest.mark.parametrize(
    ("covariates", "match"),
    [
        (Covariates(("weight",)), "no 'weight' in the data"),
        (Covariates(categories={"age": 4}), "age has 4 values, so 0 to 3, but in the data it goes from 50 to 90"),
        (Covariates(labels={"findings": ("mass", "age")}), "age should be 0 or 1"),
    ],
)
def test_data_of_other_values_is_refused(covariates: Covariates, match: str) -> None:
    Told().check(SPEC)
    with pytest.raises(InputError, match=match):
        Told(covariates).check(SPEC)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"drop_each_probability": -0.1}, r"conditioning\.drop_each_probability is -0\.1"),
        ({"drop_probability": 1.0}, r"conditioning\.drop_probability is 1\.0"),
        ({"guidance_interval": (0.5, 0.5)}, r"conditioning\.guidance_interval is \[0\.5, 0\.5\]"),
        ({"guidance_interval": (-0.1, 0.5)}, r"conditioning\.guidance_interval"),
        ({"guidance_rescale": 1.1}, r"conditioning\.guidance_rescale is 1\.1"),
    ],
)
def test_impossible_values_are_refused(arguments: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Conditioning(**arguments)


def test_guidance_without_covariates_is_refused() -> None:
    with pytest.raises(ValueError, match=r"guidance_scale is 2\.0, but the network has no covariates"):
        Told(Covariates(), Conditioning(guidance_scale=2.0))
