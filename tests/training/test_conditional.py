"""Methods whose network is told covariates: what is dropped how often, scales, refusals, the condition alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec, Request, Requests
from lit_medgen.errors import InputError
from lit_medgen.networks import Covariates, UNet
from lit_medgen.sampling import checked_attributes, say_extrapolated, without_conditions
from lit_medgen.training.condition_effect import NOISE, Swaps, differing, relative_change, scores_of, swapped
from lit_medgen.training.conditional import Conditional, Conditioning
from lit_medgen.training.method import Method

SPEC = DataSpec(
    1, (4, 4), (1.0, 1.0), attributes={"age": (50.0, 90.0), "site": (3.0, 3.0), "sex": (0.0, 1.0), "mass": (0.0, 1.0),
    "nodule": (0.0, 0.0), "grade": (0.0, 3.0)}, codes=("sex", "mass"), fractional=("age", "grade"),
    text_size=(2, 4),
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
            nn.init.normal_(parameter, std=0.3)
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
        (Covariates(categories={"age": 4}), "age is 0 to 3, in whole numbers, but in the data it goes from 50 to 90"),
        (Covariates(categories={"grade": 4}), "grade is 0 to 3, .* goes from 0 to 3, not all whole"),
        (Covariates(categories={"site": 3}), "site is 0 to 2"),
        (Covariates(labels={"findings": ("mass", "age")}), "age is 0 to 1"),
        (Covariates(text_channels=8, text_tokens=2), "texts of 2 tokens with 8 channels, .* has 2 with 4"),
        (Covariates(text_channels=4, text_tokens=1), "give text_tokens 2 and text_channels 4"),
    ],
)
def test_data_of_other_values_is_refused(covariates: Covariates, match: str) -> None:
    Told().check(SPEC)
    with pytest.raises(InputError, match=match):
        Told(covariates).check(SPEC)


def test_the_empty_text_of_the_data_is_the_networks_null(monkeypatch: pytest.MonkeyPatch) -> None:
    model, null = Told(), torch.ones(1, 4)
    monkeypatch.setattr(Method, "setup", lambda *_: None)
    model._trainer = type("Trainer", (), {"datamodule": type("Data", (), {"text_null": lambda _: null})()})
    model.setup("fit")
    assert model.network.encoder is not None
    torch.testing.assert_close(
        model.network.encoder.null_text, torch.tensor([[1.0] * 4, [torch.nan] * 4]), equal_nan=True
    )


@pytest.mark.parametrize(
    ("attributes", "match"),
    [({"sex": 2}, "sex is 2; it is a code"), ({"grade": 1.5}, "whole number from 0 to 3"), ({"nodule": 1}, "0 to 0")],
)
def test_requests_of_other_values_are_refused(attributes: Any, match: str) -> None:
    """A label that nobody had in training has no meaning to the network."""
    model = Told(Covariates(("age",), {"sex": 2, "grade": 4}, {"findings": ("mass", "nodule")}))
    assert checked_attributes(model, {"grade": 3, "mass": 1, "sex": None}, SPEC)["grade"] == 3
    with pytest.raises(InputError, match=match):
        checked_attributes(model, attributes, SPEC)


def test_what_lies_outside_the_training_range_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"age": 70.0}, {"age": 92.0, "sex": 1.0}, {}, {"age": 49.0}]
    requests = replace(without_conditions(range(4)), made_from=rows)
    say_extrapolated(Told(), requests, SPEC)
    line = "asked for outside the training range, where the model extrapolates: age 49 to 92 in 2 of 4 images "
    assert capsys.readouterr().out == line + "(training people 50 to 90)\n"
    say_extrapolated(Told(), replace(requests, made_from=rows[:1] * 4), SPEC)
    assert capsys.readouterr().out == ""


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


# The condition alarm.


class People:
    """As much of a data set as scores need: images that show age and sex as their brightness, a person for each."""

    def __init__(self, num: int, known: bool = True, equal: bool = False) -> None:
        random = torch.Generator().manual_seed(0)
        ages = torch.rand(num, generator=random) * 40 + 50
        ages = ages.fill_(70) if equal else ages if known else ages.fill_(torch.nan)
        bright = ((ages - 70) / 20).nan_to_num().view(-1, 1, 1, 1)
        self.images = (bright + 0.1 * torch.randn(num, 1, 4, 4, generator=random)).clamp(-1, 1)
        self.ages = ages

    def people(self, split: str) -> dict[str, str]:
        return {f"key {i}": f"person {i}" for i in range(len(self.ages))}

    def requests(self, split: str, num: int | None = None) -> Requests:
        def read(i: int) -> Request:
            target = self.images[i : i + 1]
            return Request([i], Condition({"age": self.ages[i : i + 1]}), [f"key {i}"], target=target)

        return Requests(range(len(self.ages)), [{}] * len(self.ages), frozenset(), read)


AGE = Covariates(("age",))


def fitted(deaf: bool) -> Told:
    """A method after some steps on people's images."""
    model, data = Told(AGE, Conditioning(0, 0), deaf), People(32)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    batch = Batch(data.images, [""] * 32, torch.eye(4).expand(32, 4, 4), Condition({"age": data.ages}))
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    return model


