"""Everything on a stand-in for a GPU (`standin`): no tensors of two devices meet, and nothing waits that need not.

Not collected by itself: tests/test_device.py runs it in processes of its own, as does `pytest tests/on_device.py`.

A step of training waits once for the device, in the guard against NaN; a sample waits no more often in more steps.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.trainer.states import TrainerFn
from standin import DEVICE, StandIn, counted, moved
from tiny_run import ROOT, TWINS, frozen_parts, made, maker
from torch import Tensor

from data_modules import View, Volume
from lit_medgen import metrics
from lit_medgen.batch import ABSENT_CLASS, Batch, Condition, DataSpec, Images, Request
from lit_medgen.callbacks import EMA
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    BlurSchedule,
    ClassifierFree,
    Clipped,
    Cosine,
    Denoiser,
    DPMSolverPP2M,
    FlowEuler,
    FlowHeun,
    GammaSchedule,
    Heun,
    LinearBeta,
    MinSNR,
    OptimalTransport,
    RectifiedFlow,
    Resynthesis,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    V,
    Velocity,
    ZeroTerminalSNR,
    dissipate,
)
from lit_medgen.diffusion.samplers import Spacing
from lit_medgen.evaluation.report import Maker, evaluate
from lit_medgen.methods import IHDM, FactorPriorCDPM, Generator, Method
from lit_medgen.methods.autoencoder import AdversarialAutoencoder
from lit_medgen.methods.cdpm.factor_model import FactorModel
from lit_medgen.metrics import PairedMSSSIM, PairedPSNR, PairedSSIM, TwoSampleMetric
from lit_medgen.metrics.extractors import AllViews, extractors, perceptual
from lit_medgen.networks import FSQ, NearestNeighbour, PatchDiscriminator, Quantizer, SemanticUNet, UNet, UNetEncoder
from lit_medgen.networks.discriminator import diff_augment
from lit_medgen.seeds import SeededNoise
from lit_medgen.trainer import Trainer
from lit_medgen.training.adversarial import Adversarial
from lit_medgen.training.feature_loss import FeatureLoss
from lit_medgen.training.latents import encoded

GUARD = ["_local_scalar_dense"]
AGES = {"age_years": torch.tensor([50.0, torch.nan])}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # beyond what the configs have
    "factor_prior": (
        "cdpm",
        {
            "network": {"class_path": "lit_medgen.networks.FactorPriorSliceUNet"},
            "num_factors": 2,
            "parametrisation": "v",
        },
    ),
    "guided": (
        "absorbing",
        {"network": {"covariates": {"numbers": ["age_years"]}}, "conditioning": {"guidance_scale": 2.0}},
    ),
    "canvas": ("absorbing", {"canvas": [12, 8], "loss_kind": "mlm"}),
    "indices": ("ihdm", {"space": "index", "guess": "draw"}),
    "line": (
        "vdm",
        {
            "schedule": {"class_path": "lit_medgen.diffusion.LinearGamma", "init_args": {"learned_ends": False}},
            "bound_steps": 20,
            "gradient_difference": 1.0,
            "conditioning": {"guidance_scale": 2.0},
        },
    ),
    "augmented": ("vqgan", {"diff_augment": True, "spectral_weight": 1.0}),
    "averages": ("vqgan", {"quantizer": {"init_args": {"ema_decay": 0.9}}}),
    "nodules": (
        "lsdm",
        {"concatenate": True, "network": {"init_args": {"in_channels": 4}}, "classifier": "crop_classifier.ckpt"},
    ),
    "fsq": ("vqgan", {"quantizer": {"class_path": "lit_medgen.networks.FSQ", "init_args": {"levels": [4, 3, 3, 3]}}}),
}
SHIPPED = [path.stem for path in sorted((ROOT / "configs").glob("*.yaml"))]

NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in (*TWINS, "fsq", "line") else name
    for name in [*SHIPPED, *SETTINGS]
]

each_method = pytest.mark.parametrize("name", NAMES)
each_generator = pytest.mark.parametrize("name", [name for name in NAMES if not str(name).startswith("crop_")])


@pytest.fixture(autouse=True)
def features_that_learn_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they see is not asked here."""
    monkeypatch.setattr("lit_medgen.metrics.extractors.NUM_STEPS", 2)


