"""Crop classifiers: likelihoods in closed form, latents of another scale, what is refused, and skill against noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import RectifiedFlow, ScaledLinearBeta, ZeroTerminalSNR
from lit_medgen.errors import InputError
from lit_medgen.methods import CropClassifier
from lit_medgen.networks import UNet
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.label_likelihoods import BOUNDS
from lit_medgen.training.label_skill import Predicted, Skill
from lit_medgen.training.latent_crops import StoredCrops
from lit_medgen.training.latent_scale import LatentScale
from lit_medgen.training.latents import encoded

BOTH: dict[str, Any] = {"malignant": "binary", "lobulation": "number"}
SIDE, MARGIN = 8, 4
SPEC = DataSpec(
    1,
    (SIDE + 2 * MARGIN,) * 2,
    (0.7, 0.7),
    attributes={"malignant": (0.0, 1.0), "lobulation": (1.0, 5.0)},
    codes=("malignant",),
)


class Pooled(FirstStage):
    """Latents are means of 2 x 2 pixels, doubled and moved; an image of 32 x 32 pixels has 16 x 16."""

    latent_shape = (1, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.spec = DataSpec(1, (32, 32), (0.75, 0.75))

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        return self.weight * nn.functional.avg_pool2d(images, 2) + 0.5

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate((latents - 0.5) / self.weight, scale_factor=2.0)


class Linear(nn.Module):
    """Columns from the mean and the corner of an image, and from the time."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels, self.layer = out_channels, nn.Linear(3, out_channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(torch.stack([x.flatten(1).mean(1), x[:, 0, 0, 0], t], dim=1))


def classifier(outputs: dict[str, Any] = BOTH, judge: bool = False, **arguments: Any) -> CropClassifier:
    """One of a linear network, on a first stage unless it is a judge, without a trainer."""
    torch.manual_seed(0)
    network = Linear(sum({"binary": 1, "number": 2}[kind] for kind in outputs.values()))
    how = arguments if judge else {"first_stage": "", "margin": MARGIN} | arguments
    if not judge:
        how["first_stage"] = "stage.ckpt"
    model = CropClassifier(network, outputs, **how)
    model.spec = SPEC
    if not judge:
        model.take_parts(first_stage=Pooled())
        model.scale.shift.fill_(0.3)
        model.scale.scale.fill_(1.7)
    return model.eval()


