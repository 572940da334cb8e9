"""The one vocabulary between data modules, methods and files.

`Condition` says what an image is made from, `Batch` is what a data module yields, `Request` is what a method is asked
for, `DataSpec` are the facts that both must agree on, and `TrainingData` is what a method may ask of its data.

Shapes use einops letters: b batch, c channels, *s spatial axes, n slices. Images are float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_medgen.axes import is_colour

PADDING = -1
"""Slice index where a set of slices holds no slice."""

ABSENT_CLASS = -1
"""Class of every voxel of a label map that is absent."""

ABSENT: dict[str, float] = {
    "label_map": ABSENT_CLASS,
    "source": torch.nan,
    "image": -1.0,
    "observed": False,
    "slice_index": PADDING,
    "text": torch.nan,
}
"""Field of a condition -> what it holds for an image that lacks it."""

Part = Literal["attributes", "label_map", "source", "image", "text"]
"""What an image can be made from; "image" stands for given slices or a given region of the image itself."""

Split = Literal["train", "val", "test"]


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
        label_map: b 1 *s, integer classes; `ABSENT_CLASS` everywhere marks an absent map.
        source: b c *s, an image to translate, super-resolve or reconstruct, with a size and channels of its own; NaN
            everywhere marks an absent one.
        image: b c *s, given image content, read where `observed` is true.
        observed: b n for slices (n is the first spatial axis of `image`) or b 1 *s for a region; bool.
        slice_index: b n, the number of each slice of a set; `PADDING` where there is none.
        text: b n d, token embeddings; NaN marks padding, and in all tokens an absent text.
    """

    attributes: dict[str, Tensor] = field(default_factory=dict)
    label_map: Tensor | None = None
    source: Tensor | None = None
    image: Tensor | None = None
    observed: Tensor | None = None
    slice_index: Tensor | None = None
    text: Tensor | None = None

    def drop(self, rows: Tensor, keep: Collection[str] = ()) -> Condition:
        """Makes every part of the given rows (b, bool) absent: the null condition of classifier-free guidance.

        `slice_index` says which slices are asked for, not what they are made from, so it stays; as do parts, and
        attributes by name, to `keep`.
        """
        part_of: dict[str, Part] = {"label_map": "label_map", "source": "source", "observed": "image", "text": "text"}
        names = [name for name, part in part_of.items() if part not in keep]
        dropped: dict[str, Any] = {name: _fill(getattr(self, name), rows, ABSENT[name]) for name in names}
        attributes = [name for name in self.attributes if not {name, "attributes"}.intersection(keep)]
        return replace(self.drop_attributes(dict.fromkeys(attributes, rows)), **dropped)

    def drop_attributes(self, rows: Mapping[str, Tensor]) -> Condition:
        """Makes each named attribute unknown in its own rows (name -> b, bool); all else stays."""
        dropped = {name: self.attributes[name].masked_fill(rows[name], torch.nan) for name in rows}
        return replace(self, attributes=self.attributes | dropped)

    def drop_text(self, rows: Tensor) -> Condition:
        """Makes the text of the given rows (b, bool) absent; all else stays."""
        return replace(self, text=_fill(self.text, rows, ABSENT["text"]))

    def only(self, parts: Collection[Part], attributes: Collection[str]) -> Condition:
        """Without the parts, and the attributes, that are not named."""
        belongs_to = {"observed": "image", "slice_index": "image"}
        gone = {name: None for name in ABSENT if belongs_to.get(name, name) not in parts}
        values = {name: value for name, value in self.attributes.items() if name in attributes}
        return replace(self, attributes=values if "attributes" in parts else {}, **gone)

    @property
    def parts(self) -> set[Part]:
        """The parts that are there, whatever they hold."""
        names: tuple[Part, ...] = ("label_map", "source", "image", "text")
        there = {name for name in names if getattr(self, name) is not None}
        return there | {"attributes"} if self.attributes else there

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return self._each(lambda value: sent(value, device))

    def pin_memory(self) -> Condition:
        """Called by the data loader when it pins memory."""
        return self._each(Tensor.pin_memory)

    def of_rows(self, rows: Sequence[int]) -> Condition:
        """The condition of some of the images alone, in the order of `rows`."""
        return self._each(lambda value: value[list(rows)])

    def _each(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with a function applied to every tensor."""
        values = {name: function(value) for name, value in self.attributes.items()}
        return replace(self, attributes=values, **_applied(self, function))

    @classmethod
    def join(cls, conditions: Sequence[Condition], sizes: Sequence[int]) -> Condition:
        """One condition of several; a part or attribute that one of them lacks is absent in its rows.

        `sizes` are the numbers of images of each, which an empty condition does not say.
        """
        names = dict.fromkeys(name for condition in conditions for name in condition.attributes)
        attributes: dict[str, Any] = {
            name: _joined([condition.attributes.get(name) for condition in conditions], sizes, torch.nan)
            for name in names
        }
        joined: dict[str, Any] = {
            name: _joined([getattr(condition, name) for condition in conditions], sizes, fill)
            for name, fill in ABSENT.items()
        }
        return cls(attributes=attributes, **joined)


@dataclass(frozen=True)
class Batch:
    """What a data module yields.

    Attributes:
        image: b c *s, float32 in [-1, 1]; a set of slices is b c n h w. Of no voxels (b 0) where latents are read
            instead.
        key: b store keys (never patient names).
        affine: b 4 4, voxel to world, mm; of the whole volume when the item is a set of its slices.
        condition: what the images are made from. Its `image` is None where the given slices are those of the batch's
            own `image`, as in training they always are.
        latent: b *z codes or b d *z, what a first stage made of the images, read from a latent store.
    """

    image: Tensor
    key: list[str]
    affine: Tensor
    condition: Condition = field(default_factory=Condition)
    latent: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = _applied(self, lambda value: sent(value, device))
        return replace(self, condition=self.condition.to(device), **moved)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that it holds, those of its condition included."""
        holders = (self, self.condition)
        found = [getattr(holder, entry.name) for holder in holders for entry in fields(holder)]
        return [each for each in [*found, *self.condition.attributes.values()] if isinstance(each, Tensor)]

    def pin_memory(self) -> Batch:
        """Called by the data loader when it pins memory."""
        return replace(self, condition=self.condition.pin_memory(), **_applied(self, Tensor.pin_memory))

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """One batch of several."""
        sizes = [len(batch.image) for batch in batches]
        return cls(
            image=torch.cat([batch.image for batch in batches]),
            condition=Condition.join([batch.condition for batch in batches], sizes),
            key=[key for batch in batches for key in batch.key],
            affine=torch.cat([batch.affine for batch in batches]),
            latent=_joined([batch.latent for batch in batches], sizes, torch.nan),
        )


@dataclass(frozen=True)
class Request:
    """Images that are asked for, one for each seed.

    Attributes:
        seeds: b, one an image; an image depends on its seed and its condition only.
        condition: what the images are to be made from.
        key: b store keys of the images that the conditions were taken from; "" where there is none.
        affine: b 4 4, voxel to world in mm, which the files of the images take; None: a grid centred on the origin.
        target: b c *s, the true images in paired tasks.
    """

    seeds: list[int]
    condition: Condition = field(default_factory=Condition)
    key: list[str] = field(default_factory=list)
    affine: Tensor | None = None
    target: Tensor | None = None

    def to(self, device: torch.device | str) -> Request:
        """The same request with its condition on another device."""
        return replace(self, condition=self.condition.to(device))

    @classmethod
    def join(cls, requests: Sequence[Request]) -> Request:
        """One request of several; all of them have an affine and a target, or none."""
        sizes = [len(request.seeds) for request in requests]
        return cls(
            seeds=[seed for request in requests for seed in request.seeds],
            condition=Condition.join([request.condition for request in requests], sizes),
            key=[key for request in requests for key in request.key or [""] * len(request.seeds)],
            affine=_joined([request.affine for request in requests], sizes, torch.nan),
            target=_joined([request.target for request in requests], sizes, torch.nan),
        )


@dataclass(frozen=True)
class Requests:
    """All images that are asked for in one run; what they are made from is read when they are made.

    Attributes:
        seeds: n, one an image.
        made_from: n, what the manifest says of each: attributes by name, "label_map", "source", "mask" and "given" by
            file or slices, "text" by name, "key" of the data's own image.
        parts: what the conditions hold.
        read: index -> the `Request` of that image alone.
        drawn: those of the parts that another model made out of noise, and which show no patient.
    """

    seeds: Sequence[int]
    made_from: Sequence[Mapping[str, Any]]
    parts: frozenset[Part]
    read: Callable[[int], Request]
    drawn: frozenset[Part] = frozenset()

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def of_patients(self) -> frozenset[Part]:
        """The parts that may show a patient."""
        return self.parts - self.drawn

    def joined(self, indices: Sequence[int]) -> Request:
        """The requests with these indices as one."""
        return Request.join([self.read(index) for index in indices])

    def batches(self, batch_size: int) -> Iterator[Request]:
        """All requests, so many joined at a time."""
        for start in range(0, len(self), batch_size):
            yield self.joined(range(start, min(start + batch_size, len(self))))

    def chosen(self, indices: Sequence[int], seeds: Sequence[int]) -> Requests:
        """Some of the requests, each with a seed of its own."""

        def read(index: int) -> Request:
            return replace(self.read(indices[index]), seeds=[seeds[index]])

        return replace(self, seeds=seeds, made_from=[self.made_from[index] for index in indices], read=read)

    def reconstructing(self, source_of: Callable[[Tensor], Tensor]) -> Requests:
        """The same requests with what `source_of` makes of the true images (b c *s) as their sources."""

        def read(index: int) -> Request:
            request = self.read(index)
            assert request.target is not None
            return replace(request, condition=replace(request.condition, source=source_of(request.target)))

        return replace(self, read=read)

    def only(self, parts: Collection[Part], attributes: Collection[str]) -> Requests:
        """The same requests without parts and attributes that are not named."""

        def read(index: int) -> Request:
            request = self.read(index)
            return replace(request, condition=request.condition.only(parts, attributes))

        all_parts = {"label_map": "label_map", "source": "source", "given": "image", "mask": "image", "text": "text"}
        gone = {name for name, part in all_parts.items() if part not in parts}
        kept = {"key", *all_parts, *attributes} - gone
        made_from = [{name: value for name, value in row.items() if name in kept} for row in self.made_from]
        return replace(self, made_from=made_from, parts=self.parts & frozenset(parts), read=read)


@dataclass(frozen=True)
class Images:
    """Images that are read when they are needed.

    Attributes:
        keys: n, all different: store keys, with the number of the slice where an image is one of several, or names.
        people: n, whose each image is, or was made from (hashed); "" for nobody's.
        read: indices -> n c *s in [-1, 1].
    """

    keys: list[str]
    people: list[str]
    read: Callable[[Sequence[int]], Tensor]

    def __len__(self) -> int:
        return len(self.keys)

    def all(self) -> Tensor:
        """n c *s in [-1, 1], at once."""
        return self.read(range(len(self)))

    @classmethod
    def of(cls, images: Tensor, people: Sequence[str] | None = None) -> Images:
        """Images that are in memory (n c *s), named by their number; nobody's unless `people` says whose they are."""

        def read(indices: Sequence[int]) -> Tensor:
            if isinstance(indices, range) and indices.step == 1:
                return images[indices.start : indices.stop]  # no copy
            return images[list(indices)]

        return cls([str(i) for i in range(len(images))], list(people or [""] * len(images)), read)


@dataclass(frozen=True)
class Score:
    """A score that a method gives itself (bits per dimension, area under a curve), for the report.

    Attributes:
        value: the score; None where it could not be measured, of which `of` says why.
        of: what it is of, in words, with its unit: "log-likelihood of the test images, bits per dimension".
        ci95: its 95 % interval, where there is one.
        num: how many images it is of, where that can be said.
        warning: what readers of a report must be told, a sentence; "" for nothing.
    """

    value: float | None
    of: str
    ci95: tuple[float, float] | None = None
    num: int | None = None
    warning: str = ""


@dataclass(frozen=True)
class DataSpec:
    """The facts of a data set that a method must agree with, kept in the checkpoint.

    Attributes:
        channels: image channels.
        size: voxels along x, y, z (or rows, columns of a 2D image).
        spacing_mm: voxel size, mm.
        orientation: axis codes, "RAS" for volumes; of 2D images those of a known plane, such as "LP" of axial slices as
            they are shown (the patient's left on the right, the front above), else empty.
        intensity_window: the values that -1 and 1 stand for.
        intensity_unit: unit of the window: "HU", "8 bit", or "normalised" for MRI.
        classes: names of the label map's classes, empty without a label map.
        attributes: name -> (low, high), the range seen in the training split.
        codes: names of those attributes that are 0 or 1 and nothing between (sex).
        fractional: names of those attributes that are not whole numbers for all training people.
        category_names: name of an attribute that is a category -> the names of its values 0, 1, ..., in order.
        slice_axis: "axial", "coronal" or "sagittal" where items are sets of slices along it; else empty.
        people: "train", "val", "test" -> one hash of all people of that part, so that another split is noticed.
        sources: names of the images that others are made from, one for each channel of `Condition.source`; empty where
            there are none.
        source_size: their voxels along each axis.
        people_sums: the same as `people`, of which can be told who left; see `lit_medgen.people`.
        left_out: hash of the list of people who are left out (withdrawals); "" without one.
        leaving: "train", "val", "test" -> hashes of the listed people who fall into that part; kept in no file.
        text_encoder: name of what embedded the texts; empty where there are none.
        text_encoder_sha256: hash of its weights, in hexadecimal.
        text_size: tokens of a text, channels of a token.
        channel_names: of each channel, such as "t1" and "flair"; empty for images of one channel without a name.
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
    sources: tuple[str, ...] = ()
    source_size: tuple[int, ...] = ()
    people_sums: dict[str, str] = field(default_factory=dict, repr=False)
    left_out: str = ""
    leaving: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)
    text_encoder: str = ""
    text_encoder_sha256: str = ""
    text_size: tuple[int, ...] = ()
    fractional: tuple[str, ...] = ()
    category_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()

    @property
    def named_channels(self) -> tuple[str, ...]:
        """A name for each channel: those of `channel_names`, or "channel_1", "channel_2", ..."""
        return self.channel_names or tuple(f"channel_{number + 1}" for number in range(self.channels))

    @property
    def is_colour(self) -> bool:
        """Whether the channels are red, green and blue, which figures and files show as one picture."""
        return is_colour(self.channel_names)

    @property
    def world_axes(self) -> tuple[int, ...]:
        """The axis of the world (0 along left and right, 1 back and front, 2 up and down) of each axis of an image."""
        return tuple("RLAPSI".index(code) // 2 for code in self.orientation or "RAS")[: len(self.size)]

    def affine(self) -> Tensor:
        """4 4, voxel to world (RAS) in mm, the centre of the grid at the world's origin."""
        affine = torch.zeros(4, 4, dtype=torch.float64)
        affine[3, 3] = 1
        for axis, world in enumerate([*self.world_axes, *sorted({0, 1, 2}.difference(self.world_axes))]):
            size, spacing = (self.size[axis], self.spacing_mm[axis]) if axis < len(self.size) else (1, 1.0)
            step = -spacing if self.orientation[axis : axis + 1] in ("L", "P", "I") else spacing
            affine[world, axis] = step
            affine[world, 3] = -step * (size - 1) / 2
        return affine

    def to_window(self, image: Tensor) -> Tensor:
        """[-1, 1] to the intensity window."""
        low, high = self.intensity_window
        return low + (image + 1) / 2 * (high - low)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name != "leaving"}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> DataSpec:
        """The inverse of `plain`."""
        values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in plain.items()}
        for name in ("attributes", "category_names"):
            values[name] = {key: tuple(each) for key, each in plain.get(name, {}).items()}
        return cls(**values)


