"""Networks of convolutions applied slab by slab, for volumes whose feature maps do not fit a GPU; equal to one piece.

To send a window at a time through the whole network would leave seams, since group norms and attention look at the
whole volume. So the layers are applied one after another to all of it, each to one slab at a time: a convolution reads
a halo from the neighbouring slabs, a group norm takes its statistics over all slabs first, activations and upsampling
are part of what reads them, and attention, which stands at low resolutions, sees everything at once. What is kept
between layers can lie in another memory than that in which slabs are computed.

Shapes: b batch, c channels, *s spatial axes; slabs are cut along the first of these, of n planes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.networks.blocks import Attention, ResidualBlock


@dataclass(frozen=True)
class Plan:
    """How a network is applied.

    Attributes:
        thickness: planes of a slab.
        device: where slabs are computed.
        storage: where feature maps are kept.
    """

    thickness: int
    device: torch.device
    storage: torch.device


class Map(ABC):
    """A feature map that is read by its planes."""

    num: int
    """Its planes."""

    @abstractmethod
    def read(self, first: int, last: int) -> Tensor:
        """The planes from `first` to before `last`, b c n *s."""


@dataclass
class Kept(Map):
    """A feature map that is there, b c *s."""

    values: Tensor
    device: torch.device
    spent: bool = True  # whether what comes next may stand in its memory

    def __post_init__(self) -> None:
        self.num = self.values.shape[2]

    def read(self, first: int, last: int) -> Tensor:
        """The planes, on the device that computes."""
        return self.values[:, :, first:last].to(self.device)


class Pointwise(Map):
    """A feature map, and what is done to each of its voxels."""

    def __init__(self, source: Map, function: Callable[[Tensor], Tensor]) -> None:
        self.source, self.function, self.num = source, function, source.num

    def read(self, first: int, last: int) -> Tensor:
        """The function of the planes."""
        return self.function(self.source.read(first, last))


class Sum(Map):
    """The sum of two feature maps."""

    def __init__(self, one: Map, other: Map) -> None:
        self.one, self.other, self.num = one, other, one.num

    def read(self, first: int, last: int) -> Tensor:
        """The sum of the planes."""
        return self.one.read(first, last) + self.other.read(first, last)


class Upsampled(Map):
    """A feature map whose size is multiplied, by nearest neighbours."""

    def __init__(self, source: Map, factor: int) -> None:
        self.source, self.factor, self.num = source, factor, source.num * factor

    def read(self, first: int, last: int) -> Tensor:
        """The planes, from those that they repeat."""
        start = first // self.factor
        repeated = functional.interpolate(
            self.source.read(start, -(-last // self.factor)), scale_factor=float(self.factor), mode="nearest"
        )
        return repeated[:, :, first - start * self.factor : last - start * self.factor]


class Convolved(Map):
    """A convolution of a feature map, which reads a halo around the planes that are asked for."""

    def __init__(self, source: Map, layer: nn.Conv2d | nn.Conv3d) -> None:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(f"slabs: a convolution with padding {layer.padding} ({layer.padding_mode}) is not known.")
        self.source, self.layer = source, layer
        self.stride, self.padding = layer.stride[0], layer.padding[0]
        self.extent = layer.dilation[0] * (layer.kernel_size[0] - 1) + 1
        self.num = (source.num + 2 * self.padding - self.extent) // self.stride + 1

    def read(self, first: int, last: int) -> Tensor:
        """The planes of the output."""
        start = first * self.stride - self.padding
        end = (last - 1) * self.stride - self.padding + self.extent
        inner = self.source.read(max(0, start), min(end, self.source.num))
        missing = (max(0, -start), max(0, end - self.source.num))
        if any(missing):
            inner = functional.pad(inner, (*[0, 0] * (inner.ndim - 3), *missing))
        layer, others = self.layer, tuple(self.layer.padding[1:])
        convolve: Any = functional.conv3d if isinstance(layer, nn.Conv3d) else functional.conv2d
        values: Tensor = convolve(
            inner, layer.weight, layer.bias, layer.stride, (0, *others), layer.dilation, layer.groups
        )
        return values


@torch.no_grad()
def in_slabs(layers: nn.Module, x: Tensor, thickness: int, storage: torch.device | str | None = None) -> Tensor:
    """What `layers(x)` gives, computed slab by slab, without gradients; b c *s -> b c' *s'.

    ValueError for a layer that is not known: sequences of convolutions, group norms, SiLU, upsampling, our residual
    blocks and our attention are.

    Args:
        layers: the network.
        x: its input, on the network's device, where slabs are computed.
        thickness: planes of a slab, at every resolution.
        storage: where feature maps between layers, and the result, are kept; None: where `x` is.
    """
    if thickness < 1:
        raise ValueError(f"slabs: a thickness of {thickness} planes; give at least 1.")
    plan = Plan(thickness, x.device, torch.device(storage or x.device))
    return _kept(_applied(layers, Kept(x, x.device, spent=False), plan), plan).values


def _applied(layer: nn.Module, x: Map, plan: Plan) -> Map:
    """The output of a layer: kept after convolutions and attention, else computed when it is read."""
    match layer:
        case nn.Sequential():
            for inner in layer:
                x = _applied(inner, x, plan)
            return x
        case ResidualBlock():
            return _residual(layer, _kept(x, plan), plan)
        case Attention():
            return _placed(layer(_kept(x, plan).values.to(plan.device)), plan)
        case nn.GroupNorm():
            return _normalised(layer, _kept(x, plan), plan)
        case nn.SiLU() | nn.Dropout():
            return Pointwise(x, layer)
        case nn.Identity():
            return x
        case nn.Conv2d() | nn.Conv3d():
            return _kept(Convolved(x, layer), plan)
        case nn.Upsample(mode="nearest", scale_factor=float(factor)) if factor.is_integer():
            return Upsampled(x, int(factor))
    raise ValueError(f"slabs: {type(layer).__name__} is no layer that can be applied slab by slab; leave slabs out.")


def _residual(block: ResidualBlock, x: Kept, plan: Plan) -> Kept:
    """See `ResidualBlock.forward`; the sum takes the memory of x where it has no more channels."""
    assert isinstance(block.conv2, nn.Conv2d | nn.Conv3d)
    hidden = _applied(nn.Sequential(block.norm1, nn.SiLU(), block.conv1), x, plan)
    active = _applied(nn.Sequential(block.norm2, nn.SiLU(), block.dropout), hidden, plan)
    skip = Convolved(x, block.skip) if isinstance(block.skip, nn.Conv2d | nn.Conv3d) else x  # of one voxel: no halo
    num = block.conv2.out_channels
    into = x.values[:, :num] if x.spent and num <= x.values.shape[1] else None
    return _kept(Sum(skip, Convolved(active, block.conv2)), plan, into)


def _normalised(norm: nn.GroupNorm, x: Kept, plan: Plan) -> Map:
    """The map with mean 0 and variance 1 in each group of channels, over all slabs (Wu & He 2018, eq. 1)."""
    found: list[tuple[Tensor, Tensor]] = []
    for first, last in _slabs(x.num, plan):
        groups = x.read(first, last).float().unflatten(1, (norm.num_groups, -1))
        found.append(torch.var_mean(groups.flatten(2), dim=2, correction=0))
    variances, means = (torch.stack(parts, dim=-1) for parts in zip(*found, strict=True))  # b g slabs
    share = torch.tensor([(last - first) / x.num for first, last in _slabs(x.num, plan)], device=plan.device)
    mean = (share * means).sum(-1)
    variance = (share * (variances + (means - mean[..., None]).square())).sum(-1)
    each = norm.num_channels // norm.num_groups
    centre, deviation = (part.repeat_interleave(each, 1) for part in (mean, (variance + norm.eps).sqrt()))
    shape = (*centre.shape, *[1] * (x.values.ndim - 2))
    gain, bias = (1.0, 0.0) if norm.weight is None else (norm.weight, norm.bias)
    factor, offset = (gain / deviation).view(shape), (bias - centre * gain / deviation).view(shape)
    return Pointwise(x, lambda planes: planes * factor + offset)


def _kept(x: Map, plan: Plan, into: Tensor | None = None) -> Kept:
    """A map computed slab by slab, if it is not there yet."""
    if isinstance(x, Kept):
        return x
    for first, last in _slabs(x.num, plan):
        planes = x.read(first, last)
        if into is None:
            shape = (*planes.shape[:2], x.num, *planes.shape[3:])
            into = torch.empty(shape, dtype=planes.dtype, device=plan.storage)
        into[:, :, first:last] = planes
    assert into is not None
    return Kept(into, plan.device)


def _placed(values: Tensor, plan: Plan) -> Kept:
    return Kept(values.to(plan.storage), plan.device)


def _slabs(num: int, plan: Plan) -> list[tuple[int, int]]:
    """First plane of each slab, and that after its last."""
    return list(pairwise([*range(0, num, plan.thickness), num]))
