"""Laws of the upscaler: tiles and whole images, the noise level it reads, patches, and cascades."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from lit_medgen import cascades
from lit_medgen.batch import Batch, Condition, DataSpec, Images
from lit_medgen.diffusion import DDIM, Cosine, DPMSolverPP2M, ParametrisationName, ScaledLinearBeta
from lit_medgen.errors import InputError
from lit_medgen.evaluation.pair_nulls import PairNulls
from lit_medgen.evaluation.scores import Given, of_pairs
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.resampling import block_means, interpolated
from lit_medgen.methods import DDPM, Upscaler
from lit_medgen.metrics.known import Known
from lit_medgen.networks import Covariates, UNet
from lit_medgen.requests import RequestOptions, requested
from lit_medgen.sampling import origin

TOLD = Covariates(numbers=["noise_level"])


def network(dim: int = 2, **arguments: Any) -> UNet:
    """A small one that says something from the start."""
    torch.manual_seed(0)
    found = UNet(dim, 2, 1, [8, 8], [False, False], 1, 8, **{"covariates": TOLD} | arguments)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.1)
    return found


class Shown(nn.Module):
    """Expects what it is shown: a part of x_t and the low resolution, or the mean of its neighbours in both."""

    covariates = TOLD

    def __init__(self, share: float = 0.0, smooth: bool = False) -> None:
        super().__init__()
        self.share, self.smooth = share, smooth

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = self.share * x[:, :1] + x[:, 1:]
        return avg_pool2d(pad(x, [1, 1, 1, 1], mode="replicate"), 3, stride=1) if self.smooth else x


class Silent(nn.Module):
    """Says nothing, as a network does before its first step."""

    covariates = TOLD

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(x[:, :1])


def built(net: nn.Module | None = None, dim: int = 2, side: int = 16, **arguments: Any) -> Upscaler:
    model = Upscaler(net or network(dim), **{"sampler": DDIM(3)} | arguments)
    model.spec = DataSpec(1, (side,) * dim, (2.0,) * dim)
    model.check(model.spec)
    return model.eval()


def noisy(num: int, *size: int, seed: int = 0) -> Tensor:
    return torch.rand(num, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch(images: Tensor) -> Batch:
    return Batch(images, ["key"] * len(images), torch.eye(4).expand(len(images), 4, 4))


@pytest.mark.parametrize("dim", [2, 3])
def test_one_tile_that_covers_all_is_the_whole_image(dim: int) -> None:
    low, size = Condition(source=noisy(2, *(4,) * dim)), (8,) * dim
    whole = built(dim=dim, side=8).sample(low, [1, 2])
    assert whole.shape == (2, 1, *size)
    assert torch.equal(built(dim=dim, side=8, patch=list(size)).sample(low, [1, 2]), whole)
    tiled = built(dim=dim, side=8, patch=4).sample(low, [1, 2])
    assert (tiled - whole).abs().max() > 1e-4


def test_tiles_leave_no_seams() -> None:
    """Neighbours differ as much at the ends of tiles as inside: the ratio is between 0.9 and 1.1."""
    model = built(Shown(0.5, smooth=True), side=40, patch=16, sampler=DDIM(8), parametrisation="x", max_noise=0.5)
    sample = model.sample(Condition(source=noisy(40, 20, 20) / 2), list(range(40)))
    steps = sample.diff(dim=2).square().mean((0, 1, 3))
    ends = [11, 23, 15, 27]  # the tiles are 0 to 15, 12 to 27 and 24 to 39
    phase = [i for i in range(3, 36, 2) if i not in ends]  # as the ends, between two voxels of the low resolution
    assert 0.9 < (steps[ends].mean() / steps[phase].mean()).item() < 1.1


def test_an_image_depends_on_its_seed_and_its_low_resolution_alone() -> None:
    model, low = built(patch=8, noise_level=0.2), noisy(3, 8, 8)
    together = model.sample(Condition(source=low), [5, 6, 7])
    alone = torch.cat([model.sample(Condition(source=low[[i]]), [5 + i]) for i in (0, 1, 2)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert (model.sample(Condition(source=low[[1, 1]]), [6, 8]).diff(dim=0)).abs().max() > 1e-3


def test_what_expects_the_low_resolution_makes_its_interpolation() -> None:
    model, low = built(Shown(), patch=8, parametrisation="x"), noisy(2, 8, 8)
    expected = interpolated(low, (16, 16), "cubic").clamp(-1, 1)
    torch.testing.assert_close(model.sample(Condition(source=low), [1, 2]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parametrisation", ["eps", "v", "x"])
def test_a_guess_alone_samples_gaussians_around_the_low_resolution(parametrisation: ParametrisationName) -> None:
    """The guess is the exact denoiser of such images, where the network adds nothing to it."""
    arguments: dict[str, Any] = {"parametrisation": parametrisation, "schedule": Cosine(), "side": 32}
    model = built(Silent(), residual_std=0.1, sampler=DPMSolverPP2M(20), **arguments)
    low = noisy(4, 16, 16) / 2
    apart = model.sample(Condition(source=low), [1, 2, 3, 4]) - interpolated(low, (32, 32), "cubic")
    assert apart.mean().item() == pytest.approx(0, abs=0.01)
    assert apart.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_guess_knows_how_noisy_the_low_resolution_is() -> None:
    """From the low resolution alone, and from x_t alone, by the precision of each (here equal)."""
    model = built(residual_std=1e-6, max_noise=0.5, parametrisation="x", schedule=ScaledLinearBeta())
    x_t, t = noisy(2, 16, 16), torch.full((2,), 0.4)
    given = model.at_level(Condition(source=noisy(2, 16, 16, seed=1)), t, noisy(2, 16, 16, seed=2))
    alpha = model.denoiser.schedule.alpha(t)[0]
    expected = (given.source + x_t) / (2 * alpha)  # type: ignore[operator]
    torch.testing.assert_close(model.denoiser.guess(x_t, t, given)[0], expected, rtol=1e-4, atol=1e-4)


# The noise level.


def test_images_change_with_the_noise_level_and_the_network_reads_it() -> None:
    low = Condition(source=noisy(2, 8, 8))
    samples = [built(noise_level=level).sample(low, [1, 2]) for level in (0.0, 0.1, 0.3)]
    apart = [(sample - samples[0]).abs().mean().item() for sample in samples[1:]]
    assert 1e-3 < apart[0] < apart[1]
    model, (x, t) = built(), (noisy(2, 16, 16), torch.full((2,), 0.5))
    given = model.scaled(Condition(source=noisy(2, 16, 16, seed=1)))
    level, clean = torch.full((2,), 0.2), torch.zeros(2, 1, 16, 16)
    told = [model.at_level(given, each, clean).attributes for each in (level, 0 * level)]
    read = [model.denoiser.predict(x, t, replace(given, attributes=attributes)) for attributes in told]
    assert (read[0] - read[1]).abs().mean() > 1e-4


def test_a_network_that_starts_deaf_learns_to_read_the_noise_level() -> None:
    torch.manual_seed(0)
    model = built(UNet(2, 2, 1, [8, 8], [False, False], 1, 8, covariates=TOLD), patch=8).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(batch(noisy(4, 16, 16)))["loss"].backward()
        optimizer.step()
    assert model.denoiser.network.encoder.out.weight.abs().max() > 0


def test_the_condition_alarm_measures_the_low_resolution_and_its_noise_level() -> None:
    model = built(patch=8)
    choices = list(model.swapped_groups.values())
    assert choices == [("source",), ("noise_level",)]
    with model.as_in_evaluation():
        source, level = model._swaps(batch(noisy(4, 16, 16)), choices, "test", 0)
        again = model._swaps(batch(noisy(4, 16, 16)), choices, "test", 0)[0]
    assert source.differs.all()
    assert level.differs.all()
    assert min(source.change.min().item(), level.change.min().item()) > 1e-4
    assert torch.equal(source.change, again.change)


def test_guidance_keeps_the_low_resolution_and_its_noise_level() -> None:
    both = Condition({"noise_level": torch.ones(2), "age": torch.ones(2)}, source=noisy(2, 8, 8))
    null = both.drop(torch.tensor([True, True]), Upscaler.kept)
    assert null.attributes["noise_level"].isfinite().all()
    assert null.attributes["age"].isnan().all()
    assert null.source is not None
    assert null.source.isfinite().all()


def test_an_argument_about_noise_that_was_trained_otherwise_is_refused() -> None:
    facts = built(max_noise=0.2).facts()
    with pytest.raises(InputError, match=r"max_noise is 0.35, but this model was trained with 0.2"):
        built().restore(facts)
    built(max_noise=0.2, noise_level=0.1, patch=8).restore(facts)


# Training.


@pytest.mark.parametrize("dim", [2, 3])
def test_patches_are_the_same_place_of_image_and_low_resolution(dim: int) -> None:
    model, size = built(dim=dim, side=8, factor=2, patch=[4, 6, 8][:dim]), (8,) * dim
    places = torch.arange(float(8**dim)).view(1, 1, *size).expand(50, -1, *[-1] * dim)
    torch.manual_seed(0)
    found = model.patches(batch(places))
    low = interpolated(block_means(places, (2,) * dim), size, "cubic")
    firsts = set()
    for image, source in zip(found.image, found.condition.source, strict=True):  # type: ignore[arg-type]
        first = tuple(int(each) for each in np.unravel_index(int(image.flatten()[0]), size))
        window = (0, *(slice(a, a + side) for a, side in zip(first, image.shape[1:], strict=True)))
        assert torch.equal(image[0], places[0][window])
        torch.testing.assert_close(source[0], low[0][window])
        firsts.add(first)
    assert len({first[0] for first in firsts}) == 5  # every one of 0 to 4
    assert len({first[1] for first in firsts}) == 3


def test_a_loss_is_a_function_of_the_seed() -> None:
    model, found = built(patch=8).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model.loss(batch(noisy(4, 16, 16)))["loss"].item())
    assert found[0] == found[1] != found[2]


def test_low_resolutions_are_noised_up_to_the_maximum() -> None:
    model = built(max_noise=0.3)
    torch.manual_seed(0)
    found = model.noised(model.scaled(Condition(source=torch.zeros(4000, 1, 4, 4))))
    assert found.source is not None
    share = found.attributes["noise_level"]
    assert (share.min().item(), share.max().item()) == pytest.approx((0, 1), abs=0.01)
    noisiest = found.source[share > 0.95].std().item()
    assert noisiest == pytest.approx(model.denoiser.schedule.sigma(torch.tensor(0.29)).item(), rel=0.05)
    assert found.source[share < 0.05].std() < 0.2 * noisiest


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"factor": 3}, r"factor is 3, but images are 16 x 16; give whole numbers that divide"),
        ({"factor": [2, 2, 2]}, r"factor is \[2, 2, 2\], but images are 16 x 16; give one for each axis"),
        ({"patch": 24}, r"patch is 24, but images are 16 x 16; give 1 at least, and no more than that"),
        ({"patch": 0}, r"patch is 0, but images are 16 x 16; give 1 at least"),
        ({"factor": 1}, r"factor is 1, which makes no image finer"),
        ({"noise_level": 0.5}, r"noise_level is 0.5 and max_noise 0.35"),
        ({"residual_std": 0.0}, r"residual_std is 0.0; give a number above 0"),
        ({"overlap": 1.0}, r"overlap is 1.0; give a share"),
        ({"net": UNet(2, 1, 1, [8, 8], [False, False], 1, 8, covariates=TOLD)}, r"in_channels is 1, but patches"),
        ({"net": UNet(2, 2, 1, [8, 8], [False, False], 1, 8)}, r"add noise_level to the numbers of its covariates"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, ValueError), match=words):
        built(**arguments)


def test_low_resolutions_of_another_size_are_refused() -> None:
    for low in (noisy(1, 16, 16), noisy(1, 4, 8)):
        with pytest.raises(InputError, match=r"condition.source is \(1, .*expected \(1, 8, 8\)"):
            built().sample(Condition(source=low), [1])
    with pytest.raises(InputError, match="source is missing"):
        built().sample(Condition(), [1])


# Files, and the report.


def test_a_file_is_made_finer_where_it_lies(tmp_path: Path) -> None:
    model, affine = built(dim=3, side=8), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    write_nifti(tmp_path / "a.nii.gz", np.full((4, 4, 4), 0.25, dtype=np.float32), affine)
    (request,) = requested(RequestOptions(sources=str(tmp_path)), model, model.needed_spec(), None).batches(2)
    assert request.affine is not None
    assert request.affine[0].diagonal().tolist() == [2, 2, 2, 1]
    assert request.affine[0, :3, 3].tolist() == [9, 19, 29]  # half a millimetre voxel towards the corner
    assert request.condition.source is not None
    assert request.condition.source.unique().tolist() == [-0.5]
    write_nifti(tmp_path / "b.nii.gz", np.zeros((8, 8, 8), dtype=np.float32), affine)
    with pytest.raises(InputError, match=r"b.nii.gz: a source of \(8, 8, 8\); expected \(4, 4, 4\)"):
        requested(RequestOptions(sources=str(tmp_path)), model, model.needed_spec(), None)


def test_pairs_have_consistency_and_interpolations_beside_them() -> None:
    model, ramp = built(), torch.linspace(-1, 1, 16)
    real = torch.stack([(ramp[:, None] * (3 + k)).sin() * ramp.cos() for k in range(4)])[:, None]
    nulls = PairNulls(Images.of(real), model.baselines)
    given = Given(Known(), Images.of(real), torch.empty(0), source_of=model.source_of, nulls=nulls)
    better = real + 0.01 * (-1.0) ** torch.arange(16)  # of which block means see nothing
    rows, _ = of_pairs(Images.of(better), Images.of(real, list("abcd")), range(4), given)
    assert rows["mae"]["value"] == pytest.approx(0.005)
    assert rows["consistency"]["value"] == pytest.approx(0, abs=1e-6)
    for name, worse in model.baselines(real).items():
        beside = rows["mae"]["baselines"][name]
        assert beside["value"] == pytest.approx((worse - real).abs().mean().item() / 2)
        assert beside["ci95"][0] < beside["value"] < beside["ci95"][1]
    psnr = {name: row["value"] for name, row in rows["psnr"]["baselines"].items()}
    assert psnr["mean training image"] < psnr["linear interpolation"] < psnr["cubic interpolation"]
    assert psnr["cubic interpolation"] < rows["psnr"]["value"]


# Cascades.


def low_model(side: int = 8, **facts: Any) -> DDPM:
    net = network(covariates=Covariates(numbers=["age"]))
    net.conv_in = nn.Conv2d(1, 8, 3, padding=1)
    net.in_channels = 1
    model = DDPM(net, sampler=DDIM(2), parametrisation="v")
    spec = DataSpec(1, (side,) * 2, (4.0, 4.0), attributes={"age": (40.0, 80.0)})
    model.spec = replace(spec, **facts)
    return model.eval()


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Something that stands for the checkpoint of the first model."""
    (tmp_path / "low.ckpt").touch()
    return str(tmp_path / "low.ckpt")