def crops(num: int = 6, size: int = SIDE + 2 * MARGIN) -> Batch:
    """Crops of random pixels; labels of either class, every third unknown."""
    pixels = torch.rand(num, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = {"malignant": torch.arange(num) % 2.0, "lobulation": 1 + torch.arange(num) % 5.0}
    labels = {name: value.masked_fill(torch.arange(num) % 3 == 2, torch.nan) for name, value in labels.items()}
    return Batch(pixels, [str(i) for i in range(num)], torch.eye(4).expand(num, 4, 4), Condition(labels))


class Fixed(nn.Module):
    """The same columns for every image."""

    def __init__(self, *columns: float) -> None:
        super().__init__()
        self.columns = nn.Parameter(torch.tensor(columns))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.columns.expand(len(x), -1)


# Likelihoods.


def test_the_loss_is_that_of_known_columns() -> None:
    model, batch = classifier(judge=True), crops(6, SIDE)
    variance = 0.3
    low, high = BOUNDS
    share = (math.log(variance) - low) / (high - low)
    model.network = Fixed(math.log(3), 0.25, math.log(share / (1 - share)))
    losses = model.loss(batch)
    binary = [-math.log(0.75 if i % 2 else 0.25) for i in (0, 1, 3, 4)]
    number = [0.5 * (((i % 5) / 4 - 0.25) ** 2 / variance + math.log(2 * math.pi * variance)) for i in (0, 1, 3, 4)]
    assert losses["loss_malignant"].item() == pytest.approx(sum(binary) / 6)
    assert losses["loss_lobulation"].item() == pytest.approx(sum(number) / 6, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(sum(binary + number) / 6, rel=1e-5)


def test_a_batch_without_labels_teaches_nothing() -> None:
    model, batch = classifier(), crops()
    nothing = {name: torch.full((6,), torch.nan) for name in BOTH}
    loss = model.loss(Batch(batch.image, batch.key, batch.affine, Condition(nothing)))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.network.parameters())


def test_likelihoods_are_normalised() -> None:
    """Over 0 and 1 a binary one sums to one, over all numbers a density integrates to one."""
    model, z_t, t = classifier(), torch.randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    of = [model.log_likelihoods(z_t, t, {"malignant": torch.full((3,), value)})["malignant"] for value in (0.0, 1.0)]
    torch.testing.assert_close(of[0].exp() + of[1].exp(), torch.ones(3))
    numbers = torch.linspace(-60, 60, 4001)
    density = torch.stack([model.log_likelihoods(z_t, t, {"lobulation": n.expand(3)})["lobulation"] for n in numbers])
    area = torch.trapezoid(density.exp(), (numbers - 1) / 4, dim=0)
    torch.testing.assert_close(area, torch.ones(3), rtol=1e-3, atol=0)


def test_gradients_reach_the_latents_of_what_is_wanted_alone() -> None:
    model, t = classifier(), torch.tensor([0.2, 0.4])
    z_t = torch.randn(2, 1, 4, 4, requires_grad=True)
    wanted = {"malignant": torch.tensor([1.0, torch.nan]), "lobulation": torch.tensor([2.0, torch.nan])}
    found = model.log_likelihoods(z_t, t, wanted)
    assert all(value[1] == 0 for value in found.values())
    sum(value.sum() for value in found.values()).backward()  # type: ignore[union-attr]
    assert z_t.grad is not None
    assert (z_t.grad[0] != 0).all()
    assert (z_t.grad[1] == 0).all()


def test_no_gradient_reaches_the_first_stage_in_training() -> None:
    model = classifier().train()
    model.loss(crops())["loss"].backward()
    assert model.first_stage.weight.grad is None
    assert model.network.layer.weight.grad.abs().sum() > 0


def _one(batch: Batch, i: int) -> Batch:
    """An image of a batch as a batch of its own."""
    labels = {name: value[i : i + 1] for name, value in batch.condition.attributes.items()}
    return Batch(batch.image[i : i + 1], batch.key[i : i + 1], batch.affine[:1], Condition(labels))


# Latents.


def test_latents_are_those_of_the_inner_crop() -> None:
    model, batch = classifier(), crops()
    inner = batch.image[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    torch.testing.assert_close(model.latents(batch), (model.first_stage.encode(inner) - 0.3) / 1.7)
    assert model.crop_size == (SIDE, SIDE)
    kept = encoded(model.first_stage, batch.image)
    stored = Batch(torch.empty(6, 0), batch.key, batch.affine, batch.condition, kept)
    assert torch.equal(model.latents(stored), model.latents(batch))
    torch.testing.assert_close(model.decoded(model.latents(batch)), model.first_stage.reconstruct(inner))


def test_crops_of_whole_images_are_cut_out_of_their_latents() -> None:
    """Around the nodule, whatever surrounds it; beyond the border lies background; alike from a store."""
    model = classifier(crop=8, margin=0)
    model.spec = replace(SPEC, size=(32, 32), classes=("background", "nodule"))
    image, label_map = torch.rand(2, 1, 32, 32) * 2 - 1, torch.zeros(2, 1, 32, 32, dtype=torch.long)
    label_map[0, 0, 11:13, 15:17] = 1
    label_map[1, 0, 0:2, 30:32] = 1
    batch = Batch(image, ["a", "b"], torch.eye(4).expand(2, 4, 4), Condition(label_map=label_map))
    z, found = (model.first_stage.encode(image) - 0.3) / 1.7, model.latents(batch)
    assert model.crop_size == (8, 8)
    torch.testing.assert_close(found[0], z[0, :, 4:8, 6:10])
    torch.testing.assert_close(found[1, :, 2:, :2], z[1, :, 0:2, 14:16])
    torch.testing.assert_close(found[1, 0, 0, 3], torch.tensor((2 * -1 + 0.5 - 0.3) / 1.7))
    kept = encoded(model.first_stage, image)
    stored = StoredCrops(lambda _: kept, model.nodule_crops())  # type: ignore[arg-type]
    assert torch.equal(model.latents(replace(batch, latent=stored(batch))), found)


@pytest.mark.parametrize("schedule", [ScaledLinearBeta(), RectifiedFlow()], ids=["scaled_linear", "flow"])
def test_latents_of_another_scale_become_its_own(schedule: Any) -> None:
    """The same latents and noise, normalised and perturbed there, and here at the time of equal log-SNR."""
    model, theirs = classifier(schedule=schedule), LatentScale()
    theirs.shift.fill_(-0.4)
    theirs.scale.fill_(1.3)
    latents, eps, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0.05, 0.4, 0.8])
    z_t = model.process.perturb(theirs.normalise(latents), t, eps)
    found, time = model.at_its_scale(z_t, t, theirs)
    torch.testing.assert_close(schedule.log_snr(time), schedule.log_snr(t) + 2 * math.log(1.7 / 1.3))
    expected = model.process.perturb(model.scale.normalise(latents), time, eps)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    same, unmoved = model.at_its_scale(z_t, t, model.scale)
    torch.testing.assert_close(same, z_t)
    torch.testing.assert_close(unmoved, t)


