"""What stands in batches and requests, read from a store through a view: images, what they are made from, geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.augmenter import Drawn
from data_modules.records import Record
from data_modules.sources import IMAGE, LABEL_MAP
from data_modules.store import Store
from data_modules.texts import ImageTexts
from data_modules.views import Grid, View
from lit_medgen.batch import ABSENT_CLASS, Batch, Condition, Images, Request, Requests

BACKGROUND = -1.0
"""Of images, where a view leaves them or a set holds no slice; of label maps that is class 0."""
Latents = Callable[[Batch], Tensor]


class Items:
    """The images of a prepared store, and what they are made from, as a view shows them."""

    def __init__(self, store: Store, view: View[Any], texts: ImageTexts | None = None) -> None:
        self.store, self.view, self.texts = store, view, texts
        self.grid = Grid(store.arrays[IMAGE].size, store.axis)
        self.sources = sorted(store.arrays.keys() - {LABEL_MAP, *store.channels})

    def image(self, record: Record, selection: Any, drawn: Drawn | None = None) -> Tensor:
        """1 c *s in [-1, 1], augmented as drawn."""
        names = self.store.channels
        channels = [self._read(record, selection, name, BACKGROUND, drawn, k) for k, name in enumerate(names)]
        return torch.cat(channels, dim=1) if len(names) > 1 else channels[0]

    def condition(self, record: Record, selection: Any, choice: int = 0, drawn: Drawn | None = None) -> Condition:
        """What the image is made from, of all that the store knows of it, and one of its texts; 0 is the first."""
        label_map = None
        if LABEL_MAP in self.store.arrays:
            label_map = self._read(record, selection, LABEL_MAP, 0, drawn).long()
        slice_index, observed = self.view.slice_index(selection), self.view.observed(selection)
        return Condition(
            attributes={name: torch.tensor([value]) for name, value in record.attributes.items()},
            label_map=label_map,
            source=self._source(record, selection, drawn),
            slice_index=None if slice_index is None else torch.from_numpy(slice_index)[None],
            observed=None if observed is None else torch.from_numpy(observed)[None],
            text=self.texts.read(record, choice) if self.texts else None,
        )

    def affine(self, record: Record, selection: Any) -> Tensor:
        """1 4 4, voxel to world of the part shown, mm."""
        return torch.from_numpy(self.view.affine(record.affine, self.grid, selection))[None]

    def batch(
        self,
        record: Record,
        selection: Any,
        latents: Latents | None = None,
        choice: int = 0,
        drawn: Drawn | None = None,
    ) -> Batch:
        """A batch of one, augmented as `drawn`; with `latents`, what that gives of it, and no image.

        `choice`: see `condition`. The affine is that of the grid, whatever has been moved on it.
        """
        image = torch.empty(1, 0) if latents else self.image(record, selection, drawn)
        condition = self.condition(record, selection, choice, drawn)
        batch = Batch(image, [record.key], self.affine(record, selection), condition)
        return replace(batch, latent=latents(batch)) if latents else batch

    def evaluated(self, records: Sequence[Record]) -> list[tuple[Record, Any]]:
        """The parts of some records that evaluation looks at, those of a record in a row."""
        return [(record, part) for record in records for part in self.view.evaluated(self.grid, record)]

    def images(self, records: Sequence[Record], size: tuple[int, ...]) -> Images:
        """What evaluation looks at of some records, of the size of an item."""
        parts = self.evaluated(records)

        def read(indices: Sequence[int]) -> Tensor:
            images = [self.image(*parts[index]) for index in indices]
            return torch.cat(images) if images else torch.empty(0, len(self.store.channels), *size)

        return Images([self._name(*part) for part in parts], [record.person for record, _ in parts], read)

    def requests(self, records: Sequence[Record], num: int | None, attributes: bool) -> Requests:
        """Requests like the images that evaluation looks at, again from the first where more are asked for.

        As many as images unless `num` is given; `attributes` says whether any attribute is known.
        """
        parts = self.evaluated(records)
        num = len(parts) if num is None else num
        made_from = [self._made_from(*parts[index % len(parts)]) for index in range(num)]
        there = {"attributes": attributes, "label_map": LABEL_MAP in self.store.arrays, "source": True}
        there["text"] = self.texts is not None
        names: frozenset[Any] = frozenset(name for name, known in there.items() if known)
        return Requests(range(num), made_from, names, lambda index: self._request(index, *parts[index % len(parts)]))

    def _name(self, record: Record, selection: Any) -> str:
        """The key of an image, with that of the part where it is one of several."""
        return record.key + self.view.name(selection)

    def _made_from(self, record: Record, selection: Any) -> Mapping[str, Any]:
        """What the manifest says of an image made like another: the other's key and its known attributes."""
        known = {name: value for name, value in record.attributes.items() if np.isfinite(value)}
        return {"key": self._name(record, selection), **known}

    def _request(self, seed: int, record: Record, selection: Any) -> Request:
        image, condition = self.image(record, selection), self.condition(record, selection)
        if not self.sources:
            condition = replace(condition, source=image)
        return Request([seed], condition, [record.key], self.affine(record, selection), image)

    def stored(self, record: Record) -> Batch:
        """All that training can see of a record."""
        parts = self.view.every(self.grid, record)
        return Batch.join([self.batch(record, part) for part in parts])

    def seen(self, record: Record) -> list[tuple[str, int]]:
        """Key of the record and number of the slice of each of these; -1 where they are no slices."""
        indices = [self.view.slice_index(part) for part in self.view.every(self.grid, record)]
        return [(record.key, -1 if index is None else int(index[0])) for index in indices]

    def _read(
        self,
        record: Record,
        selection: Any,
        name: str,
        padding: float,
        drawn: Drawn | None = None,
        channel: int | None = None,
    ) -> Tensor:
        """1 1 *s: an array as the view shows it; `channel` is its number where it is one of the image."""
        array = self.store.arrays[name]
        if name != IMAGE and name not in record.beside:
            padding = ABSENT_CLASS if name == LABEL_MAP else torch.nan
            read = partial(array.filled, padding)
        else:
            read = partial(self.store.read, record, name=name)
        grid = Grid(array.size, self.store.axis)
        moved = drawn.moved(read, array.size, self.view.box(grid, selection), name, padding) if drawn else read
        part = self.view.read(moved, grid, selection, padding)
        if drawn:
            index = self.view.slice_index(selection)
            real = None if part.ndim == len(grid.size) - 1 or index is None else index >= 0
            part = drawn.changed(part, name if channel is None else IMAGE, real, channel or 0)
        return torch.from_numpy(np.ascontiguousarray(part))[None, None]

    def _source(self, record: Record, selection: Any, drawn: Drawn | None = None) -> Tensor | None:
        """1 c *s: the other sources in order of their names; absent as a whole if one of them is."""
        if not self.sources:
            return None
        source = torch.cat([self._read(record, selection, name, BACKGROUND, drawn) for name in self.sources], dim=1)
        return source if set(self.sources) <= set(record.beside) else torch.full_like(source, torch.nan)
