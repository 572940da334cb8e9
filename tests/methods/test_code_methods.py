"""IHDM, absorbing diffusion and VQGAN: losses in closed form, windows, discriminators that wait."""

from __future__ import annotations

import csv
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun, first_stage, one_line
from torch import Tensor, nn

import lit_medgen
from lit_medgen.batch import Batch, Condition, DataSpec, Images
from lit_medgen.checkpoints import num_bytes
from lit_medgen.errors import InputError
from lit_medgen.methods import IHDM, VQGAN, Absorbing
from lit_medgen.methods.absorbing import windows
from lit_medgen.methods.code_maps import TransformerSize
from lit_medgen.metrics import PairedMSSSIM, PairedPSNR, frechet_distance
from lit_medgen.metrics.extractors import AllViews, extractors
from lit_medgen.metrics.paired import spectral_distance
from lit_medgen.networks import Autoencoder, Covariates, NearestNeighbour, PatchDiscriminator
from lit_medgen.networks.quantizer import perplexity
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.conditional import Conditioning

SMALL = TransformerSize(16, 2, 1)
AGED = replace(SMALL, covariates=Covariates(("age_years",)))


@pytest.fixture(scope="module")
def vqgan(phantoms: Path) -> VQGAN:
    model = lit_medgen.load(first_stage(phantoms))
    assert isinstance(model, VQGAN)
    return model


def built(model: Any, vqgan: VQGAN) -> Any:
    """A second stage on a first one, without a trainer."""
    torch.manual_seed(0)
    model.spec = vqgan.spec
    model.take_parts(first_stage=vqgan)
    return model.eval()


def batch(num: int = 6) -> Batch:
    images = torch.rand(num, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(image=images, key=["key"] * num, affine=torch.eye(4).expand(num, 4, 4))


def silent(model: Any) -> None:
    """All codes are as likely."""
    nn.init.zeros_(model.network.head.weight)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("elbo", lambda t, masked: 8 / t * masked / 64),
        ("reweighted_elbo", lambda t, masked: (8 - t + 1) / 8 * masked / 64),
        ("mlm", lambda t, masked: torch.ones_like(masked)),
    ],
)
def test_absorbing_losses_of_a_silent_network(kind: Any, weight: Any, vqgan: VQGAN, monkeypatch: Any) -> None:
    """Every masked place costs ln K, so the loss is its weight."""
    model = built(Absorbing("", 8, 8, kind, network=SMALL), vqgan)
    silent(model)
    seen: dict[str, Tensor] = {}
    corrupt = model.process.corrupt

    def watched(codes: Tensor, level: Tensor) -> Tensor:
        seen["level"], seen["state"] = level, corrupt(codes, level)
        return seen["state"]

    monkeypatch.setattr(model.process, "corrupt", watched)
    torch.manual_seed(0)
    losses = model.loss(batch())
    masked = (seen["state"] == 16).flatten(1).sum(1).float()
    expected = (weight(seen["level"], masked) * math.log(16)).mean()
    torch.testing.assert_close(losses["loss"], expected)
    bits = (8 / seen["level"] * masked).mean() / 64 * math.log2(16)
    torch.testing.assert_close(losses["bits_per_dim"], bits)


def test_ihdm_loss_of_a_silent_network(vqgan: VQGAN) -> None:
    model = built(IHDM("", network=SMALL), vqgan)
    silent(model)
    assert model.loss(batch())["loss"].item() == pytest.approx(math.log(16), abs=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: Absorbing("", 8, 8, "mlm", network=AGED), lambda: IHDM("", num_steps=4, network=AGED)]
)
def test_errors_of_predictions_are_the_loss(make: Any, vqgan: VQGAN) -> None:
    """At the same noise and levels; so the condition alarm measures what is trained."""
    model = built(make(), vqgan)
    images = replace(batch(), condition=Condition({"age_years": torch.linspace(60, 80, 6)}))
    torch.manual_seed(1)
    expected = model.loss(images)["loss"]
    torch.manual_seed(1)
    probabilities, errors = model.prediction(images, model.scaled(images.condition))
    torch.testing.assert_close(errors.mean(), expected)
    totals = probabilities.sum(-1)
    assert torch.isclose(totals, totals.round(), atol=1e-5).all()  # 1 where a code is hidden, else 0
    assert totals.round().unique().tolist() in ([1.0], [0.0, 1.0])


