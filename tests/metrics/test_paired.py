"""Scores of pairs against MONAI, torchmetrics and closed forms."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_metrics import smooth
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from lit_medgen.errors import InputError
from lit_medgen.metrics import (
    Consistency,
    PairedMAE,
    PairedMetric,
    PairedMSSSIM,
    PairedPSNR,
    PairedSSIM,
    PerceptualDistance,
    pairwise_ms_ssim,
)
from lit_medgen.metrics.extractors import perceptual


def scored(metric: PairedMetric, outputs: torch.Tensor, targets: torch.Tensor) -> PairedMetric:
    """In two batches, as a loader brings them."""
    metric.update(outputs[:2], targets[:2])
    metric.update(outputs[2:], targets[2:])
    return metric


def worse(images: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(-1, 1)


@pytest.mark.parametrize("size", [(20, 24, 22), (48, 40)])
def test_psnr_and_ssim_agree_with_monai(size: tuple[int, ...]) -> None:
    from monai.metrics import PSNRMetric, SSIMMetric

    x = smooth(5, size)
    y = worse(x, 0.2)
    a, b = (x + 1) / 2, (y + 1) / 2
    reference = SSIMMetric(len(size), kernel_type="gaussian", win_size=11, kernel_sigma=1.5)(b, a).mean()
    assert scored(PairedSSIM(), y, x).compute().item() == pytest.approx(float(reference), abs=1e-4)
    reference = PSNRMetric(max_val=1.0)(b, a).mean()
    assert scored(PairedPSNR(), y, x).compute().item() == pytest.approx(float(reference), abs=1e-4)


def test_mae_is_a_share_of_the_range_and_consistency_that_of_what_images_are_made_from() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    assert scored(PairedMAE(), y, x).compute().item() == pytest.approx((x - y).abs().mean().item() / 2)
    assert scored(PairedMAE(), -torch.ones_like(x), torch.ones_like(x)).compute() == 1
    halves = partial(avg_pool2d, kernel_size=2)
    expected = (halves(x) - halves(y)).abs().mean().item() / 2
    assert scored(Consistency(halves), y, x).compute().item() == pytest.approx(expected)
    detail = 0.1 * (-1.0) ** torch.arange(8)
    assert scored(Consistency(halves), x + detail, x).compute().item() == pytest.approx(0, abs=1e-6)


def test_ssim_of_inverted_contrast_is_negative() -> None:
    from monai.metrics import SSIMMetric

    x = smooth(3, (20, 24, 22))
    reference = SSIMMetric(3, kernel_type="gaussian", win_size=11, kernel_sigma=1.5)((1 - x) / 2, (x + 1) / 2).mean()
    assert scored(PairedSSIM(), -x, x).compute().item() == pytest.approx(float(reference), abs=5e-4)
    assert reference < 0


def test_ms_ssim_of_pairs_is_the_diagonal_of_all_pairs() -> None:
    x = smooth(5, (32, 32, 32))
    y = worse(x, 0.3)
    expected = pairwise_ms_ssim(x, y).diagonal().mean().item()
    assert scored(PairedMSSSIM(), x, y).compute().item() == pytest.approx(expected, abs=1e-6)


def test_equal_images_are_perfect() -> None:
    x = smooth(4, (16, 16, 16))
    assert scored(PairedPSNR(), x, x).compute().item() == math.inf
    assert scored(PairedSSIM(), x, x).compute().item() == pytest.approx(1, abs=1e-5)
    assert scored(perceptual("learned", smooth(8, (16, 16, 16), 1)), x, x).compute().item() == 0


def test_perceptual_distance_has_its_closed_form() -> None:
    """Channels (3, 4) and (4, 3) are unit vectors (0.6, 0.8) and (0.8, 0.6) at every place, whatever their length."""
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([40.0, 30.0])

    def layers(slices: torch.Tensor) -> list[torch.Tensor]:
        channels = torch.where(slices.mean(dim=(1, 2, 3))[:, None] > 0, one, other)
        return [channels[:, :, None, None].expand(-1, -1, 5, 5)] * 3

    bright, dark = torch.full((4, 1, 6, 7), 0.5), torch.full((4, 1, 6, 7), -0.5)
    found = scored(PerceptualDistance(layers, "two channels"), bright, dark).compute().item()
    assert found == pytest.approx(3 * (0.2**2 + 0.2**2))


@pytest.mark.parametrize(("size", "views"), [((4, 5, 6), 3), ((7, 5), 1)])
def test_perceptual_distance_takes_all_images_at_once(size: tuple[int, ...], views: int) -> None:
    """One call of the network for the outputs and one for the targets of each view, and what each pair gives alone."""
    calls = []

    def layers(slices: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(slices))
        return [slices.cumsum(2).expand(-1, 2, -1, -1) * torch.tensor([1.0, 2.0]).view(2, 1, 1) + 1, slices.sin()]

    x, y = smooth(3, size), smooth(3, size, 1)
    metric = PerceptualDistance(layers, "two layers")
    found = metric.values(x, y)
    assert len(calls) == 2 * views
    alone = torch.cat([metric.values(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 24)])
def test_perceptual_distance_ranks_noise(size: tuple[int, ...]) -> None:
    x = smooth(8, size)
    metric = perceptual("learned", smooth(12, size, 1))
    found = [float(metric.values(worse(x, strength), x).mean()) for strength in (0.05, 0.1, 0.3)]
    assert 0 < found[0] < found[1] < found[2]
    assert "contrastive network of 12 training images" in metric.features


class Lpips(nn.Module):
    """Called as NVIDIA's vgg16.pt is; features are averages, which see no places."""

    def forward(
        self, x: Tensor, resize_images: bool = True, return_features: bool = False, return_lpips: bool = False
    ) -> Tensor:
        if resize_images:
            x = x[:, :, :4, :4]
        if return_lpips:
            return x[:, 0].flatten(1) / 255
        return x.mean(dim=(2, 3))


