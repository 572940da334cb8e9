"""LSDM: what reads the label map, guidance inside the nodule alone and in closed form, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_crop_classifier import SIDE, Pooled, classifier
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec, Request, Requests
from lit_medgen.diffusion import DDIM, ClassifierFree, LikelihoodGuidance, ScaledLinearBeta
from lit_medgen.errors import InputError
from lit_medgen.images.nodules import coarse, dilated
from lit_medgen.methods import LSDM
from lit_medgen.methods.lsdm.nodule_guidance import Wish
from lit_medgen.networks import SemanticUNet, UNet
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.frozen import weights_hash

CLASSES = ("background", "lung", "nodule, benign", "nodule, malignant")
SPEC = DataSpec(
    1,
    (32, 32),
    (0.75, 0.75),
    classes=CLASSES,
    attributes={"malignant": (0.0, 1.0), "lobulation": (1.0, 5.0)},
    codes=("malignant",),
)
FACTOR = 2
NAN = float("nan")
HASHES = {"same": weights_hash(Pooled()), "other": "1234"}


class Pixelwise(nn.Module):
    """A network that sees one pixel of a latent at a time, and the class there."""

    num_classes, in_channels, out_channels, dim = 4, 1, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.label_map is not None
        return (self.weight * z_t + 0.1 * condition.label_map[..., ::FACTOR, ::FACTOR]).tanh()


def built(network: nn.Module | None = None, guide: Any = None, **arguments: Any) -> LSDM:
    """An LSDM of latents 1 16 16, without a trainer; guided if a classifier is given."""
    how = {"sampler": DDIM(4), "schedule": ScaledLinearBeta()} | arguments
    model = LSDM(network or Pixelwise(), "stage.ckpt", classifier="guide.ckpt" if guide else None, **how)
    model.spec = SPEC
    model.take_parts(first_stage=Pooled(), **({"classifier": guide} if guide else {}))
    model.scale.shift.fill_(0.4)
    model.scale.scale.fill_(1.1)
    return model.eval()


def guided(**arguments: Any) -> LSDM:
    return built(guide=classifier(), **arguments)


def maps(*middles: tuple[int, int] | None) -> Tensor:
    """b 1 32 32: lungs with a nodule of 4 x 4 pixels around each middle."""
    found = torch.ones(len(middles), 1, 32, 32, dtype=torch.int64)
    for image, middle in zip(found, middles, strict=True):
        if middle:
            row, column = middle
            image[0, max(0, row - 2) : row + 2, max(0, column - 2) : column + 2] = 2
    return found


def asking(label_map: Tensor, **values: list[float]) -> Condition:
    return Condition({name: torch.tensor(value) for name, value in values.items()}, label_map)


MIDDLE = maps((12, 20))


@pytest.mark.parametrize(
    ("arguments", "condition"),
    [
        ({"classifier_scale": 0.0}, asking(MIDDLE, malignant=[1.0])),
        ({"guidance": {"malignant": Wish(0.0)}}, asking(MIDDLE, malignant=[1.0])),
        ({"guidance": {"lobulation": Wish()}}, asking(MIDDLE, malignant=[1.0])),
        ({}, asking(maps(None), malignant=[1.0])),
        ({}, asking(MIDDLE, malignant=[NAN])),
        ({}, asking(MIDDLE)),
    ],
    ids=["scale 0", "wish of scale 0", "another wish", "no nodule", "unknown", "not asked"],
)
def test_without_a_wish_images_are_those_without_guidance(arguments: Any, condition: Condition) -> None:
    expected = built().sample(condition, [3])
    assert torch.equal(guided(**arguments).sample(condition, [3]), expected)
    assert not torch.equal(guided().sample(asking(MIDDLE, malignant=[1.0]), [3]), expected)


@pytest.mark.parametrize("dilation", [1, 5])
def test_images_change_inside_the_nodule_alone(dilation: int) -> None:
    """Of a network and a decoder that see a pixel at a time; every pixel of the mask in the crop changes."""
    condition = asking(MIDDLE, malignant=[1.0])
    unguided = built().sample(condition, [3])
    changed = guided(dilation=dilation).sample(condition, [3]) != unguided
    inside = coarse(dilated(MIDDLE == 2, dilation), FACTOR).repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)
    crop = torch.zeros_like(inside)
    crop[..., 12 - SIDE // 2 : 12 + SIDE // 2, 20 - SIDE // 2 : 20 + SIDE // 2] = True
    assert torch.equal(changed, inside & crop)


def test_opposite_wishes_move_the_nodule_apart_and_more_with_the_scale() -> None:
    """What a linear classifier weighs grows, or shrinks, with the wish."""
    found = {}
    for scale in (1.0, 4.0):
        for wish in (0.0, 1.0):
            model = guided(classifier_scale=scale)
            assert model.guide is not None
            image = model.sample(asking(MIDDLE, malignant=[wish]), [3])
            found[scale, wish] = model.guide.judged(image[..., 8:16, 16:24])["malignant"].item()
    assert found[4.0, 0.0] < found[1.0, 0.0] < found[1.0, 1.0] < found[4.0, 1.0]


def test_a_scale_for_some_images_is_put_back() -> None:
    """Within, images are those of a model that was made with it; without a classifier there is none."""
    model, condition = guided(), asking(MIDDLE, malignant=[1.0])
    before = model.sample(condition, [3])
    assert model.guidance_scales == {"classifier_scale": 1.0}
    with model.guided_by({"classifier_scale": 4.0}):
        assert torch.equal(model.sample(condition, [3]), guided(classifier_scale=4.0).sample(condition, [3]))
    assert torch.equal(model.sample(condition, [3]), before)
    with pytest.raises(InputError, match="nothing that guides"), built().guided_by({"classifier_scale": 4.0}):
        pass


def test_an_image_depends_on_its_seed_and_condition_alone() -> None:
    model = guided()
    condition = asking(maps((12, 20), None, (1, 30), (20, 8)), malignant=[1, 1, 0, NAN], lobulation=[5, 2, NAN, NAN])
    together = model.sample(condition, [4, 5, 6, 7])
    for i, seed in enumerate((4, 5, 6, 7)):
        own = Condition({k: v[i : i + 1] for k, v in condition.attributes.items()}, condition.label_map[i : i + 1])  # type: ignore[index]
        torch.testing.assert_close(together[i : i + 1], model.sample(own, [seed]), atol=1e-5, rtol=0)
    unguided = built().sample(condition, [4, 5, 6, 7])
    assert [torch.equal(a, b) for a, b in zip(together, unguided, strict=True)] == [False, True, False, True]


def test_inference_mode_changes_nothing() -> None:
    """In which Lightning's `predict` samples, and no gradient is recorded."""
    model, expected = guided(), guided().sample(asking(MIDDLE, malignant=[1.0], lobulation=[2.0]), [4])
    with torch.inference_mode():
        found = model.sample(asking(MIDDLE.clone(), malignant=[1.0], lobulation=[2.0]), [4])
    assert torch.equal(found, expected)