def asked(file: str, **options: Any) -> Any:
    model = built()
    return cascades.cascaded(file, RequestOptions(**options), model, model.needed_spec(), torch.device("cpu"))


def test_sources_of_a_cascade_are_samples_of_the_same_seeds(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = low_model()
    monkeypatch.setattr(cascades, "load", lambda path: first)
    requests = asked(file, seeds=[3, 5], attributes={"age": 60.0})
    expected = first.sample(Condition({"age": torch.tensor([60.0, 60.0])}), [3, 5]).clamp(-1, 1)
    request = requests.joined([0, 1])
    assert request.condition.source is not None
    torch.testing.assert_close(request.condition.source, expected, rtol=0, atol=1e-5)
    assert request.seeds == [3, 5]
    assert requests.made_from[0] == {"age": 60.0, "source": file}
    assert origin(requests.of_patients) == "synthetic"
    assert origin(requests.parts) == "reconstruction"


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (low_model(side=16), r"its images have size \(16, 16\), but Upscaler makes images from sources of \(8, 8\)"),
        (low_model(channels=3), r"its images have channels 3, .* of 1"),
        (low_model(intensity_window=(0.0, 255.0)), r"its images have intensity_window \(0.0, 255.0\)"),
        (low_model(size=(16, 16, 16), spacing_mm=(4.0,) * 3), r"its images have size \(16, 16, 16\), .* of \(8, 8\)"),
        (low_model(spacing_mm=(3.0, 4.0)), r"its images have spacing_mm \(3.0, 4.0\), .* of \(4.0, 4.0\)"),
        (built(), r"Upscaler makes images from source; sample it into a folder, and give --sources DIR"),
    ],
)
def test_a_first_model_of_other_images_is_refused(
    first: Any, words: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascades, "load", lambda path: first)
    with pytest.raises(InputError, match=words):
        asked(file, num=2)


def test_options_that_a_cascade_does_not_take_are_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="with it give --num or --seeds"):
        asked(file, sources="folder")
    with pytest.raises(InputError, match=r"--sources_from: no file .*none.ckpt"):
        asked("none.ckpt", num=2)
    monkeypatch.setattr(cascades, "load", lambda path: low_model())
    with pytest.raises(InputError, match="Upscaler is not made from 'sex'"):
        asked(file, attributes={"sex": 1.0})
    plain = low_model()
    with pytest.raises(InputError, match="--sources_from: DDPM makes no images from sources"):
        cascades.cascaded(file, RequestOptions(num=2), plain, plain.needed_spec(), torch.device("cpu"))