def noisy(num: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
    """num 1 *size in [-1, 1]."""
    return torch.rand(num, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@cache
def described(name: str) -> tuple[list[dict[str, Any]], Callable[[], Any]]:
    """The contents of a method's configs, and what makes it of them; they are parsed once."""
    base, settings = SETTINGS.get(name, (name, {}))
    contents = [yaml.safe_load((ROOT / folder / f"{base}.yaml").read_text()) for folder in ("configs", "tests/tiny")]
    overlay: dict[str, Any] = {"init_args": settings}
    if name == "factor_prior":
        overlay["class_path"] = "lit_medgen.methods.FactorPriorCDPM"
    return contents, maker(Method, [*(content["model"] for content in contents if "model" in content), overlay])


def built(name: str) -> Any:
    """A method as its config describes it, at the least size of tests/tiny, with what training would give it."""
    base, _ = SETTINGS.get(name, (name, {}))
    contents, make = described(name)
    torch.manual_seed(0)
    model = make()
    items = [content.get("data", {}).get("init_args", {}) for content in contents]
    views = [view for item in items if (view := item.get("view") or item.get("crop"))]
    names = ["age_years", *getattr(model, "attributes", ()), *getattr(model, "outputs", ())]
    size = (16, 16) if {"ct", "size"} & items[0].keys() else (16, 16, 16)
    size = getattr(getattr(model, "network", None), "size", size)  # one that fits no other
    classes = ("air", *map(str, range(6)), "nodule") if "ct" in items[0] else ()
    ranges = dict.fromkeys(names, (40.0, 90.0))
    beside = tuple(items[0].get("preprocessing", {}).get("sources", ()))
    stored = DataSpec(1, size, (1.0,) * len(size), attributes=ranges, classes=classes, sources=beside)
    model.spec = (made(View, views) if views else Volume()).spec(stored, "axial")
    for part, config in frozen_parts(f"configs/{base}.yaml").items():
        model.take_parts(**{part: built(Path(config).stem).as_frozen_part()})
        told = dict.fromkeys(getattr(model, "attributes", ()), (40.0, 90.0))  # by the part, if it makes images of some
        model.spec = replace(model.spec, attributes=model.spec.attributes | told)
    if name == "nodules":
        model.take_parts(classifier=built("crop_classifier").as_frozen_part())
    if isinstance(model, FactorPriorCDPM):
        model.denoiser.factor_model = FactorModel.fit(noisy(6, (16, 16, 16)), 2)
    if isinstance(model, IHDM):
        model.prior = torch.rand(5, 1 if model.space == "index" else 4, 8, 8)
    if isinstance(model, FeatureLoss):
        model._perceptual = [perceptual("learned", noisy(9, model.spec.size, 3)).requires_grad_(False)]
    if isinstance(model, AdversarialAutoencoder):
        model.discriminator_start = 0
    return model


def batch(model: Method) -> Batch:
    """Two images, or two sets of slices."""
    keys, affine, spec = ["a", "b"], torch.eye(4).expand(2, 4, 4), model.needed_spec()
    if not spec.slice_axis:
        labels = {name: torch.tensor([1.0, torch.nan]) for name in getattr(model, "outputs", ())}
        source = noisy(2, spec.size, 7) if spec.sources else None
        found = Batch(noisy(2, spec.size), keys, affine, Condition(AGES | labels, label_map=maps(model), source=source))
        if getattr(model, "crop", None):  # the loader's workers cut crops out of latents that are kept
            kept = encoded(model.first_stage, found.image)  # type: ignore[arg-type]
            found = replace(found, latent=model.nodule_crops()(kept, found))  # type: ignore[operator]
        return found
    index = torch.tensor([[1, 2, 5, 7, -1], [0, 3, 4, 8, 15]])
    return Batch(noisy(2, (5, 16, 16)), keys, affine, Condition(AGES, slice_index=index, observed=index == 7))


def maps(model: Method) -> Tensor | None:
    """Label maps of two images, with a nodule each, of data that has such."""
    spec = model.needed_spec()
    if not spec.classes:
        return None
    found = torch.zeros(2, 1, *spec.size, dtype=torch.int64)
    found[..., 5:9, 9:12] = len(spec.classes) - 1
    return found


def steps(model: Any, num: int) -> None:
    """Sets how many steps a sample takes, where it is made in steps."""
    for stepping in (getattr(model, "sampler", None), model):
        if hasattr(stepping, "num_steps"):
            stepping.num_steps = num


class Parameters:
    """As much of an optimizer as the guard looks at."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.param_groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]


@each_method
def test_a_training_step_waits_for_the_guard_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, backward pass, guard and clipping, moving averages; with several players all that for each."""
    model = built(name).train()
    given = batch(model)
    torch.manual_seed(1)
    expected = deepcopy(model).losses(given)["loss"]
    model, ema = moved(model), EMA()
    for distance in getattr(model, "_perceptual", []):
        moved(distance)  # as its first loss does, once
    ema.on_fit_start(None, model)  # type: ignore[arg-type]
    sent = moved(given)
    with counted() as waits:
        torch.manual_seed(1)
        losses = model.losses(sent)
        losses["loss"].backward()
    assert (waits.found, waits.uploads) == ([], [])
    torch.testing.assert_close(losses["loss"].detach().inner, expected.detach(), rtol=1e-4, atol=1e-5)
    model._trainer = type("Trainer", (), {"precision": "32-true", "world_size": 1, "global_rank": 0})
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    for player in [None, *(model.players()[1:] if isinstance(model, Adversarial) else [])]:
        suspects = losses
        with counted() as waits:
            if player:
                suspects = player.loss(sent)
                suspects[f"{player.name}_loss"].backward()
            model._suspects.append((sent.key, suspects))
            model.guard_and_clip(Parameters(model), 1.0)
        assert [wait.split()[0] for wait in waits.found] == GUARD
        assert waits.uploads == []
    trainer = type("Trainer", (), {"global_step": 1})
    with counted() as waits:
        ema.on_train_batch_end(trainer, model)  # type: ignore[arg-type]
    assert (waits.found, waits.uploads) == ([], [])


@each_generator
def test_more_steps_of_sampling_wait_no_more(name: str) -> None:
    model = built(name).eval()
    assert isinstance(model, Generator)
    asked = dict.fromkeys(model.attributes, AGES["age_years"])
    label_map = maps(model) if "label_map" in model.required else None
    source = model.source_of(noisy(2, model.spec.size, 2)) if "source" in model.required else None
    condition = Condition(asked, label_map, source)
    seeds = [2, 1]
    steps(model, 2)
    expected = model.sample(condition, seeds)
    one = Condition(
        {name: torch.tensor([60.0]) for name in model.attributes},
        None if label_map is None else label_map[:1],
        None if source is None else source[:1],
    )
    model, found = moved(model), []
    for num in (2, 4):
        steps(model, num)
        with counted() as waits:
            images = model.sample(condition, seeds)
            found.append(len(waits.found) + len(waits.uploads))
            model.trajectory(one, 0)
        if num == 2:
            torch.testing.assert_close(images.inner, expected, rtol=1e-3, atol=1e-3)
    read = 3 if isinstance(getattr(model, "schedule", None), GammaSchedule) else 0  # its numbers lie on the device
    assert found == [2 * read, 2 * read]
    steps(model, 1)
    with counted() as waits:  # and once for the images; before the first step for the nodules and what is asked of them
        (image,) = model.predict_step(Request([2], one))
    assert len(waits.found) == (3 if name == "nodules" else 1 + read)
    assert not isinstance(image, StandIn)


@pytest.mark.parametrize("name", ["autoregressive", "ddpm_2d", "ldm_2d", "line", "vdm", "vdm_latent", "vqgan"])
def test_surprise_is_that_of_the_cpu_and_of_each_image_alone(name: str) -> None:
    model, seeds, found = built(name).eval(), [5, 3], []
    images = noisy(2, model.needed_spec().size, 4)
    steps(model, 2)
    expected = model.surprise(images, seeds)
    alone = [model.surprise(images[i : i + 1], seeds[i : i + 1]) for i in range(2)]
    for measure, values in expected.items():
        torch.testing.assert_close(torch.cat([one[measure] for one in alone]), values, rtol=1e-3, atol=1e-4)
    model, on_device = moved(model), moved(images)
    for num in (4, 2):
        steps(model, num)
        with counted() as waits:
            surprise = model.surprise(on_device, seeds)
        found.append(len(waits.found))
    assert found[0] == found[1]
    for measure, values in expected.items():
        torch.testing.assert_close(surprise[measure].inner, values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ddpm_2d", "ldm_2d", "lsdm", "vdm"])
def test_completions_are_those_of_the_cpu_and_wait_no_more_in_more_steps(name: str) -> None:
    model, seeds, found = built(name).eval(), [5, 3], []
    spec = model.needed_spec()
    observed = (torch.arange(spec.size[-1]) > 6).expand(2, 1, *spec.size)
    given = Condition(label_map=maps(model), image=noisy(2, spec.size, 4), observed=observed)
    steps(model, 2)
    expected = model.sample(given, seeds)
    model = moved(model)
    for num in (4, 2):
        steps(model, num)
        with counted() as waits:
            completed = model.sample(given, seeds)
        found.append(len(waits.found) + len(waits.uploads))
    assert found[0] == found[1]
    torch.testing.assert_close(completed.inner, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noised", [False, True])
@pytest.mark.parametrize("name", ["ddpm_2d", "ldm_2d"])
def test_counterparts_are_those_of_the_cpu_and_wait_for_nothing(name: str, noised: bool) -> None:
    """From images on the CPU, as `anomalies` reads them."""
    model, seeds = built(name).eval(), [5, 3]
    images = noisy(2, model.needed_spec().size, 4)
    asked = Condition(dict.fromkeys(model.attributes, AGES["age_years"]))
    how = Resynthesis(0.4, 2, noised, 2.0)
    expected = model.counterparts(images, asked, seeds, how)
    model = moved(model)
    with counted() as waits:
        made = model.counterparts(images, asked, seeds, how)
    assert waits.found == []
    torch.testing.assert_close(made.inner, expected, rtol=1e-3, atol=1e-3)


@each_method
def test_validation_waits_for_its_results_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(name).eval()
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    if isinstance(model, AdversarialAutoencoder):
        people = noisy(12, model.needed_spec().size, 3)
        model._measures = {"psnr": PairedPSNR(), "ms_ssim": PairedMSSSIM()}
        model._views = AllViews(tuple(extractors("learned", people, 8).values()))
    facts = {"world_size": 1, "global_rank": 0, "num_val_batches": [2], "sanity_checking": False, "global_step": 1}
    model._trainer = type("Trainer", (), facts)
    sent, model = batch(model), moved(model)
    with torch.no_grad():
        with counted():
            model.on_validation_epoch_start()
        for num in range(2):
            with counted() as waits:
                model.validation_step(sent.to(DEVICE), num)
            assert waits.found == []
        with counted() as waits:
            model.on_validation_epoch_end()
    assert len(waits.found) <= 6
    names = ["loss"]
    if isinstance(model, AdversarialAutoencoder):
        names += ["psnr", "ms_ssim", "frechet", "perceptual", next(iter(model.bottleneck_scores))]
    for name in names:
        value = logged[f"val/{name}"]
        assert torch.as_tensor(value.inner if isinstance(value, StandIn) else value).isfinite()


def test_the_bound_of_absorbing_diffusion_waits_at_no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("absorbing").eval()
    for name in ("log", "log_dict"):
        monkeypatch.setattr(model, name, lambda *_, **__: None)
    model._trainer = type("Trainer", (), {"world_size": 1, "global_rank": 0, "num_test_batches": [1]})
    model, sent, model.process.num_levels = moved(model), moved(batch(model)), 5
    with counted() as waits, torch.no_grad():
        model.test_step(sent, 0)
    assert (waits.found, waits.uploads) == ([], [])


def test_completion_waits_for_the_places_of_given_slices_alone() -> None:
    model = built("cdpm").eval()
    image, observed = noisy(2, (16, 16, 16)), (torch.arange(16) % 4 == 0).expand(2, -1)
    expected = model.sample(Condition(image=image, observed=observed), [1, 2])
    condition, model = moved(Condition(image=image, observed=observed)), moved(model)
    with counted() as waits:
        found = model.sample(condition, [1, 2])
    assert len(waits.found) == 1
    torch.testing.assert_close(found.inner, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("revive_after", [0, 1])
def test_a_codebook_learns_without_waiting(ema_decay: float | None, revive_after: int) -> None:
    check_quantizer(NearestNeighbour(16, 4, ema_decay=ema_decay, revive_after=revive_after))


@pytest.mark.parametrize("pyramid", ["max", "nearest"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_label_map_modulates_without_waiting(dim: int, pyramid: Literal["max", "nearest"]) -> None:
    """One row without a map; the backward pass as well."""
    sizes: dict[str, Any] = {"channels": (4, 8), "attention": (False, True), "num_res_blocks": 1, "head_channels": 4}
    label_map = torch.randint(0, 3, (2, 1, *(16, 12, 8)[:dim]))
    label_map[1] = ABSENT_CLASS
    check_network(SemanticUNet(3, 4, pyramid, dim, **sizes), dim, Condition(label_map=label_map))


@pytest.mark.parametrize("dim", [2, 3])
def test_an_encoder_does_not_wait(dim: int) -> None:
    check_network(UNetEncoder(dim, 1, 2, (4, 8), (False, True), 1, 4, hidden=8), dim)


def check_network(network: torch.nn.Module, dim: int, *condition: Condition) -> None:
    """On the device it gives what it gives on the CPU, with its gradients, and waits for nothing."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    there, x, t = moved(deepcopy(network)), noisy(2, (8, 6, 4)[:dim]), torch.tensor([0.2, 0.7])
    expected = network(x, t, *condition)
    expected.square().sum().backward()
    inputs = [moved(part) for part in (x, t, *condition)]
    with counted() as waits:
        found = there(*inputs)
        found.square().sum().backward()
    assert (waits.found, waits.uploads) == ([], [])
    torch.testing.assert_close(found.detach().inner, expected.detach(), rtol=1e-4, atol=1e-4)
    for here, other in zip(network.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(other.grad.inner, here.grad, rtol=1e-3, atol=1e-3)


def test_finite_scalar_quantization_does_not_wait() -> None:
    check_quantizer(FSQ((4, 3, 5, 3)))


def check_quantizer(quantizer: Quantizer) -> None:
    """Two steps on the device are two on the CPU, and wait for nothing."""
    here, there = quantizer.train(), moved(deepcopy(quantizer)).train()
    for seed in range(2):
        latent = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        expected = here(latent)
        on_device = moved(latent).requires_grad_()
        with counted() as waits:
            torch.manual_seed(seed)
            found = there(on_device)
            (found.latent.sum() + found.loss).backward()
            again = there.embed(there.codes(on_device))
        assert (waits.found, waits.uploads) == ([], [])
        torch.testing.assert_close(found.latent.detach().inner, expected.latent.detach())
        assert torch.equal(found.codes.inner, expected.codes)
        assert again.shape == latent.shape
    for name, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].inner, value)


SCHEDULES: list[Schedule] = [LinearBeta(), ScaledLinearBeta(), Cosine()]
PURE_NOISE: list[Schedule] = [RectifiedFlow(2.0), ZeroTerminalSNR(Cosine())]
SAMPLERS: list[Callable[..., Sampler]] = [DDIM, Ancestral, Heun, DPMSolverPP2M, partial(DPMSolverPP2M, eta=1.0)]


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_walk_waits_for_nothing(make: Callable[..., Sampler]) -> None:
    """Nor does the denoiser, whatever the parametrisation."""
    torch.manual_seed(0)
    network = UNet(2, channels=(4,), attention=(False,), num_res_blocks=1, head_channels=4)
    x = torch.randn(2, 1, 4, 4)
    for spacing, schedule, parametrisation in zip(get_args(Spacing), cycle(SCHEDULES), cycle(("eps", "v", "x"))):
        denoiser = Denoiser(network, schedule, parametrisation)  # type: ignore[arg-type]
        expected = make(5, spacing)(Clipped(denoiser), x, noise=SeededNoise([1, 2]).like)
        there = moved(deepcopy(denoiser))
        with counted() as waits:
            found = make(5, spacing)(Clipped(there), moved(x), noise=SeededNoise([1, 2]).like)
        assert waits.found == []
        torch.testing.assert_close(found.inner, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("schedule", PURE_NOISE)
def test_guidance_along_the_flow_waits_for_nothing(schedule: Schedule, interval: tuple[float, float]) -> None:
    """Nor in an interval, within which alone the null is asked: its times are known without the device."""
    torch.manual_seed(0)
    network = UNet(2, channels=(4,), attention=(False,), num_res_blocks=1, head_channels=4)
    x, denoiser = torch.randn(2, 1, 4, 4), Denoiser(network, schedule, "velocity")
    for make in (FlowEuler, FlowHeun):
        expected = make(5)(Clipped(ClassifierFree(denoiser, 2.0, interval, 0.7)), x)
        there = ClassifierFree(moved(deepcopy(denoiser)), 2.0, interval, 0.7)
        with counted() as waits:
            found = make(5)(Clipped(there), moved(x))
            there(moved(x), moved(torch.tensor([0.2, 0.5])), Condition())
        assert waits.found == []
        torch.testing.assert_close(found.inner, expected, rtol=1e-4, atol=1e-4)


def test_a_coupling_waits_once() -> None:
    """For the assignment, which the CPU makes, and for the classes with it."""
    x, eps, age = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4), torch.tensor([40.0, 60, 70, torch.nan, 50, 80])
    coupling, condition = OptimalTransport({"age_years": [55, 65]}), Condition({"age_years": age, "sex": age % 4})
    expected = coupling(x, eps, coupling.classes(condition, x, ("age_years",), ("sex",)))
    there = moved(x)
    with counted() as waits:
        classes = coupling.classes(condition.to(DEVICE), there, ("age_years",), ("sex",))
        assert waits.found == []
        found = coupling(there, moved(eps), classes)
    assert len(waits.found) == 1
    assert waits.uploads == []
    torch.testing.assert_close(found.inner, expected, rtol=0, atol=0)


class Learned(Schedule):
    """A schedule with tensors of its own, which move with it."""

    t_min = 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor([10.0]))

    def formula(self, t: Tensor) -> Tensor:
        """A line."""
        return self.rate * (0.5 - t)

    def inverse(self, log_snr: Tensor) -> Tensor:
        """In closed form."""
        return 0.5 - log_snr / self.rate


def test_a_schedule_that_lives_on_the_device_is_asked_there() -> None:
    denoiser = moved(Denoiser(UNet(2, channels=(4,), attention=(False,), num_res_blocks=1, head_channels=4), Learned()))
    found = []
    for num in (4, 8):
        with counted() as waits, torch.no_grad():
            DPMSolverPP2M(num)(denoiser, moved(torch.randn(2, 1, 4, 4)))
        found.append(len(waits.found))
    assert found[0] == found[1] <= 3


@pytest.mark.parametrize("schedule", SCHEDULES + PURE_NOISE)
def test_schedules_do_not_wait_even_for_a_time_without_dimensions(schedule: Schedule) -> None:
    t = torch.tensor(0.3, dtype=torch.float64)
    there = moved(schedule)
    with counted() as waits:
        log_snr = there.log_snr(moved(t))
        back = there.time(log_snr)
        MinSNR()(moved(t), there, V())
        MinSNR()(moved(t), there, Velocity())
        there.derivatives(moved(t))
    assert waits.found == []
    torch.testing.assert_close(log_snr.inner, schedule.log_snr(t))
    torch.testing.assert_close(back.inner, t)


def test_heat_does_not_wait() -> None:
    images, level = noisy(2, (6, 8)), torch.tensor([3, 200])
    schedule = BlurSchedule()
    expected = dissipate(images, schedule.heat_time(level))
    with counted() as waits:
        found = dissipate(moved(images), moved(schedule).heat_time(level.to(DEVICE, non_blocking=True)))
        schedule.sigma(moved(level[0]))
    assert waits.found == []
    torch.testing.assert_close(found.inner, expected)


@pytest.mark.parametrize("size", [(16, 24), (16, 8, 24)])
def test_discriminator_and_augmentation_do_not_wait(size: tuple[int, ...]) -> None:
    images, random = noisy(3, size), torch.rand(3, 2 + len(size), generator=torch.Generator().manual_seed(0))
    discriminator = PatchDiscriminator(len(size), 1, 4, 1)
    expected = diff_augment(images, random)
    on_device = moved(images).requires_grad_()
    with counted() as waits:
        found = diff_augment(on_device, moved(random))
        moved(discriminator)(found).mean().backward()
    assert (waits.found, waits.uploads) == ([], [])
    torch.testing.assert_close(found.detach().inner, expected)


@pytest.mark.parametrize("size", [(16, 16), (12, 14, 16)])
def test_paired_scores_do_not_wait_until_they_are_read(size: tuple[int, ...]) -> None:
    outputs, targets = noisy(3, size), noisy(3, size, 1)
    for metric in (PairedPSNR(), PairedSSIM(), PairedMSSSIM(), perceptual("learned", noisy(8, size, 2))):
        expected = metric.values(outputs, targets)
        metric = moved(metric)
        with counted() as waits:
            metric.update(moved(outputs), moved(targets))
        assert waits.found == []
        torch.testing.assert_close(metric.found[0].inner.float(), expected.float(), rtol=1e-4, atol=1e-5)


def test_a_report_is_computed_on_the_device(tmp_path: Path) -> None:
    """The same numbers as on the CPU, and what comes back grows with the number of images, not with that of pairs."""
    spec = DataSpec(1, (8, 9, 10), (1.0,) * 3)
    people: Any = SimpleNamespace(anatomy="", digest="", cache=tmp_path, spec=spec)
    people.images = lambda split, **_: Images(
        list("abc"), list("abc"), lambda indices: noisy(3, (8, 9, 10), 1 if split == "train" else 2)[list(indices)]
    )
    samples, maker = Images.of(noisy(3, (8, 9, 10), 3)), Maker(seams=(2, [4]))
    expected = evaluate(samples, people, tmp_path / "cpu", maker, features="none")
    with counted() as waits:
        found = evaluate(samples, people, tmp_path / "device", maker, features="none", device=DEVICE)
    for name, row in expected["metrics"].items():
        wanted = [row["value"], *row["ci95"], row["real_vs_real"], expected["nulls"]["noise"][name]]
        row = found["metrics"][name]
        assert [row["value"], *row["ci95"], row["real_vs_real"], found["nulls"]["noise"][name]] == pytest.approx(wanted)
    sets, of_pairs = 5, [wait for wait in waits.found if "ms_ssim.py" in wait]
    assert 0 < len(of_pairs) < 8 * sets * 3  # rows of two matrices, and a few looks for the nearest


class Classifier:
    """Six classes by six voxels."""

    name = "six voxels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :6]

    def probabilities(self, images: Tensor) -> Tensor:
        """n 6."""
        return self(images).softmax(1)


def test_scores_of_samples_are_those_of_the_cpu() -> None:
    """Every score of `lit_medgen.metrics`, on images of the device."""
    samples, real, train = (noisy(num, (14, 15, 16), seed) for seed, num in enumerate((9, 8, 12)))
    features = AllViews(tuple(extractors("learned", train, 8).values()))
    arguments: dict[str, tuple[Any, ...]] = {
        "ModeSpread": (torch.randn(3, 14 * 15 * 16),),
        "SeamRatio": (0, [3, 7]),
        "InceptionScore": (Classifier(),),
        **dict.fromkeys(
            ("FrechetDistance", "KernelDistance", "Precision", "Recall", "Density", "Coverage"), (features,)
        ),
    }
    for name, kind in vars(metrics).items():
        if not isinstance(kind, type) or not issubclass(kind, TwoSampleMetric) or kind is TwoSampleMetric:
            continue
        here, there = kind(*arguments.get(name, ())), moved(kind(*arguments.get(name, ())))
        for metric, change in ((here, lambda x: x), (there, moved)):
            metric.update(change(samples), real=False)
            metric.update(change(real), real=True)
        expected = here.estimate()
        with counted():
            found = there.estimate()
        assert found.value == pytest.approx(expected.value, rel=1e-4, abs=1e-5), name
        assert found.ci95 == pytest.approx(expected.ci95, rel=1e-3, abs=1e-4), name


def test_batches_and_noise_are_sent_without_waiting() -> None:
    sets = batch(built("cdpm"))
    with counted() as waits:
        sent = sets.to(DEVICE)
        condition = sets.condition.to(DEVICE)
        noise, uniform = SeededNoise([1, 2]), SeededNoise([1, 2])
        draws = [noise.like(sent.image) for _ in range(3)]
        numbers = uniform.uniform((3,), like=sent.image)
    assert (waits.found, waits.uploads) == ([], [])
    assert sent.condition.observed is not None
    assert condition.observed is not None
    devices = {sent.image.device, sent.condition.observed.device, condition.observed.device, numbers.device}
    assert devices == {DEVICE}
    again = SeededNoise([1, 2])
    for draw in draws:
        assert torch.equal(draw.inner, again.like(sets.image))


def test_a_progress_bar_reads_losses_where_they_are_logged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would wait for the device; on a CPU there is nothing to wait for."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, log_every_n_steps=3)
    reads = iter(range(10))
    monkeypatch.setattr(L.Trainer, "progress_bar_metrics", property(lambda _: {"loss": next(reads)}))
    trainer.state.fn, trainer.training = TrainerFn.FITTING, True

    def seen(step: int) -> float:
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        return trainer.progress_bar_metrics["loss"]

    assert [seen(step) for step in range(3)] == [0, 1, 2]
    trainer.strategy._root_device = DEVICE
    assert [seen(step) for step in range(2, 9)] == [3, 3, 3, 4, 4, 4, 5]


def test_the_stand_in_finds_what_a_gpu_would_suffer_from() -> None:
    here, there = torch.arange(6.0), moved(torch.arange(6.0))
    for mixture in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[moved(torch.tensor([1]))]):
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            mixture()
    assert torch.equal((there + torch.tensor(1.0)).inner, here + 1)  # a number is not refused
    waiting: list[Callable[[], Any]] = [
        lambda: there[0].item(),
        lambda: bool(there.any()),
        lambda: there[there[2].long()],
        lambda: there.tolist(),
        lambda: there.cpu(),
        lambda: there[there > 2],
        lambda: there.nonzero(),
        lambda: there.long().bincount(),
        lambda: torch.linalg.inv(torch.diag(there + 1)),
    ]
    for wait in waiting:
        with counted() as waits:
            wait()
        assert waits.found
    uploading: list[Callable[[], Any]] = [
        lambda: here.to(DEVICE),
        lambda: torch.tensor([1.0], device=DEVICE),
        lambda: there[[0, 1]],
    ]
    for upload in uploading:
        with counted() as waits:
            upload()
        assert len(waits.uploads) == 1
    with counted() as waits:
        torch.where(there > 2, there, torch.zeros(6, device=DEVICE)).masked_fill_(there > 3, 0)
        here.to(DEVICE, non_blocking=True)
    assert (waits.found, waits.uploads) == ([], [])