def gradient(model: LSDM, name: str, value: float, z_t: Tensor, t: Tensor) -> Tensor:
    """Of log p of one wish for the nodule in the middle, in the latent, 1 1 16 16: by slicing, without masks."""
    z_t, guide = z_t.clone().requires_grad_(), model.guide
    assert guide is not None
    crop, time = guide.at_its_scale(z_t[..., 4:8, 8:12], t, model.scale)
    guide.log_likelihoods(crop, time, {name: torch.tensor([value])})[name].sum().backward()
    assert z_t.grad is not None
    return z_t.grad


def test_malignancy_is_asked_of_what_the_other_wishes_have_moved() -> None:
    """Section 3.4.1: the others are summed at one latent, then malignancy follows; all shift x̂ by eq. 3.5."""
    model, t = guided(dilation=9), torch.tensor([0.4])
    condition = asking(MIDDLE, malignant=[1.0], lobulation=[4.0])
    z_t = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    alpha_t, sigma_t = model.denoiser.process.coefficients(t, z_t)
    with torch.no_grad():
        found = model.denoiser_for(condition)(z_t, t, model.scaled(condition))
        plain = model.denoiser(z_t, t, model.scaled(condition))
    first = sigma_t**2 * gradient(model, "lobulation", 4.0, z_t, t)
    second = sigma_t**2 * gradient(model, "malignant", 1.0, z_t + first, t)
    torch.testing.assert_close(found, plain + (first + second) / alpha_t, atol=1e-5, rtol=1e-5)
    alike = {"malignant": Wish(2.0), "lobulation": Wish(0.5)}
    summed = guided(dilation=9, guidance=alike).denoiser_for(condition)(z_t, t, model.scaled(condition)).detach()
    both = 2 * gradient(model, "malignant", 1.0, z_t, t) + 0.5 * gradient(model, "lobulation", 4.0, z_t, t)
    torch.testing.assert_close(summed, plain + sigma_t**2 / alpha_t * both, atol=1e-5, rtol=1e-5)


def test_wishes_of_a_group_share_decoder_and_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    condition, calls = asking(MIDDLE, malignant=[1.0], lobulation=[4.0]), []
    for wishes, expected in (({}, 8), ({"malignant": Wish(), "lobulation": Wish()}, 4)):
        model = guided(guidance=wishes)
        assert model.guide is not None
        calls.clear()
        model.guide.network.register_forward_hook(lambda *_: calls.append(1))
        model.sample(condition, [1])
        assert len(calls) == expected  # of four steps


