"""A batch as training sees it, from a data module that has no data: zeros of the shapes that its config decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_modules.base import MedicalDataModule
from data_modules.records import Record
from data_modules.views import Grid
from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method


def made_up_spec(data: MedicalDataModule, model: Method) -> DataSpec:
    """The facts of the data as far as a config tells them, with the attributes that the model reads, each from 0 to 1.

    InputError for images that do not fit the model.
    """
    shape = data.shape()
    names = [*getattr(model, "attributes", ()), *getattr(model, "outputs", ())]
    return DataSpec(**{**vars(shape), "attributes": dict.fromkeys(names, (0.0, 1.0))})


def made_up_batch(data: MedicalDataModule, spec: DataSpec) -> Batch:
    """A batch of zeros with all that an item of these data can have."""
    num, stored = data.batch_size, data.stored_spec()
    record = _record(data, stored)
    grid = _grid(data, stored.size)
    selection: Any = data.view.draw(grid, record, np.random.default_rng(0))
    size = _size(data, grid, selection)
    of_source = _size(data, _grid(data, stored.source_size), selection) if spec.sources else ()
    index, observed = data.view.slice_index(selection), data.view.observed(selection)
    condition = Condition(
        attributes={name: torch.zeros(num) for name in spec.attributes},
        label_map=torch.zeros(num, 1, *size, dtype=torch.int64) if spec.classes else None,
        source=torch.zeros(num, len(spec.sources), *of_source) if spec.sources else None,
        slice_index=None if index is None else torch.tensor(index.tolist()).expand(num, -1),
        observed=None if observed is None else torch.tensor(observed.tolist()).expand(num, -1),
        text=torch.zeros(num, *spec.text_size) if spec.text_size else None,
    )
    image = torch.zeros(num, spec.channels, *size)
    return Batch(image, [f"{i}" for i in range(num)], torch.zeros(num, 4, 4), condition)


def made_up_condition(model: Generator, spec: DataSpec) -> Condition:
    """What one image is made from, zeros: all that images of this model can be made from, but for given slices."""
    image = torch.zeros(1, spec.channels, *spec.size)
    source = model.source_of(image) if model.reconstructs else None
    if source is None and spec.sources:
        source = torch.zeros(1, len(spec.sources), *spec.source_size)
    condition = Condition(
        attributes={name: torch.zeros(1) for name in spec.attributes},
        label_map=torch.zeros(1, 1, *spec.size, dtype=torch.int64) if spec.classes else None,
        source=source,
        text=torch.zeros(1, *spec.text_size) if spec.text_size else None,
    )
    return condition.only([*model.required, *model.optional], model.attributes)


def _grid(data: MedicalDataModule, size: tuple[int, ...]) -> Grid:
    return Grid(size, data.axis if len(size) == 3 else "")


def _size(data: MedicalDataModule, grid: Grid, selection: Any) -> tuple[int, ...]:
    """The shape of an item, as the view reads it."""

    def read(indices: np.ndarray | None) -> np.ndarray:
        plane = [grid.size[axis] for axis in grid.plane]
        return np.zeros(grid.size if indices is None else (len(indices), *plane), dtype=np.uint8)

    return data.view.read(read, grid, selection, 0).shape


def _record(data: MedicalDataModule, stored: DataSpec) -> Record:
    """An image with a point, where its view crops around one, in its middle."""
    centre = getattr(data.view, "centre", None)
    facts = {centre: (np.array(stored.size) - 1) / 2} if centre else {}
    return Record("0", "", "", "", 0.0, np.eye(4), {}, facts=facts)
