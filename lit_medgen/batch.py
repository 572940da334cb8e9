"""The one vocabulary between data modules and methods: `Batch`, `Condition`, `DataSpec`.

Shapes use einops letters: b batch, c channels, *s spatial axes, n slices. Images are float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

PADDING = -1
"""Slice index of a place in a set of slices that holds no slice."""

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of a RAS volume (x right, y anterior, z superior) along which each kind of slice is stacked."""


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on another device; one of the CPU is copied while the CPU goes on, which needs pinned memory on a GPU.

    The tensor must not be changed in place afterwards. The way back always waits, or values could be read too early.
    """
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type in ("cpu", "mps"):  # MPS reads such memory after it may be gone
        return tensor.to(device)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True)
class Condition:
    """What an image is made from; every part is optional, and None or NaN means absent.

    Attributes:
        attributes: name -> b, float; NaN marks an unknown value.
        label_map: b 1 *s, integer classes; -1 marks an absent map.
        image: b c *s, given image content, read where `observed` is true.
        observed: b n for slices (n is the first spatial axis of `image`) or b 1 *s for a region; bool.
        slice_index: b n, the slice each place of a set of slices stands for; `PADDING` where there is none.
    """

    attributes: dict[str, Tensor] = field(default_factory=dict)
    label_map: Tensor | None = None
    image: Tensor | None = None
    observed: Tensor | None = None
    slice_index: Tensor | None = None

    def drop(self, rows: Tensor) -> Condition:
        """Makes the given rows (b, bool) absent: the null condition of classifier-free guidance.

        `slice_index` says which slices are asked for, not what they are made from, so it stays.
        """
        return replace(
            self.drop_attributes(dict.fromkeys(self.attributes, rows)),
            label_map=_fill(self.label_map, rows, -1),
            observed=_fill(self.observed, rows, False),
        )

    def drop_attributes(self, rows: Mapping[str, Tensor]) -> Condition:
        """Makes each named attribute unknown in its own rows (name -> b, bool); all else stays."""
        dropped = {name: self.attributes[name].masked_fill(rows[name], torch.nan) for name in rows}
        return replace(self, attributes=self.attributes | dropped)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return replace(
            self,
            attributes={name: sent(value, device) for name, value in self.attributes.items()},
            **{name: _move(getattr(self, name), device) for name in ("label_map", "image", "observed", "slice_index")},
        )


@dataclass
class Batch:
    """What a data module yields.

    Attributes:
        image: b c *s, float32 in [-1, 1]; a set of slices is b c n h w.
        key: b store keys (never patient names).
        affine: b 4 4, voxel to world, mm; of the whole volume when the item is a set of its slices.
        attributes: name -> b, float; NaN is unknown.
        label_map: b 1 *s, integer classes.
        slice_index: b n, see `Condition`.
        observed: b n, true for slices that are given and not to be generated.
        codes: b *z, what a first stage made of the images; these were then not read, and `image` is b 0.
    """

    image: Tensor
    key: list[str]
    affine: Tensor
    attributes: dict[str, Tensor] = field(default_factory=dict)
    label_map: Tensor | None = None
    slice_index: Tensor | None = None
    observed: Tensor | None = None
    codes: Tensor | None = None

    def condition(self) -> Condition:
        """The condition this batch's images are made from; `image` counts only where `observed` is true."""
        return Condition(
            attributes=self.attributes,
            label_map=self.label_map,
            image=self.image if self.observed is not None else None,
            observed=self.observed,
            slice_index=self.slice_index,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda value: sent(value, device))

    def pin_memory(self) -> Batch:
        """Called by the data loader when it pins memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a function applied to every tensor."""
        made: dict[str, Any] = {
            name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, attributes={name: function(value) for name, value in self.attributes.items()}, **made)


@dataclass(frozen=True)
class DataSpec:
    """The facts of a data set that a method must agree with, kept in the checkpoint.

    Attributes:
        channels: image channels.
        size: voxels along x, y, z (or rows, columns of a 2D image).
        spacing_mm: voxel size, mm.
        orientation: axis codes, "RAS" for volumes; empty for 2D images.
        intensity_window: the values that -1 and 1 stand for.
        intensity_unit: unit of the window: "HU", "8 bit", or "normalised" for MRI.
        classes: names of the label map's classes, empty without a label map.
        attributes: name -> (low, high), the range seen in the training split.
        codes: names of those attributes that are 0 or 1 and nothing between (sex).
        slice_axis: "axial", "coronal" or "sagittal" where items are sets of slices along it; else empty.
        people: "train", "val", "test" -> one hash of all people of that part, so that another split is noticed.
    """

    channels: int
    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str = "RAS"
    intensity_window: tuple[float, float] = (0.0, 1.0)
    intensity_unit: str = "normalised"
    classes: tuple[str, ...] = ()
    attributes: dict[str, tuple[float, float]] = field(default_factory=dict)
    slice_axis: str = ""
    codes: tuple[str, ...] = ()
    people: dict[str, str] = field(default_factory=dict)

    def affine(self) -> Tensor:
        """4 4, voxel to world in mm, the centre of the grid at the world's origin."""
        affine = torch.eye(4, dtype=torch.float64)
        for axis, (size, spacing) in enumerate(zip(self.size, self.spacing_mm, strict=True)):
            affine[axis, axis] = spacing
            affine[axis, 3] = -spacing * (size - 1) / 2
        return affine

    def to_window(self, image: Tensor) -> Tensor:
        """[-1, 1] to the intensity window."""
        low, high = self.intensity_window
        return low + (image + 1) / 2 * (high - low)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> DataSpec:
        """The inverse of `plain`."""
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        lists["attributes"] = {name: tuple(value) for name, value in plain["attributes"].items()}
        return cls(**lists)


def _fill(value: Tensor | None, rows: Tensor, fill: float) -> Tensor | None:
    return None if value is None else value.masked_fill(rows.view(-1, *[1] * (value.ndim - 1)), fill)


def _move(value: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if value is None else sent(value, device)