def test_a_scale_for_each_channel_has_no_time() -> None:
    with pytest.raises(ValueError, match="needs global"):
        classifier().at_its_scale(torch.zeros(1, 1, 4, 4), torch.ones(1), LatentScale(3))


# What is refused.


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            {"codes": ()},
            r"outputs.malignant: malignant lies from 0 to 1 .* 0 and 1 and nothing between; such are: none",
        ),
        ({"attributes": {"malignant": (0, 1)}}, r"outputs.lobulation: lobulation is no attribute .* are: malignant\."),
        (
            {"attributes": {"malignant": (0, 1), "lobulation": (2, 2)}},
            "lobulation lies from 2 to 2 .* different numbers",
        ),
        ({"spacing_mm": (1.4, 1.4)}, "pixels of 1.4 mm, but stage.ckpt was trained with 0.75 mm"),
        ({"size": (15, 16)}, "what the data shows, 15 x 16, is no multiple"),
        ({"size": (8, 8)}, "margin is 4, which leaves nothing of a crop of 8 x 8"),
        ({"size": (8, 8, 8)}, "images of 3 axes"),
    ],
)
def test_data_that_does_not_fit_is_refused(spec: dict[str, Any], complaint: str) -> None:
    model = classifier()
    model.network.dim = 2
    with pytest.raises(InputError, match=complaint):
        model.check(replace(SPEC, **spec))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"outputs": {}}, "at least one"),
        ({"outputs": {"malignant": "class"}}, "binary or number"),
        ({"outputs": BOTH}, "out_channels is 1; .* need 3"),
        ({"margin": 2}, "0 without a first stage"),
        ({"first_stage": "x.ckpt", "margin": -1}, "0 or more pixels"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CropClassifier(Linear(1), **{"outputs": {"malignant": "binary"}} | arguments)
    model = classifier()
    with pytest.raises(ValueError, match="age: no output"):
        model.log_likelihoods(torch.zeros(1, 1, 4, 4), torch.ones(1), {"age": torch.ones(1)})


@pytest.mark.parametrize(("name", "others"), [("crop", {"crop": 16}), ("margin", {"margin": 2, "crop": None})])
def test_a_classifier_of_other_crops_is_not_taken_back(name: str, others: dict[str, Any]) -> None:
    facts = classifier(crop=8, margin=0).facts()
    classifier(crop=8, margin=0).restore(facts)
    model = classifier(**{"margin": 0} | others)
    with pytest.raises(InputError, match=rf"model\.init_args\.{name} is {others[name]}, but .* with {facts[name]};"):
        model.restore(facts)


def test_a_network_that_makes_images_is_refused() -> None:
    """A U-Net can be called as a classifier is, and has as many channels as it is asked for."""
    model = classifier(judge=True)
    model.network = UNet(2, 1, 3, (4,), (False,), 1, 4)
    with pytest.raises(InputError, match=r"gives 3 x 8 x 8 numbers of each image; expected 3 .malignant 1, lob"):
        model.judged(torch.zeros(2, 1, 8, 8))


# Skill.


class People:
    """Test people with a crop each, whose label is its brightness."""

    def __init__(self, num: int = 60) -> None:
        label, random = torch.arange(num) % 2.0, torch.Generator().manual_seed(1)
        noise = torch.randn(num, 1, *SPEC.size, generator=random)
        pixels = (label * 2 - 1).view(-1, 1, 1, 1) * 0.5 + 0.05 * noise
        keys, affine = [f"scan_{i}" for i in range(num)], torch.eye(4).expand(num, 4, 4)
        self.batch = Batch(pixels, keys, affine, Condition({"malignant": label, "lobulation": 1 + 4 * label}))

    def stored(self, split: str) -> Iterator[Batch]:
        return (_one(self.batch, i) for i in range(len(self.batch.key)))

    def people(self, split: str) -> dict[str, str]:
        return {key: f"person {i // 2}" for i, key in enumerate(self.batch.key)}


def test_a_separable_toy_is_told_without_noise_and_not_at_all_in_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_medgen.methods.crop_classifier.crop_classifier.TIMES", (0.0, 0.5, 1.0))
    model, people = classifier(schedule=ZeroTerminalSNR(ScaledLinearBeta())), People()
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        model.train().loss(people.batch)["loss"].backward()
        optimizer.step()
    scores: Any = model.eval().scores(people)  # type: ignore[arg-type]
    assert scores["auc_malignant"].value > 0.99
    assert scores["r2_lobulation"].value > 0.8
    low, high = scores["auc_malignant_t1"].ci95
    assert low < 0.5 < high
    assert scores["r2_lobulation_t1"].value < 0.3
    for score in scores.values():
        assert score.ci95[0] <= score.value <= score.ci95[1]
        assert score.num == 60
    rows = model.predictions()
    assert [row["key"] for row in rows] == people.batch.key
    assert {row["person"] for row in rows} == set(range(30))
    assert all((row["malignant_predicted"] > 0.5) == (row["malignant"] == 1) for row in rows)


def test_predictions_do_not_depend_on_what_is_told_together() -> None:
    """An image's noise is that of its key, however images are split over batches and processes."""
    model, batch = classifier(), People(4).batch
    every = model.predicted(batch, {})
    for i in range(4):
        torch.testing.assert_close(model.predicted(_one(batch, i), {}).values, every.values[i : i + 1])
    joined = Predicted.join([every, every])
    assert len(joined.keys) == len(joined.people) == len(joined.labels) == len(joined.values) == 8


def test_labels_of_one_class_have_no_score() -> None:
    model, people = classifier(), People(8)
    people.batch.condition.attributes["malignant"].fill_(1)
    score = model.scores(people)["auc_malignant"]  # type: ignore[arg-type]
    assert score.value is None
    assert "not defined" in score.of


def test_validation_scores_are_of_all_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has every second image; every process logs the scores of all."""
    model, batch, logged = classifier(), People(8).batch, list[dict[str, float]]()
    monkeypatch.setattr(CropClassifier, "log_dict", lambda self, values: logged.append(values))
    parts = [
        Predicted.join([model.predicted(_one(batch, i), {"scan_1": "a person"}) for i in range(rank, 8, 2)])
        for rank in (0, 1)
    ]

    def gather(shares: list[Any], own: Any) -> None:
        shares[:] = [[part] for part in parts]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    for world_size in (1, 2):
        model._trainer = SimpleNamespace(world_size=world_size)  # type: ignore[assignment]
        model._found = tuple(parts) if world_size == 1 else (parts[0],)
        model.on_validation_epoch_end()
    alone, together = logged
    assert alone == together
    assert alone.keys() == {"val/auc_malignant", "val/r2_lobulation"}
    assert list(model.plots()) == ["skill"]


def test_labels_without_a_score_are_not_drawn() -> None:
    """Of few people's labels, all equal or unknown, there is no AUC and no R^2."""
    labels = torch.tensor([[0.0, 2.0], [1.0, torch.nan], [1.0, torch.nan]])
    values = torch.tensor([[[0.1, 1.0]], [[0.7, 2.0]], [[0.4, 3.0]]])
    found = Predicted(["a", "b", "c"], ["p", "q", "r"], labels, values)
    (panel,) = Skill(found, {"malignant": "binary", "lobulation": "number"}, (0.0,)).panels()
    assert panel["value"] == [1.0]
    assert "malignant" in panel["y"]