def test_ihdm_learns_the_last_level_alone_unless_it_takes_several_steps(vqgan: VQGAN, monkeypatch: Any) -> None:
    for num_steps, expected in ((1, {200}), (4, set(range(1, 201)))):
        model, levels = built(IHDM("", num_steps=num_steps, network=SMALL), vqgan), []
        corrupt = model.process.corrupt
        monkeypatch.setattr(
            model.process, "corrupt", lambda c, t, levels=levels, f=corrupt: levels.append(t) or f(c, t)
        )
        model.loss(batch(200))
        assert set(levels[0].tolist()) == expected


def test_one_network_evaluation_per_step(vqgan: VQGAN) -> None:
    for model, steps in (
        (IHDM("", network=SMALL), 1),
        (IHDM("", num_steps=5, network=SMALL), 5),
        (Absorbing("", 16, 16, network=SMALL), 16),
    ):
        method = built(model, vqgan)
        if isinstance(method, IHDM):
            method.prior = torch.randn(3, 4, 8, 8)
        calls: list[int] = []
        method.network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert method.sample(Condition(), [0, 1]).shape == (2, 1, 16, 16)
        assert len(calls) == steps
        assert len(method.trajectory(Condition(), 0)) == min(steps, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Absorbing("", 8, 8, network=SMALL),
        lambda: IHDM("", num_steps=4, num_priors=3, network=SMALL),
        lambda: Absorbing("", 8, 8, network=AGED, conditioning=Conditioning(guidance_scale=2.0)),
    ],
)
def test_a_sample_depends_on_its_seed_and_condition_alone(make: Any, vqgan: VQGAN) -> None:
    model = built(make(), vqgan)
    if isinstance(model, IHDM):
        model.prior = torch.randn(3, 4, 8, 8)
    ages = torch.tensor([60.0, 80.0, 70.0])
    three = model.sample(Condition(attributes={"age_years": ages}), [4, 5, 6])
    for i, seed in enumerate((4, 5, 6)):
        alone = model.sample(Condition(attributes={"age_years": ages[i : i + 1]}), [seed])
        torch.testing.assert_close(three[i : i + 1], alone, atol=1e-4, rtol=0)
    assert not torch.allclose(three[0], three[1], atol=1e-2)


@pytest.mark.parametrize("space", ["embedding", "index"])
def test_priors_are_drawn_by_seed(space: Any, vqgan: VQGAN) -> None:
    model = built(IHDM("", space=space, network=SMALL, sigma=0.0, num_priors=5), vqgan)
    channels = 4 if space == "embedding" else 1
    model.prior = torch.arange(5.0).view(5, 1, 1, 1).expand(5, channels, 8, 8)
    start = model.start(SeededNoise(range(100)), 100)
    which = start.flatten(1)[:, 0]
    assert set(which.tolist()) == {0, 1, 2, 3, 4}
    assert (start.flatten(1) == which[:, None]).all()


def test_windows_cover_and_overlap_by_half() -> None:
    found = windows((10, 8), (4, 8))
    assert [(a.start, b.start) for a, b in found] == [(0, 0), (2, 0), (4, 0), (6, 0)]
    assert [(a.start, a.stop) for (a,) in windows((11,), (4,))] == [(0, 4), (2, 6), (4, 8), (6, 10), (7, 11)]


def test_larger_maps_by_windows(vqgan: VQGAN) -> None:
    model = built(Absorbing("", 4, 4, canvas=(12, 8), network=SMALL), vqgan)
    assert model.sample(Condition(), [0]).shape == (1, 1, 24, 16)
    state = torch.full((1, 12, 8), model.process.mask)
    state[0, 0, 0] = 3
    with torch.no_grad():
        logits = model.guided_logits(state, torch.tensor([4]), Condition(), 1.0)
        first, second = (model.network(state[:, part], torch.zeros(1)) for part in (slice(0, 8), slice(4, 12)))
    torch.testing.assert_close(logits[:, :4], first[:, :4])
    torch.testing.assert_close(logits[:, 4:8], (first[:, 4:] + second[:, :4]) / 2)


def test_guidance_acts_in_its_interval_alone(vqgan: VQGAN) -> None:
    """At levels outside it the network is asked once, so a guided sample costs less."""
    conditioning = Conditioning(guidance_scale=2.0, guidance_interval=(0.25, 0.5))
    model, calls = built(Absorbing("", 8, 8, network=AGED, conditioning=conditioning), vqgan), []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.sample(Condition({"age_years": torch.tensor([70.0])}), [0])
    assert len(calls) == 8 + 2  # levels 3 and 4 of 8
    with pytest.raises(ValueError, match="guidance_rescale"):
        Absorbing("", 8, 8, network=AGED, conditioning=Conditioning(guidance_rescale=0.5))


