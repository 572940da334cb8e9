r"""Scores of outputs against the image that each should be: reconstruction, translation, super-resolution.

    PSNR        10 log10(range^2 / mean squared error), range 2
    MAE         mean |output - target| / range
    consistency the MAE of what both were made from: |d(output) - d(target)|, d the blocks' means of super-resolution
    SSIM        Wang et al. 2004, eq. 13; MS-SSIM over scales (`lit_medgen.metrics.ms_ssim`)
    perceptual  sum over layers of the mean over pixels of |f_l - g_l|^2, f and g the unit vectors of channels
                (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1, all
                weights 1: "LPIPS-like", since LPIPS has weights fitted to what people see)

A score is a mean over pairs; its jackknife interval leaves out a person at a time, who may have any number of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.utilities import dim_zero_cat

from lit_medgen.metrics.base import Best, IntervalMetric, images_of_people, jackknife_variance
from lit_medgen.metrics.ms_ssim import BETAS, Scales, facts_of

Layers = Callable[[Tensor], list[Tensor]]
"""n c y x in [-1, 1] -> the activations of some layers, n d y x each; or one vector n d."""


class PairedMetric(IntervalMetric):
    """A score of outputs and their targets, n c *s in [-1, 1] each, in the same order."""

    best: Best = "higher"
    found: list[Tensor]
    people: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", default=[], dist_reduce_fx="cat")
        self.people = []

    def reset(self) -> None:
        """Forgets all pairs that were added."""
        super().reset()
        self.people = []

    def update(self, outputs: Tensor, targets: Tensor, people: Sequence[str] | None = None) -> None:
        """Adds pairs; ValueError if their shapes differ.

        Args:
            outputs: n c *s in [-1, 1].
            targets: what each should be, n c *s in [-1, 1].
            people: whose each pair is; None: nobody's, so that each counts by itself.
        """
        if outputs.shape != targets.shape:
            raise ValueError(f"outputs are {tuple(outputs.shape)} and targets {tuple(targets.shape)}; give pairs.")
        self.found.append(self.values(outputs, targets).double())
        self.people += people or [""] * len(outputs)

    def compute(self) -> Tensor:
        """The mean over all pairs, a float64 scalar."""
        return dim_zero_cat(self.found).mean()

    def with_error(self) -> tuple[float, float]:
        """The mean and its standard error by the jackknife."""
        values = dim_zero_cat(self.found).cpu()
        of_people = images_of_people(self.people).values()
        left_out = [(values.sum() - values[some].sum()) / (len(values) - len(some)) for some in of_people]
        return float(values.mean()), jackknife_variance(torch.stack(left_out)) ** 0.5

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of every pair, n."""


class PairedPSNR(PairedMetric):
    """Peak signal-to-noise ratio, dB; infinite for equal images."""

    features = "voxels, range 2"

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of every pair, n."""
        dims = tuple(range(1, outputs.ndim))
        found: Tensor = peak_signal_noise_ratio(outputs, targets, data_range=2.0, reduction="none", dim=dims)
        return found


class PairedMAE(PairedMetric):
    """Mean absolute difference of output and target, as a share of the range of intensities; 0 for equal images."""

    limits = (0.0, 1.0)
    best = "lower"
    features = "voxels, share of the window"

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of every pair, n."""
        return (outputs - targets).abs().flatten(1).mean(1) / 2


class Consistency(PairedMAE):
    """The same of the sources of output and target: whether an output still shows what it was made from.

    Args:
        source_of: what images are made from, n c *s -> n c *l.
    """

    features = "sources, share of the window"

    def __init__(self, source_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.source_of = source_of

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of every pair, n."""
        return super().values(self.source_of(outputs), self.source_of(targets))


class PairedMSSSIM(PairedMetric):
    """MS-SSIM of output and target; 1 for equal images."""

    max_scales = len(BETAS)
    """Scales, if so many fit."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of every pair, n."""
        self.features, self.limits = facts_of(outputs, self.max_scales)
        pairs = zip(outputs.split(1), targets.split(1), strict=True)
        return torch.cat([Scales(*pair, self.max_scales, device=outputs.device).similarity(0) for pair in pairs])


class PairedSSIM(PairedMSSSIM):
    """SSIM of output and target; 1 for equal images."""

    max_scales = 1


class PerceptualDistance(PairedMetric):
    """Distance of activations; of volumes, the mean over all slices of the three views.

    Args:
        layers: the activations of a network.
        name: which network it is, with hash.
        network: the network, so that it moves with the metric.
        ready: whether it gives one vector of each slice, n d, whose squared distances are the distance.
    """

    limits = (0.0, float("inf"))
    best = "lower"

    def __init__(self, layers: Layers, name: str, network: nn.Module | None = None, ready: bool = False) -> None:
        super().__init__()
        self.layers, self.features, self.network, self.ready = layers, name, network, ready

    @torch.no_grad()
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score of every pair, n."""
        return self.distance(outputs, targets)

    def distance(self, outputs: Tensor, targets: Tensor, share: float = 1.0) -> Tensor:
        """The distance of every pair, n, with gradients, as a loss needs them.

        Args:
            outputs: n c *s in [-1, 1].
            targets: what each should be, n c *s in [-1, 1].
            share: of volumes, the share of the slices of each view that is compared, at least one, drawn with torch's
                generator: the 2.5D distance of Pinaya et al. 2023 (MONAI's `fake_3d_ratio`), for the sake of memory.
        """
        axes = range(2, outputs.ndim) if outputs.ndim == 5 else [None]
        views = [
            (_slices(outputs, axis, chosen), _slices(targets, axis, chosen))
            for axis, chosen in ((axis, _chosen(outputs, axis, share)) for axis in axes)
        ]
        return torch.stack([self._of_slices(f, g, len(outputs)) for f, g in views]).mean(0)

    def _of_slices(self, outputs: Tensor, targets: Tensor, num: int) -> Tensor:
        """num, the mean over the slices of each image; (num n) c a b each, all at once through the network."""
        layers = zip(self.layers(outputs), self.layers(targets), strict=True)
        apart = [((f - g) if self.ready else (_unit(f) - _unit(g))).square().sum(1) for f, g in layers]
        return torch.stack([part.view(num, -1).mean(1) for part in apart]).sum(0)


def spectral_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of the Fourier amplitudes of two batches of images, b c *s -> scalar.

    Unlike L1 it does not punish a small shift of texture (Dhariwal et al. 2020, "Jukebox", section 3.3).
    """
    dims = tuple(range(2, x.ndim))
    with torch.autocast(x.device.type, enabled=False):
        ours, theirs = (torch.fft.rfftn(image.float(), dim=dims, norm="ortho").abs() for image in (x, y))
    return functional.mse_loss(ours, theirs)


def _slices(images: Tensor, axis: int | None, chosen: Tensor | None) -> Tensor:
    """The slices of volumes b c x y z along an axis, or those chosen, (b n) c a b; 2D images as they are."""
    if axis is None:
        return images
    return (images if chosen is None else images.index_select(axis, chosen)).movedim(axis, 1).flatten(0, 1)


def _chosen(images: Tensor, axis: int | None, share: float) -> Tensor | None:
    """Indices of a random share of the slices along an axis, the same for all images; None: all slices."""
    if axis is None or share >= 1:
        return None
    length = images.shape[axis]
    return torch.rand(length, device=images.device).argsort()[: max(1, round(share * length))]


def _unit(activations: Tensor) -> Tensor:
    return activations / (activations.square().sum(1, keepdim=True) + 1e-20).sqrt()  # 0 has a gradient too
