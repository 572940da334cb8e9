"""What of a crop classifier fits what: its arguments each other, crops the first stage, data the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.nodules import nodule_classes
from lit_medgen.training.fitting import refuse_other_channels
from lit_medgen.training.label_likelihoods import NUM_COLUMNS, Kind, LabelLikelihoods


def labels_of(outputs: Mapping[str, Kind], network: Any) -> LabelLikelihoods:
    """The likelihoods of the outputs; ValueError if there are none, or not as many columns as the network has."""
    if not outputs or not set(outputs.values()) <= set(NUM_COLUMNS):
        raise ValueError(f"model.init_args.outputs is {outputs}; give attribute: binary or number, at least one.")
    labels = LabelLikelihoods(outputs)
    if (found := getattr(network, "out_channels", labels.num_columns)) != labels.num_columns:
        raise ValueError(
            f"model.init_args.network.init_args.out_channels is {found}; the outputs {outputs} need "
            f"{labels.num_columns}, one for each that is binary and two for each number."
        )
    return labels


def refuse_cut(crop: int | None, margin: int, first_stage: str | None) -> None:
    """ValueError for a margin or a crop of latents that cannot be, or that is given to a judge."""
    if margin < 0 or (margin and not first_stage):
        raise ValueError(
            f"model.init_args.margin is {margin}; give 0 or more pixels, and 0 without a first stage, which alone "
            "has a use for them."
        )
    if crop is not None and (crop < 1 or margin or not first_stage):
        raise ValueError(
            f"model.init_args.crop is {crop}; give 1 or more pixels, with a first stage and without a margin."
        )


def refuse_network(network: nn.Module, shape: DataSpec) -> None:
    """InputError for images of other axes or channels than the network takes."""
    if len(shape.size) != (dim := getattr(network, "dim", len(shape.size))) or shape.slice_axis:
        raise InputError(
            f"model.init_args.network.init_args.dim is {dim}, but the data gives "
            f"{'sets of slices' if shape.slice_axis else f'images of {len(shape.size)} axes'}; crop it with a view."
        )
    refuse_other_channels("network.init_args.in_channels", getattr(network, "in_channels", None), shape)


def refuse_pixels(shape: DataSpec, crop: int | None, margin: int, divisor: int) -> None:
    """InputError if what is encoded or cut is no whole number of a latent's pixels, or nothing is left of it.

    Args:
        shape: of what the data shows.
        crop: pixels that are cut out of it, if they are.
        margin: pixels that are cut off at each side.
        divisor: pixels of an image for each of its latent.
    """
    for name, pixels in (("margin", (margin,)), ("the crop", (crop or 0,)), ("what the data shows", shape.size)):
        if any(side % divisor for side in pixels):
            raise InputError(
                f"model.init_args.first_stage: a pixel of its latents is {divisor} of an image, of which "
                f"{name}, {' x '.join(map(str, pixels))}, is no multiple; change data.init_args.crop.init_args.size"
                " or model.init_args.margin."
            )
    if crop and not nodule_classes(shape.classes):
        raise InputError("model.init_args.crop: the data has no label maps with nodules; crop it with a view.")
    if min(shape.size) <= 2 * margin:
        raise InputError(
            f"model.init_args.margin is {margin}, which leaves nothing of a crop of "
            f"{' x '.join(map(str, shape.size))}; let the view read 2 x {margin} pixels more than the crop."
        )


def refuse_labels(outputs: Mapping[str, Kind], spec: DataSpec) -> None:
    """InputError if the data does not tell the labels, or the same value of all training people."""
    for name, kind in outputs.items():
        low, high = spec.attributes.get(name, (math.nan, math.nan))
        if not low < high or (kind == "binary" and name not in spec.codes):
            seen = "is no attribute of the data" if name not in spec.attributes else f"lies from {low:g} to {high:g}"
            known = ", ".join(spec.codes if kind == "binary" else spec.attributes) or "none"
            raise InputError(
                f"model.init_args.outputs.{name}: {name} {seen} (training people), but a {kind} output needs "
                f"{'0 and 1 and nothing between' if kind == 'binary' else 'different numbers'}; such are: {known}."
            )