def test_canvas_smaller_than_the_maps_is_refused(vqgan: VQGAN) -> None:
    model = built(Absorbing("", 4, 4, canvas=(4, 8), network=SMALL), vqgan)
    with pytest.raises(InputError, match="canvas"):
        model.check(vqgan.needed_spec())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Absorbing("", 8, 9), "num_steps is 9"),
        (lambda: IHDM("", num_steps=201), "num_steps is 201"),
        (lambda: IHDM("", num_steps=0), "num_steps is 0"),
        (lambda: IHDM("", num_priors=0), "num_priors is 0"),
        (lambda: IHDM("", temperature=-1.0), "temperature"),
        (lambda: VQGAN(Autoencoder(latent_channels=4), NearestNeighbour(8, 5)), "latent_channels is 4"),
    ],
)
def test_impossible_values_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def small_vqgan(**more: Any) -> VQGAN:
    torch.manual_seed(0)
    network = Autoencoder(2, 1, 4, (8, 8), (False, False), 1, 8)
    return VQGAN(network, NearestNeighbour(16, 4), PatchDiscriminator(2, 1, 4, 1), features="none", **more)


def test_learned_features_are_a_loss_and_a_score(tmp_path: Path, phantoms: Path) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/vqgan.yaml",))
    eight = ["--data.init_args.fractions=[0.34,0.33,0.33]", "--data.init_args.view.init_args.per_person=8"]
    assert run.fit("--model.init_args.features=learned", *eight) == 0
    with next(run.folder.glob("*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/perceptual", "val/perceptual", "val/frechet", "val/psnr", "val/ms_ssim", "val/code_usage"):
        assert [float(row[name]) for row in rows if row[name]], name
    assert len(list(run.folder.glob("*/plots/code_usage_step_0000002.png"))) == 1
    kept = torch.load(run.last, weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in kept} == {"network", "quantizer", "discriminator"}  # not the features


def test_processes_send_scores_of_images_rather_than_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of two processes are those of all their images, and a process without images has no say."""
    model, logged, sent = small_vqgan().eval(), {}, []
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr("lit_medgen.metrics.extractors.NUM_STEPS", 2)
    people, images = torch.rand(12, 1, 16, 16), torch.rand(10, 1, 16, 16) * 2 - 1
    model._measures = {"psnr": PairedPSNR(), "ms_ssim": PairedMSSSIM()}
    model._views = AllViews(tuple(extractors("learned", people, 8).values()))
    model._trainer = type("Trainer", (), {"world_size": 3, "global_rank": 0, "num_val_batches": [3]})

    def gather(shares: list[Any], share: Any) -> None:
        sent.append(num_bytes(list(share)))
        shares[:] = [share, share, (torch.zeros(16), {name: [] for name in share[1]})]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    model.on_validation_epoch_start()
    with torch.no_grad():
        for place, part in enumerate(images.split(4)):
            model.validation_step(Batch(part, ["a"] * len(part), torch.eye(4).expand(len(part), 4, 4)), place)
        model.on_validation_epoch_end()
        outputs = model.reconstruct(images)
    assert sent[0] < images.nbytes / 4
    for name, metric in (("psnr", PairedPSNR()), ("ms_ssim", PairedMSSSIM())):
        metric.update(outputs, images)
        assert logged[f"val/{name}"].item() == pytest.approx(metric.compute().item(), rel=1e-5)
    twice = [model._views(x).double().repeat(2, 1) for x in (outputs, images)]
    assert logged["val/frechet"].item() == pytest.approx(frechet_distance(*twice).item(), rel=1e-4)
    assert model.code_counts.sum() == 2 * model.codes(images).numel()


def test_features_are_learned_once_on_each_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its first process, while the others wait at a barrier; then they read what it kept."""
    events: list[str] = []
    monkeypatch.setattr("lit_medgen.metrics.extractors._teach", lambda *_: events.append("taught"))
    numbers = [str(number) for number in range(9)]
    images = Images(numbers, numbers, torch.rand(9, 1, 16, 16).__getitem__)
    data = type("Data", (), {"images": lambda *_, **__: images, "cache": tmp_path})

    def setup(local_rank: int, barrier: Any) -> None:
        model = small_vqgan()
        model.features = "learned"
        strategy = type("Strategy", (), {"barrier": staticmethod(barrier)})
        facts = {"local_rank": local_rank, "datamodule": data(), "strategy": strategy, "precision": "32-true"}
        model._trainer = type("Trainer", (), facts)
        model.setup("fit")
        assert model._perceptual
        events.append(f"process {local_rank} has features")

    def barrier(name: str) -> None:
        if "first" not in events:
            events.append("first")
            setup(0, lambda name: None)

    setup(1, barrier)
    assert events == ["first", "taught", "taught", "process 0 has features", "process 1 has features"]


def test_discriminator_waits(tmp_path: Path, phantoms: Path) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/vqgan.yaml",))
    assert run.fit("--model.init_args.discriminator_start=2", "--trainer.max_steps=2") == 0
    early = torch.load(run.last, weights_only=True)
    assert run.fit("--ckpt_path=last", "--model.init_args.discriminator_start=2", "--trainer.max_steps=4") == 0
    late = torch.load(run.last, weights_only=True)
    assert not early["optimizer_states"][1]["state"]
    assert [state["state"][0]["step"].item() for state in late["optimizer_states"]] == [4, 2]


def test_discriminator_weight_balances_the_gradients_of_the_last_layer() -> None:
    model = small_vqgan(discriminator_start=0, max_discriminator_weight=1e9).train()
    output = model.network.decode(torch.randn(2, 4, 8, 8))
    ours, theirs = 3.0 * output.square().mean(), -0.01 * model.discriminator(output).mean()
    weight = model._discriminator_weight(ours, theirs)
    gradient = [torch.autograd.grad(loss, model.network.last_layer, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(weight, gradient[0].norm() / (gradient[1].norm() + 1e-4))
    model.max_discriminator_weight = 0.5
    assert model._discriminator_weight(ours, 1e-6 * theirs).item() == 0.5


def test_hinge_loss_in_closed_form() -> None:
    model = small_vqgan()
    model.discriminator = nn.Identity()  # type: ignore[assignment]
    model.output = torch.tensor([-2.0, 0.5]).view(2, 1, 1, 1)
    real = Batch(image=torch.tensor([2.0, 0.0]).view(2, 1, 1, 1), key=[], affine=torch.eye(4))
    losses = model.discriminator_loss(real)
    assert losses["discriminator_loss"].item() == pytest.approx((0.5 + 0.75) / 2)  # means of (0, 1) and of (0, 1.5)


def test_perplexity_and_spectral_distance() -> None:
    assert perplexity(torch.tensor([5, 5, 5, 5, 0])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([7, 0])).item() == pytest.approx(1)
    image = torch.rand(2, 1, 8, 8)
    assert spectral_distance(image, image.roll(3, 2)).item() == pytest.approx(0, abs=1e-10)  # blind to shifts
    assert spectral_distance(image, image.flip(0)).item() > 1e-4


def test_wrong_size_is_one_line(tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/vqgan.yaml",))
    assert run.fit("--data.init_args.preprocessing.size=[17,16,16]") == 2
    assert "images are 17 x 16" in one_line(capsys)
    assert run.fit("--data.init_args.view=null") == 2
    assert "images are 16 x 16 x 16" in one_line(capsys)


def test_cdpm_and_vqgan_tell_their_data_apart(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms)
    one_slice = '{"class_path": "data_modules.OneSlice"}'
    assert run.fit(f"--data.init_args.view={one_slice}") == 2
    assert "cDPM needs sets of slices" in one_line(capsys)


def test_vqgan_in_3d() -> None:
    torch.manual_seed(0)
    model = VQGAN(
        Autoencoder(3, 1, 4, (8, 8), (False, False), 1, 8),
        NearestNeighbour(16, 4),
        features="none",
        discriminator_start=10,
    )
    model.check(DataSpec(1, (8, 8, 8), (1.0, 1.0, 1.0)))
    images = torch.rand(2, 1, 8, 8, 8)
    assert model.codes(images).shape == (2, 4, 4, 4)
    assert model.reconstruct(images).shape == images.shape
    assert model.loss(Batch(images, ["a", "b"], torch.eye(4).expand(2, 4, 4)))["loss"].isfinite()


def test_images_decoded_in_slabs_are_those_of_one_piece(vqgan: VQGAN) -> None:
    latents = 3 * torch.randn(2, *vqgan.latent_shape)
    with torch.no_grad():
        expected = vqgan.decode(latents)
    assert (vqgan.decode_in_slabs(latents, 3) - expected).abs().max() < 1e-5
    other = deepcopy(vqgan)
    other.network = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"VQGAN decodes in one piece only; leave model.init_args.slabs out"):
        other.decode_in_slabs(latents, 3)
