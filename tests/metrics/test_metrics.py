"""Scores against references, and intervals that hold what they promise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics import (
    RBFMMD,
    Coverage,
    Density,
    FrechetDistance,
    KernelDistance,
    LinearMMD,
    ModeSpread,
    MSSSIMGap,
    PairwiseMSSSIM,
    Precision,
    Recall,
    SeamRatio,
    Sharpness,
    TwoSampleMetric,
)
from lit_medgen.metrics.ms_ssim import BETAS, Scales, nearest_by_ms_ssim, pairwise_ms_ssim, scales_and_window


def smooth(n: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
    """n 1 *size: smooth random images in [-1, 1]."""
    noise = torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(seed)) ** 2
    pool = torch.nn.functional.avg_pool3d if len(size) == 3 else torch.nn.functional.avg_pool2d
    return pool(noise, 3, stride=1, padding=1) * 2 - 1


def measured(
    metric: TwoSampleMetric, samples: Tensor, real: Tensor, people: list[str] | None = None, tied: bool = False
) -> TwoSampleMetric:
    """With the people of the real images; tied: of the samples too."""
    metric.update(samples, real=False, people=people if tied else None)
    metric.update(real, real=True, people=people)
    return metric


@pytest.mark.parametrize(
    ("size", "scales", "window"), [((40, 48, 40), 3, 7), ((16, 20, 17), 2, 7), ((200, 180), 5, 11)]
)
def test_ms_ssim_agrees_with_monai(size: tuple[int, ...], scales: int, window: int) -> None:
    from monai.metrics import MultiScaleSSIMMetric

    assert scales_and_window(size) == (scales, window)
    x, y = smooth(2, size, 1), smooth(2, size, 2)
    y = 0.6 * x + 0.4 * y
    betas = np.array(BETAS[:scales]) / sum(BETAS[:scales])
    reference = MultiScaleSSIMMetric(
        len(size), data_range=1.0, kernel_type="gaussian", kernel_size=window, kernel_sigma=1.5, weights=betas.tolist()
    )
    ours = pairwise_ms_ssim(x, y)
    for i in range(2):
        for j in range(2):
            assert ours[i, j] == pytest.approx(float(reference((x[[i]] + 1) / 2, (y[[j]] + 1) / 2)), abs=1e-4)


def test_ms_ssim_agrees_with_double_precision() -> None:
    """float32, with variances as differences of squares, against the same in float64."""
    x, y = smooth(4, (40, 48, 40), 1), smooth(4, (40, 48, 40), 2)
    y = 0.8 * x + 0.2 * y
    exact = Scales(x, y, dtype=torch.float64)
    torch.testing.assert_close(
        pairwise_ms_ssim(x, y).double(), torch.stack([exact.similarity(i) for i in range(4)]), atol=2e-6, rtol=0
    )


def test_ms_ssim_of_an_image_with_itself_is_one() -> None:
    x = smooth(3, (16, 16, 16))
    torch.testing.assert_close(pairwise_ms_ssim(x, x).diagonal(), torch.ones(3), atol=1e-5, rtol=0)


def test_pairwise_ms_ssim_leaves_out_the_diagonal() -> None:
    x, y = smooth(4, (16, 16, 16)), smooth(4, (16, 16, 16), 5)
    pairs = [pairwise_ms_ssim(x[[i]], x[[j]]).item() for i in range(4) for j in range(4) if i != j]
    assert measured(PairwiseMSSSIM(), x, y).compute().item() == pytest.approx(np.mean(pairs), abs=1e-5)
    gap = abs(np.mean(pairs) - measured(PairwiseMSSSIM(), y, x).compute().item())
    assert measured(MSSSIMGap(), x, y).compute().item() == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 16, 16), (32, 30, 32), (40, 36)])  # 1, 2, 3 and 3 scales
def test_the_nearest_image_is_the_same_as_by_all_pairs(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.cat([smooth(20, size, 1), 1 - smooth(4, size, 2)])
    x = 0.5 * y[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:6]] + 0.5 * smooth(6, size, 3)
    looked = [0] * 5
    term = Scales.term

    def counted(self: Scales, i: int, chosen: Tensor, scale: int) -> Tensor:
        looked[scale] += len(chosen)
        return term(self, i, chosen, scale)

    monkeypatch.setattr(Scales, "term", counted)
    monkeypatch.setattr("lit_medgen.metrics.ms_ssim.BLOCK_VOXELS", 10 * x[0].numel())  # several blocks
    places, values = nearest_by_ms_ssim(x, y)
    finest = looked[0]
    every = pairwise_ms_ssim(x, y)
    assert torch.equal(places, every.argmax(1))
    torch.testing.assert_close(values, every.amax(1), atol=1e-6, rtol=0)
    if scales_and_window(size)[0] > 1:  # else there is nothing coarser to judge by
        assert finest < every.numel() / 2


@pytest.mark.parametrize("size", [(112, 112), (64, 64)])
def test_a_block_that_holds_nothing_nearer_is_left(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = smooth(2, size)
    y = torch.cat([x, -x, torch.full_like(x, -1.0)])
    monkeypatch.setattr("lit_medgen.metrics.ms_ssim.BLOCK_VOXELS", 2 * x[0].numel())
    nearest, values = nearest_by_ms_ssim(x, y)
    assert nearest.tolist() == [0, 1]
    torch.testing.assert_close(values, torch.ones(2), atol=1e-5, rtol=0)


def test_only_wanted_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    x = smooth(7, (16, 16, 16))
    wanted = torch.zeros(7, 7, dtype=torch.bool)
    wanted[2:5, 2:5] = True
    monkeypatch.setattr("lit_medgen.metrics.ms_ssim.BLOCK_VOXELS", 3 * x[0].numel())  # several blocks
    every = pairwise_ms_ssim(x, x)
    torch.testing.assert_close(every, every.T, atol=0, rtol=0)
    torch.testing.assert_close(every, pairwise_ms_ssim(x, x.clone()), atol=1e-6, rtol=0)
    some = pairwise_ms_ssim(x, x, pairs=wanted)
    assert torch.equal(~some.isnan(), wanted)
    torch.testing.assert_close(some[2:5, 2:5], every[2:5, 2:5], atol=0, rtol=0)


def test_an_image_larger_than_a_tile_is_worked_on_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = smooth(3, (24, 20, 18)), smooth(4, (24, 20, 18), 1)
    whole = pairwise_ms_ssim(x, y)
    monkeypatch.setattr("lit_medgen.metrics.ms_ssim.TILE_VOXELS", 5 * 20 * 18)
    torch.testing.assert_close(pairwise_ms_ssim(x, y), whole, atol=1e-6, rtol=0)


def test_images_in_blocks_have_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = smooth(5, (8, 8, 8)), smooth(7, (8, 8, 8), 1)
    metrics = (LinearMMD, RBFMMD, Sharpness, lambda: SeamRatio(0, [3]), lambda: ModeSpread(smooth(3, (512,), 2)[:, 0]))
    whole = [measured(make(), x, y).compute().item() for make in metrics]
    monkeypatch.setattr("lit_medgen.metrics.known.BLOCK_BYTES", 2 * 8 * 8**3)
    assert [measured(make(), x, y).compute().item() for make in metrics] == pytest.approx(whole, abs=1e-12)


def test_linear_mmd_is_the_distance_of_the_means() -> None:
    x, y = smooth(5, (6, 6, 6)), smooth(7, (6, 6, 6), 1) - 0.1
    expected = ((x.double().mean(0) - y.double().mean(0)) / 2).square().sum().item()
    assert measured(LinearMMD(), x, y).compute().item() == pytest.approx(expected, rel=1e-6)


def test_rbf_mmd_agrees_with_a_double_loop() -> None:
    x, y = smooth(4, (5, 5, 5)), smooth(6, (5, 5, 5), 1)
    a, b = [((z.double().flatten(1) + 1) / 2).numpy() for z in (x, y)]
    squared = sorted(((p - q) ** 2).sum() for i, p in enumerate(b) for q in b[i + 1 :])
    h2 = 2 * squared[(len(squared) - 1) // 2]

    def mean(u: np.ndarray, v: np.ndarray, same: bool) -> float:
        pairs = [(p, q) for i, p in enumerate(u) for j, q in enumerate(v) if not (same and i == j)]
        return float(np.mean([np.exp(-((p - q) ** 2).sum() / h2) for p, q in pairs]))

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert measured(RBFMMD(), x, y).compute().item() == pytest.approx(expected, abs=1e-6)


def test_sharpness_sees_blur_and_noise() -> None:
    real = smooth(4, (12, 12, 12))
    blurred = torch.nn.functional.avg_pool3d(real, 3, stride=1, padding=1)
    noisy = real + 0.2 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    assert measured(Sharpness(), real, real).compute().item() == pytest.approx(1)
    assert measured(Sharpness(), blurred, real).compute().item() < 0.7
    assert measured(Sharpness(), noisy, real).compute().item() > 1.5


def test_mode_spread_sees_one_head_with_fresh_detail() -> None:
    modes = smooth(3, (8, 8, 8), 9)

    def people(n: int, seed: int, spread: float) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        shape = torch.tensordot(spread * torch.randn(n, 3, generator=random), modes, dims=1)
        return shape + 0.01 * torch.randn(n, 1, 8, 8, 8, generator=random)

    train, real = people(60, 0, 0.3), people(200, 1, 0.3)
    components = torch.linalg.svd((train - train.mean(0)).flatten(1), full_matrices=False)[2][:3]
    for spread, value in ((0.3, 1), (0.1, 1 / 3), (0.6, 2)):
        score = measured(ModeSpread(components), people(200, 2, spread), real).compute().item()
        assert score == pytest.approx(value, rel=0.15)


def test_seam_ratio_sees_a_step_at_a_border() -> None:
    real = smooth(4, (8, 8, 12))
    broken = real.clone()
    broken[..., 6:] += 0.3
    assert measured(SeamRatio(2, [5]), real, real).compute().item() == pytest.approx(1)
    assert measured(SeamRatio(2, [5]), broken, real).compute().item() > 1.2


@pytest.mark.slow
def test_jackknife_interval_covers_the_estimators_mean() -> None:
    # Gaussian images: over many repetitions the interval must hold the estimator's own mean about 95 times of 100.
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(300):
        x = torch.randn(20, 1, 3, 3, 3, generator=generator) * 0.3
        y = torch.randn(20, 1, 3, 3, 3, generator=generator) * 0.3 + 0.2
        estimates.append(measured(RBFMMD(), x, y).estimate())
    mean = np.mean([estimate.value for estimate in estimates])
    covered = np.mean([estimate.ci95[0] <= mean <= estimate.ci95[1] for estimate in estimates])
    assert 0.9 <= covered <= 0.99


def test_interval_holds_the_estimate() -> None:
    x, y = smooth(5, (8, 8, 8)), smooth(5, (8, 8, 8), 3)
    for metric in (LinearMMD(), RBFMMD(), PairwiseMSSSIM(), MSSSIMGap(), Sharpness(), SeamRatio(0, [3])):
        estimate = measured(metric, x, y).estimate()
        assert estimate.ci95[0] < estimate.value < estimate.ci95[1]


class MeanDifference(TwoSampleMetric):
    """Mean of samples less mean of real images."""

    features = "voxels"

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        return {name: z.all().flatten(1).mean(1).double() for name, z in (("x", samples), ("y", real))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        return float(statistics["x"][x].mean() - statistics["y"][y].mean())


def test_several_images_of_a_person_are_no_more_people() -> None:
    """An interval over people stays as it is when each of them is there three times; one over images shrinks."""
    samples, real = smooth(6, (8, 8), 1), smooth(6, (8, 8), 2)
    once = measured(MeanDifference(), samples, real).estimate()
    three_times = real.repeat_interleave(3, dim=0)
    thrice = measured(MeanDifference(), samples, three_times, [f"person {i // 3}" for i in range(18)]).estimate()
    as_images = measured(MeanDifference(), samples, three_times).estimate()
    assert thrice.ci95 == pytest.approx(once.ci95)
    assert as_images.ci95[1] - as_images.ci95[0] < 0.9 * (once.ci95[1] - once.ci95[0])


class Flat:
    """A few voxels as features."""

    name = "voxels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, 20:25]


SCORES: list[Callable[[], TwoSampleMetric]] = [
    LinearMMD,
    PairwiseMSSSIM,
    MSSSIMGap,
    Sharpness,
    MeanDifference,
    *(partial(kind, Flat()) for kind in (FrechetDistance, KernelDistance)),
    *(partial(kind, Flat(), 2) for kind in (Precision, Recall, Density, Coverage)),
]


@pytest.mark.parametrize("tied", [False, True], ids=["samples of nobody", "samples of the same people"])
@pytest.mark.parametrize("make", SCORES, ids=lambda make: getattr(make, "func", make).__name__)
def test_an_interval_is_a_jackknife_over_people_with_any_number_of_images(
    make: Callable[[], TwoSampleMetric], tied: bool
) -> None:
    """Against the score computed anew without each person, in whatever order the images come."""
    people = ["a", "b", "c", "b", "d", "e", "b", "c", "f", "g", "h", "h"]
    real = smooth(12, (8, 8), 2)
    samples = 0.5 * real + 0.5 * smooth(12, (8, 8), 1) if tied else smooth(9, (8, 8), 1)

    def variance(left: list[float]) -> float:
        return (len(left) - 1) * float(np.var(left))

    def value(x: Tensor, y: Tensor) -> float:
        return measured(make(), x, y).compute().item()

    kept = [torch.tensor([who != person for who in people]) for person in dict.fromkeys(people)]
    if tied and not make().of_one_set:
        expected = variance([value(samples[some], real[some]) for some in kept])
    elif tied:
        expected = variance([value(samples[some], real) for some in kept])
    else:
        alone = [torch.arange(9) != i for i in range(9)]
        expected = variance([value(samples[some], real) for some in alone])
        expected += 0 if make().of_one_set else variance([value(samples, real[some]) for some in kept])
    metric = measured(make(), samples, real, people, tied)
    assert metric.with_error()[1] == pytest.approx(expected**0.5, rel=1e-4, abs=1e-7)
