"""Cascades: images that one model makes are the sources of another (Ho et al. 2022, "Cascaded Diffusion Models").

The second image is made from the seed of the first, so an image of a cascade depends on its seed and on what was asked
for, as any other does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_medgen.batch import Condition, DataSpec, Request, Requests
from lit_medgen.checkpoints import behind_link, checkpoint_file
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.loading import load
from lit_medgen.requests import RequestOptions, requested, showing
from lit_medgen.sampling import checked_attributes, refuse_unfit_parts, say_extrapolated
from lit_medgen.training.frozen import refuse_other_people
from lit_medgen.training.generator import Generator

SAME_SPACING = 0.01
"""Relative difference of voxel sizes that is none."""


def cascaded(path: str, options: RequestOptions, model: Generator, spec: DataSpec, device: torch.device) -> Requests:
    """Requests whose sources are samples of another checkpoint, each of the same seed.

    Attributes go to whichever of the two models is made from them, or to both. InputError for a checkpoint whose images
    cannot be sources of this model, and for other options than numbers, seeds and attributes.

    Args:
        path: the checkpoint that makes the sources.
        options: what is asked for beside it.
        model: makes images from the sources.
        spec: of the data that the model was trained on.
        device: where the sources are made.
    """
    others = (options.label_maps, options.sources, options.given, options.table, options.like, options.text)
    if any(other is not None for other in others):
        raise InputError("--sources_from: with it give --num or --seeds, and --attributes; leave out the others.")
    if "source" not in model.required:
        raise InputError(f"--sources_from: {type(model).__name__} makes no images from sources; leave it out.")
    path = behind_link(checkpoint_file(path))
    if not Path(path).is_file():
        raise MissingDataError(f"--sources_from: no file '{path}'; give the checkpoint of a model that makes sources.")
    first = _first(path, model, spec).to(device)
    asked, own = _split(options.attributes or {}, first, model)
    sources = requested(replace(options, attributes=asked or None), first, first.needed_spec(), None)
    say_extrapolated(first, sources, first.needed_spec())

    def read(index: int) -> Request:
        request = sources.read(index)
        return Request(request.seeds, Condition(source=first.predict_step(request)), affine=spec.affine()[None])

    made_from = [{**row, "source": path} for row in sources.made_from]
    requests = Requests(sources.seeds, made_from, frozenset({"source"}), read, drawn=frozenset({"source"}))
    requests = showing(requests, checked_attributes(model, own, spec)) if own else requests
    refuse_unfit_parts(model, requests.parts)
    return requests


def _split(
    attributes: Mapping[str, float | str | None], first: Generator, model: Generator
) -> tuple[dict[str, float | str | None], dict[str, float | str | None]]:
    """The attributes that sources are made from, and those that their images are, where unknown ones are refused."""
    asked = {name: value for name, value in attributes.items() if name in first.attributes}
    own = {name: value for name, value in attributes.items() if name in model.attributes or name not in asked}
    return asked, own


def _first(path: str, model: Generator, spec: DataSpec) -> Generator:
    """The model of a checkpoint; InputError if its images cannot be sources of the other."""
    first = load(path)
    if not isinstance(first, Generator) or first.required:
        what = " and ".join(first.required) if isinstance(first, Generator) else ""
        how = (
            f"makes images from {what}; sample it into a folder, and give --sources DIR" if what else "makes no images"
        )
        raise InputError(f"--sources_from {path}: {type(first).__name__} {how}.")
    theirs, ours = first.needed_spec(), model.source_spec(spec)
    refuse_other_people(theirs, spec, f"--sources_from {path}")
    expected: dict[str, Any] = {
        "size": tuple(ours.source_size or ours.size),
        "channels": len(ours.sources) or ours.channels,
        "intensity_window": ours.intensity_window,
        "intensity_unit": ours.intensity_unit,
    }
    found = {name: getattr(theirs, name) for name in expected}
    on_grid = found["size"] == expected["size"] == ours.size  # of sources on a grid of their own no voxel size is known
    if on_grid and not np.allclose(theirs.spacing_mm, ours.spacing_mm, rtol=SAME_SPACING):
        expected, found = expected | {"spacing_mm": ours.spacing_mm}, found | {"spacing_mm": theirs.spacing_mm}
    for name, value in expected.items():
        if found[name] != value:
            raise InputError(
                f"--sources_from {path}: its images have {name} {found[name]}, but {type(model).__name__} makes images "
                f"from sources of {value}; give a model of such images."
            )
    return first