def test_a_network_that_ignores_its_condition_raises_the_alarm() -> None:
    """And one that hears it does not; a report says so, in numbers and in words."""
    deaf, hears = (fitted(deaf).scores(People(40)) for deaf in (True, False))  # type: ignore[arg-type]
    assert deaf["condition_effect"].value == 0
    assert "hardly hear their conditions" in deaf["condition_effect"].warning
    effect, gain = hears["condition_effect"], hears["condition_gain"]
    assert effect.value is not None
    assert effect.value > 0.05
    assert gain.ci95 is not None
    assert gain.ci95[0] > 0
    assert (effect.num, effect.warning, gain.warning) == (80, "", "")


def test_a_condition_that_moves_but_does_not_help_raises_the_alarm() -> None:
    """An untrained network hears its condition, and knows nothing of what it means."""
    found = Told(AGE).scores(People(40))  # type: ignore[arg-type]
    effect = found["condition_effect"].value
    assert effect is not None
    assert effect > NOISE
    assert not found["condition_effect"].warning
    assert (
        "the 95 % interval of condition_gain is not above 0 (80 images of 40 people)" in found["condition_gain"].warning
    )


class Mapped(Told):
    """Is given a label map, beside an age; predicts it, or nothing, with some error."""

    required, kept = ("label_map",), ("label_map", "source")

    def __init__(self, deaf: bool, covariates: Covariates = AGE) -> None:
        super().__init__(covariates, deaf=deaf)

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        assert condition.label_map is not None
        known = torch.zeros_like(batch.image) if self.deaf else condition.label_map.float()
        found = known + 0.1 * torch.randn_like(batch.image)
        return found, (found - batch.image).square().flatten(1).mean(1)


class Maps(People):
    """People whose images are their label maps, as numbers."""

    def requests(self, split: str, num: int | None = None) -> Requests:
        requests = super().requests(split)

        def read(i: int) -> Request:
            request = requests.read(i)
            assert request.target is not None
            label_map = (100 * request.target).long()
            return replace(request, condition=replace(request.condition, label_map=label_map), target=label_map.float())

        return replace(requests, read=read)


def test_a_label_map_that_is_not_heard_raises_the_alarm() -> None:
    """By name, beside covariates; alone, as their condition. A map that is heard raises none."""
    deaf, hears = (Mapped(deaf).scores(Maps(20)) for deaf in (True, False))  # type: ignore[arg-type]
    assert "hardly hear their conditions" in deaf["condition_effect"].warning
    heard = hears["condition_effect_label_map"]
    assert heard.value == hears["condition_effect"].value  # neither network reads the age
    assert heard.value is not None
    assert heard.value > 0.1
    assert not heard.warning
    assert not hears["condition_gain"].warning
    assert "hardly hear age" in hears["condition_effect_age"].warning
    alone = Mapped(True, Covariates()).scores(Maps(20))  # type: ignore[arg-type]
    assert list(alone) == ["condition_effect", "condition_gain"]
    assert "hardly hear their conditions" in alone["condition_effect"].warning


@pytest.mark.parametrize("data", [People(1), People(20, known=False), People(20, equal=True)])
def test_what_cannot_be_measured_raises_no_alarm(data: People) -> None:
    """One image, absent conditions, equal conditions."""
    found = Told(AGE).scores(data)  # type: ignore[arg-type]
    for score in found.values():
        assert (score.value, score.ci95, score.num, score.warning) == (None, None, 0, "")
        assert "not measured" in score.of


def test_few_people_are_no_reason_for_an_alarm() -> None:
    assert not any(score.warning for score in Told(AGE).scores(People(4)).values())  # type: ignore[arg-type]