class Maps(nn.Module):
    """Two layers of activations, and a vector that is no map."""

    def forward(self, x: Tensor) -> list[Tensor]:
        bright = x[:, :2] / 255
        return [torch.stack([bright[:, 0], 1 - bright[:, 0]], dim=1), bright[:, :, ::2] + 1, x.mean(dim=(2, 3))]


def saved(module: nn.Module, folder: Path) -> str:
    torch.jit.script(module).save(str(folder / "network.pt"))
    return str(folder / "network.pt")


@pytest.mark.parametrize("size", [(12, 10), (12, 10, 8)])
def test_a_file_that_gives_lpips_is_asked_for_it(size: tuple[int, ...], tmp_path: Path) -> None:
    x = smooth(3, size)
    moved = x.flip(2)  # the same averages at other places
    metric = perceptual(saved(Lpips(), tmp_path), x)
    apart = ((x - moved) / 2).square()[:, 0]
    if len(size) == 2:
        expected = apart.sum((1, 2))
    else:  # the mean over the slices of the three views, each a sum over its places
        expected = torch.stack([apart.sum((1, 2, 3)) / side for side in size]).mean(0)
    torch.testing.assert_close(metric.values(moved, x), expected, rtol=1e-4, atol=1e-5)
    assert "network.pt" in metric.features
    assert "LPIPS" in metric.features


def test_activations_of_a_file_are_compared_place_by_place(tmp_path: Path) -> None:
    x = smooth(3, (12, 10))
    y = x.flip(2).requires_grad_()
    metric = perceptual(saved(Maps(), tmp_path), x)
    distance = metric.distance(y, x)
    assert (distance > 1e-3).all()
    distance.sum().backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0
    assert metric.values(x, x).abs().max() == 0
    layers = Maps()((x.expand(-1, 3, -1, -1) + 1) * 127.5)[:2]
    others = Maps()((y.detach().expand(-1, 3, -1, -1) + 1) * 127.5)[:2]
    units = [[f / f.norm(dim=1, keepdim=True) for f in some] for some in (layers, others)]
    expected = sum((f - g).square().sum(1).mean((1, 2)) for f, g in zip(*units, strict=True))
    torch.testing.assert_close(distance.detach(), expected, rtol=1e-4, atol=1e-6)


class Pooled(nn.Module):
    """As inception-2015-12-05.pt: averages alone."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return x.mean(dim=(2, 3))


def test_a_file_that_knows_no_places_is_refused_in_one_line(tmp_path: Path) -> None:
    message = r"features .*network\.pt: gives \(3,\) for each image.*return_lpips=True.*activations n d y x"
    with pytest.raises(InputError, match=message) as caught:
        perceptual(saved(Pooled(), tmp_path), smooth(2, (12, 10, 8)))
    assert "\n" not in str(caught.value)


def test_the_interval_is_that_of_a_mean() -> None:
    x = smooth(6, (16, 16, 16))
    y = torch.stack([worse(image, 0.05 * (k + 1)) for k, image in enumerate(x)])
    metric = scored(PairedPSNR(), y, x)
    values = metric.values(y, x).numpy().astype(np.float64)
    left_out = [np.delete(values, i).mean() for i in range(6)]  # the jackknife, by hand
    error = math.sqrt(5 / 6 * np.sum((left_out - np.mean(left_out)) ** 2))
    estimate = metric.estimate()
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.ci95 == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error))


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match=r"outputs are \(2, 1, 8, 8\) and targets \(3, 1, 8, 8\)"):
        PairedPSNR().update(torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8))


def test_pairs_of_one_person_are_one() -> None:
    """An interval over people stays as it is when each pair is there twice."""
    outputs, targets = torch.rand(5, 1, 8, 8) * 2 - 1, torch.rand(5, 1, 8, 8) * 2 - 1
    once, twice = PairedPSNR(), PairedPSNR()
    once.update(outputs, targets)
    people = [f"person {i // 2}" for i in range(10)]
    twice.update(outputs.repeat_interleave(2, dim=0), targets.repeat_interleave(2, dim=0), people)
    assert twice.estimate().ci95 == pytest.approx(once.estimate().ci95)


def test_people_with_different_numbers_of_pairs() -> None:
    """The jackknife by hand: the mean without each person."""
    outputs, targets = torch.rand(5, 1, 8, 8) * 2 - 1, torch.rand(5, 1, 8, 8) * 2 - 1
    metric, people = PairedPSNR(), ["a", "b", "a", "", "a"]
    metric.update(outputs[:2], targets[:2], people[:2])
    metric.update(outputs[2:], targets[2:], people[2:])
    values = metric.values(outputs, targets).double()
    left_out = [values[[1, 3]].mean(), values[[0, 2, 3, 4]].mean(), values[[0, 1, 2, 4]].mean()]
    error = math.sqrt(2 * float(torch.stack(left_out).var(correction=0)))
    estimate = metric.estimate()
    assert estimate.ci95 == pytest.approx((float(values.mean()) - 1.96 * error, float(values.mean()) + 1.96 * error))