def test_intervals_say_when_each_wish_guides() -> None:
    condition = asking(MIDDLE, malignant=[1.0], lobulation=[4.0])
    model = guided(guidance={"malignant": Wish(interval=(0.5, 1.0)), "lobulation": Wish(interval=(0.2, 0.6))})
    denoiser = model.denoiser_for(condition)
    assert isinstance(denoiser, LikelihoodGuidance)
    num_terms = [sum(map(len, getattr(denoiser.at(t), "groups", []))) for t in (0.1, 0.4, 0.55, 0.9)]
    assert num_terms == [0, 1, 2, 1]


def test_a_crop_at_the_border_is_filled_with_background() -> None:
    """The same as of a latent that is padded by alpha_t times the latent of an image of nothing else."""
    model, t = guided(), torch.tensor([0.3])
    condition = asking(maps((1, 30)), malignant=[1.0])
    z_t = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    alpha_t, _ = model.denoiser.schedule.alpha_sigma(t)
    background = float(
        alpha_t * model.scale.normalise(model.first_stage.encode(torch.full((1, 1, 8, 8), -1.0)))[0, 0, 0, 0]
    )
    padded = nn.functional.pad(z_t, (4, 4, 4, 4), value=background)
    denoiser, guide = model.denoiser_for(condition), model.guide
    assert isinstance(denoiser, LikelihoodGuidance)
    ((term,),) = denoiser.groups
    assert guide is not None
    # The nodule is rows 0 to 2 and columns 28 to 31, its middle 1 and 29.5, and so pixel 0.75 and 15 of the latent.
    crop, time = guide.at_its_scale(padded[..., 4 - 1 : 8 - 1, 4 + 13 : 8 + 13], t, model.scale)
    expected = guide.log_likelihoods(crop, time, {"malignant": torch.tensor([1.0])})["malignant"]
    torch.testing.assert_close(term.log_likelihood(z_t, t), expected)


def test_images_can_be_asked_to_show_what_the_classifier_tells() -> None:
    assert (built().attributes, built().optional) == ((), ("image",))
    model = guided(
        network=SemanticUNet(4, 4, channels=(8,), attention=(False,), covariates=Covariates(("diameter_mm",)))
    )
    assert model.attributes == ("diameter_mm", "malignant", "lobulation")
    assert model.nodule_attributes == {"malignant", "lobulation"}
    assert model.optional == ("attributes", "image")
    assert model.categories == {"malignant": 2}
    assert guided(guidance={"lobulation": Wish()}).attributes == ("lobulation",)


# The label map.


def network(**arguments: Any) -> SemanticUNet:
    torch.manual_seed(0)
    found = SemanticUNet(4, 4, channels=(8, 8), attention=(False, False), head_channels=8, **arguments)
    for name, parameter in found.named_parameters():
        if name.endswith(("out.weight", "conv2.weight")) or name.startswith("encoder.out"):
            nn.init.normal_(parameter, std=0.3)
    return found