class TrainingData(Protocol):
    """What methods, reports and callbacks may ask of the data, once it is set up."""

    spec: DataSpec

    @property
    def anatomy(self) -> str:
        """What the images show: "brain" adds scores of brains to a report."""

    @property
    def digest(self) -> str:
        """Hash of the prepared data and of the view of it, for all that is derived from both."""

    @property
    def cache(self) -> Path:
        """The folder where what is derived from the prepared data is kept."""

    def people(self, split: Split) -> dict[str, str]:
        """Store key -> whose image it is (hashed)."""

    def images(self, split: Split, one_per_person: bool = False, limit: int | None = None) -> Images:
        """Images of a split as evaluation looks at them.

        Args:
            split: the part of the people.
            one_per_person: the first visit of each person alone (with a view that shows several images of a visit,
                those of that visit, in a row).
            limit: of so many visits at most; None: of all.
        """

    def brought(self, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
        """A raw image of another folder, *t, as training images look: *size in [-1, 1], of slices the middle one.

        `affine` is voxel to world in mm. None where the data says nothing of how such an image is brought to its grid;
        ValueError for an image that would be rejected.
        """

    def requests(self, split: Split, num: int | None = None) -> Requests:
        """Requests like the people of a split: made from what theirs are made from, with the true images as targets.

        Seeds are 0, 1, ... None: one request for each image that `images` gives of one visit of each person; more begin
        again with the first person. `source` is the image itself where the data has no other.
        """

    def text_null(self) -> Tensor | None:
        """The embedded empty text, n d with NaN for padding, which a network reads where a text is absent.

        None where the data has no texts.
        """

    def stored(self, split: Split, first: int = 0) -> Iterator[Batch]:
        """For each record a batch of all images that training can see of it: all its slices where it has such.

        Args:
            split: the part of the people.
            first: how many records are passed over, unread.
        """

    def seen(self, split: Split) -> list[tuple[str, int]]:
        """Store key and number of the slice of every image that `stored` gives, in order; -1 if it is no slice."""

    def read_latents(self, latents: Callable[[Batch], Tensor] | None) -> None:
        """From now on training and validation batches hold what `latents` gives of them, and no images; None: images.

        It takes a batch without images (keys and slice numbers) to b *z codes or b d *z.
        """


def _fill(value: Tensor | None, rows: Tensor, fill: float) -> Tensor | None:
    return None if value is None else value.masked_fill(rows.view(-1, *[1] * (value.ndim - 1)), fill)


def _applied(holder: Any, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Field -> what a function makes of it, for every field that is a tensor."""
    values = {entry.name: getattr(holder, entry.name) for entry in fields(holder)}
    return {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}


def _joined(parts: Sequence[Tensor | None], sizes: Sequence[int], fill: float) -> Tensor | None:
    """One tensor of several, with `fill` for those that are None; None where all are."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    filled = [
        torch.full((size, *known.shape[1:]), fill, dtype=known.dtype) if part is None else part
        for part, size in zip(parts, sizes, strict=True)
    ]
    return torch.cat(filled)