def test_each_covariate_has_an_effect_of_its_own() -> None:
    """Of one that the network is deaf to alone, the report warns by name."""
    model = Told(Covariates(("age", "volume")))
    model.spec = replace(SPEC, attributes={"age": (50.0, 90.0), "volume": (0.0, 1.0)})
    found = model.scores(People(20))  # type: ignore[arg-type]
    assert found["condition_effect_age"].value == found["condition_effect"].value
    assert found["condition_effect_volume"].value is None  # nobody's is known
    assert model.training  # as it was


def test_swaps_move_whole_conditions_and_compare_absent_ones() -> None:
    text = torch.zeros(4, 2, 4).index_fill(0, torch.tensor([1, 3]), torch.nan)
    condition = Condition({"age": torch.tensor([1.0, torch.nan, 1.0, 3.0]), "sex": torch.zeros(4)}, text=text)
    other = swapped(condition)
    assert other.text is not None
    torch.testing.assert_close(
        other.attributes["age"], torch.tensor([1.0, 3.0, 1.0, torch.nan]), equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(other.text, text[[2, 3, 0, 1]], equal_nan=True)
    assert differing(condition, other, 4, torch.device("cpu")).tolist() == [False, True, False, True]
    only = swapped(condition, ("sex",))
    assert only.text is condition.text
    assert not differing(condition, only, 4, torch.device("cpu")).any()
    assert not differing(Condition(), Condition(), 4, torch.device("cpu")).any()


def test_change_is_a_share_of_the_size() -> None:
    """Of any scale; zero predictions, as those of a network at first, do not change."""
    p, q = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = (p - q).flatten(1).norm(dim=1) / torch.maximum(p.flatten(1).norm(dim=1), q.flatten(1).norm(dim=1))
    torch.testing.assert_close(relative_change(p, q), expected)
    torch.testing.assert_close(relative_change(1e3 * p, 1e3 * q), expected)
    assert torch.equal(relative_change(0 * p, 0 * q), torch.zeros(5))


def test_the_interval_is_over_people() -> None:
    """Of images that are the same for a person it is that of one image each."""
    random = torch.Generator().manual_seed(0)
    change, gain = torch.rand(2, 20, generator=random)
    known = torch.ones(20, dtype=torch.bool)
    once = scores_of({"": Swaps(change, gain, known)}, [f"{i}" for i in range(20)])
    thrice = Swaps(*(values.repeat(3) for values in (change, gain, known)))
    repeated = scores_of({"": thrice}, [f"{i}" for i in range(20)] * 3)
    for name, score in once.items():
        assert score.value == pytest.approx(repeated[name].value)
        assert score.ci95 == pytest.approx(repeated[name].ci95)
    error = float(gain.std() / 20**0.5)
    assert once["condition_gain"].ci95 == pytest.approx((gain.mean() - 1.96 * error, gain.mean() + 1.96 * error))


def test_validation_logs_the_effect_of_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over images whose conditions differ; the loss is as without the alarm; nothing where none differ."""
    model, data, logged = Told(AGE).eval(), People(6), {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    model._trainer = type("Trainer", (), {"world_size": 1, "global_rank": 0, "num_val_batches": [2]})
    for ages, measured in ((data.ages, True), (torch.full((6,), 70.0), False)):
        logged.clear()
        model.on_validation_epoch_start()
        batch = Batch(data.images, [""] * 6, torch.eye(4).expand(6, 4, 4), Condition({"age": ages}))
        for i in range(2):
            model.validation_step(batch, i)
        loss = logged["val/loss"]
        model.on_validation_epoch_end()
        assert ("val/condition_effect" in logged) == measured
        if measured:
            assert logged["val/condition_effect"] > NOISE
            Method.validation_step(model, batch, 1)
            assert torch.equal(logged["val/loss"], loss)


def test_warnings_name_what_is_not_heard_once() -> None:
    """Where nothing is heard, that is said once; else of each covariate that is not."""
    people, known = [f"{i}" for i in range(20)], torch.ones(20, dtype=torch.bool)
    silent, loud = (Swaps(torch.full((20,), change), torch.rand(20), known) for change in (1e-4, 0.1))
    for together, age, named in ((silent, silent, "their conditions"), (loud, silent, "age"), (loud, loud, None)):
        found = scores_of({"": together, "age": age}, people)
        warnings = [score.warning for score in found.values() if score.warning]
        assert len(warnings) == (named is not None)
        assert named is None or f"hardly hear {named}" in warnings[0]
