"""What is asked of a completion: which slices or voxels of an image are given, so that the others are made to fit.

A row of what an image is made from says it by "given", numbers of slices, or by "mask", a file that is 0 where the
image is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen.axes import AXES
from lit_medgen.batch import Condition, DataSpec, Request, Requests
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.request_files import listed_images, read_mask
from lit_medgen.training.generator import Generator

GIVEN = frozenset({"given", "mask"})
"""Names by which a row says what of its image is given."""


def giving(condition: Condition, image: Tensor, row: Mapping[str, Any], spec: DataSpec) -> Condition:
    """The condition with parts of an image (1 c *s) given, as a row says."""
    if "mask" in row:
        return replace(condition, image=image, observed=read_mask(row["mask"], spec))
    observed = torch.zeros(1, _num_slices(spec), dtype=torch.bool)
    observed[0, list(row["given"])] = True
    return replace(condition, image=image, observed=observed)


def refuse_unfit_completion(row: Mapping[str, Any], model: Generator, spec: DataSpec, where: str = "--") -> None:
    """InputError for slices of a model that makes no slices, or that are not there, and for masks where it does."""
    if "mask" in row and not (model.completes_regions and "image" in model.optional):
        instead = "; give --given SLICES" if "image" in model.optional else ", as it completes no images; leave it out"
        raise InputError(f"{where}mask{'s' * (where == '--')}: {type(model).__name__} takes no masks{instead}.")
    if "given" in row:
        if not spec.slice_axis:
            raise InputError(f"{where}given: this model makes no slices of volumes; leave it out.")
        slices, num = row["given"], _num_slices(spec)
        if not slices or not 0 <= min(slices) <= max(slices) < num:
            raise InputError(f"{where}given {list(slices)}: give some of the {spec.slice_axis} slices 0 to {num - 1}.")


def _num_slices(spec: DataSpec) -> int:
    """Slices of a volume along the axis that the model makes them along."""
    return spec.size[AXES[spec.slice_axis]]


def masks_for(path: str, sources: Sequence[str]) -> list[Path]:
    """The mask of each source, whose names are given without suffix: a file for all, or those of the same names."""
    if not Path(path).is_dir():
        return [_file(path)] * len(sources)
    files = listed_images("--masks", Path(path))
    if missing := sorted(set(sources) - set(files)):
        raise MissingDataError(f"--masks {path}: no mask of the source {missing[0]!r}; name masks as their sources.")
    return [files[name] for name in sources]


def completing(requests: Requests, given: Sequence[int] | None, masks: str | None, spec: DataSpec) -> Requests:
    """Requests like people of the data, of whose images some slices, or what a mask leaves, are given.

    Of a folder of masks, the i-th in order of the names is that of the i-th image, and the first comes after the last.
    """
    if given is not None:
        parts: list[dict[str, Any]] = [{"given": list(given)}]
    else:
        assert masks is not None
        folder = Path(masks).is_dir()
        files = list(listed_images("--masks", Path(masks)).values()) if folder else [_file(masks)]
        parts = [{"mask": file} for file in files]
        for file in files:  # before hours are spent on the images of the first of them
            read_mask(file, spec)

    def read(index: int) -> Request:
        request = requests.read(index)
        assert request.target is not None
        row = parts[index % len(parts)]
        return replace(request, condition=giving(request.condition, request.target, row, spec))

    shown = [{name: value.name if name == "mask" else value for name, value in row.items()} for row in parts]
    rows = [{**row, **shown[i % len(shown)]} for i, row in enumerate(requests.made_from)]
    return replace(requests, made_from=rows, parts=requests.parts | {"image"}, read=read)


def _file(path: str) -> Path:
    if not Path(path).exists():
        raise MissingDataError(f"--masks: no file or folder '{path}'.")
    return Path(path)