def test_the_encoded_map_is_joined_to_the_latent() -> None:
    """Equation 3.3; a UNet that reads no map by itself hears it so."""
    torch.manual_seed(0)
    model = built(UNet(in_channels=2, channels=(8,), attention=(False,)), concatenate=True)
    nn.init.normal_(model.denoiser.network.conv_out.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    grey = torch.tensor([-1, -1 / 3, 1 / 3, 1])[MIDDLE]
    encoded = model.scale.normalise(model.first_stage.encode(grey))
    torch.testing.assert_close(model.scaled(asking(MIDDLE)).source, encoded)
    assert torch.equal(model.encoded(torch.full_like(MIDDLE, -1)), torch.zeros(1, 1, 16, 16))
    one, other = (model.sample(asking(maps(middle)), [1]) for middle in ((12, 20), (20, 8)))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("concatenate", [False, True])
def test_the_label_map_is_never_dropped(concatenate: bool) -> None:
    """Neither in training nor by classifier-free guidance, which is about the nodule's attributes alone."""
    covariates = Covariates(("lobulation",), {"malignant": 2})
    how = Conditioning(0.9, 0.0, guidance_scale=3.0)
    model = built(
        network(in_channels=1 + concatenate, covariates=covariates), concatenate=concatenate, conditioning=how
    )
    condition = asking(MIDDLE.expand(64, -1, -1, -1), malignant=[1.0] * 64, lobulation=[5.0] * 64)
    found = model.train().training_condition(condition, 64)
    assert torch.equal(found.label_map, condition.label_map)  # type: ignore[arg-type]
    assert (found.source is not None) == concatenate
    assert found.source is None or not found.source.isnan().any()
    assert 40 < int(found.attributes["malignant"].isnan().sum()) < 64
    assert isinstance(denoiser := model.eval().denoiser_for(condition), ClassifierFree)
    assert {"label_map", "source"} <= set(denoiser.keep)
    assert not model.sample(asking(MIDDLE, malignant=[1.0]), [1]).isnan().any()


def test_the_loss_hears_the_map() -> None:
    model = built(network())
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    losses = []
    for label_map in (maps((12, 20), None), maps((20, 8), None)):
        torch.manual_seed(0)
        losses.append(model.loss(Batch(images, ["a", "b"], torch.eye(4).expand(2, 4, 4), asking(label_map)))["loss"])
    assert losses[0] != losses[1]


# What is refused.


def of_another(first_stage: str = "same", **arguments: Any) -> None:
    """Reads a classifier of another schedule, or of another first stage."""
    model = built(**arguments)
    model.frozen_parts = guided().frozen_parts
    model._refuse_mixed({"classifier": classifier()}, {"first_stage": HASHES[first_stage]})


def of_three_axes() -> LSDM:
    guide = classifier()
    guide.spec = replace(guide.needed_spec(), size=(16, 16, 16))
    return built(guide=guide)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: of_another(schedule=ScaledLinearBeta(beta_end=0.03)), r"classifier: guide.ckpt .* other noise levels"),
        (lambda: of_another("other"), r"classifier: guide.ckpt was not trained on the first_stage of stage.ckpt"),
        (of_three_axes, r"classifier: guide.ckpt sees crops of 3 axes, but images have 2\."),
        (lambda: guided(latent_scale="channel"), r"latent_scale is channel; .* needs global"),
        (
            lambda: guided(guidance={"texture": Wish()}),
            r"guidance.texture: guide.ckpt tells malignant, lobulation; give one of these",
        ),
        (lambda: built(network(), concatenate=True), r"in_channels is 1, .*; give 2\."),
        (lambda: built(network(in_channels=2)), r"in_channels is 2, .*; give 1\."),
        (lambda: guided().check(replace(SPEC, classes=CLASSES[:3])), r"num_classes is 4, .* have 3: background"),
        (
            lambda: guided().check(replace(SPEC, classes=("air", "body", "lung", "bone"))),
            r"no class of the label maps \(air; body; lung; bone\) is a nodule",
        ),
        (lambda: guided().check(replace(SPEC, attributes={})), r"no 'malignant' in the data"),
        (lambda: built().before_data(replace(SPEC, classes=()), None), r"no label maps, from which LSDM makes images"),
        (lambda: built().sample(Condition(), [1]), r"condition.label_map is missing"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"network": UNet()}, "UNet reads no label map; give lit_medgen.networks.SemanticUNet, or"),
        ({"guidance": {"malignant": Wish()}}, "guidance: malignant need a classifier"),
        ({"dilation": 4}, "dilation is 4; give an odd number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LSDM(**{"network": Pixelwise(), "first_stage": ""} | arguments)
    with pytest.raises(ValueError, match=r"interval is \[0.5, 0.2\]"):
        Wish(interval=(0.5, 0.2))


# What a report shows.


def test_a_report_says_where_guidance_changes_images(tmp_path: Path) -> None:
    """Beyond the reach of the mask nothing; derivatives of log p 0 and log p 1 in the latent stay in the mask."""
    label_map, model = maps((6, 6), None, (26, 26)), guided(dilation=1)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def read(index: int) -> Request:
        condition, rows = Condition(label_map=label_map[index : index + 1]), slice(index, index + 1)
        return Request([index], condition, [f"key {index}"], None, images[rows])

    requests = Requests(range(3), [{}] * 3, frozenset({"label_map"}), read)
    people = {f"key {i}": f"person {i}" for i in range(3)}
    data: Any = SimpleNamespace(requests=lambda _: requests, people=lambda _: people)
    scores = model.scores(data)
    for value in (0, 1):
        assert scores[f"guided_malignant_{value}_beyond"].value == 0
        inside = scores[f"guided_malignant_{value}_inside"]
        assert inside.num == 2
        assert inside.value is not None
        condition = asking(maps((6, 6), (26, 26)), malignant=[value, value])
        change = (model.sample(condition, [0, 2]) - built().sample(condition, [0, 2])).abs() / 2
        assert inside.value == pytest.approx(float(change[condition.label_map == 2].mean()), rel=1e-4)  # type: ignore[operator]
    for name, write in model.plots().items():
        write(tmp_path / f"{name}.png")
    assert {path.stem for path in tmp_path.glob("*.png")} == {"guided_malignant", "derivatives_malignant"}
    unguided = guided(classifier_scale=0.0).scores(data)  # as the first row of a sweep over scales
    assert unguided.keys() == scores.keys()
    assert all(score.value == 0 for name, score in unguided.items() if name.startswith("guided_"))
