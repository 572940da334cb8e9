"""Whether networks fit the images or latents that they see, asked before anything is prepared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError


def refuse_other_channels(key: str, found: int | None, shape: DataSpec) -> None:
    """InputError, naming the key below model.init_args, for a network of another number of channels than the images'.

    None is a network that does not say how many it has, of which nothing is known.
    """
    if found is not None and found != shape.channels:
        names = f" ({', '.join(shape.channel_names)})" if shape.channel_names else ""
        raise InputError(
            f"model.init_args.{key} is {found}, but the images have {shape.channels} channels{names}; give "
            f"{shape.channels}."
        )


def refuse_unfit(key: str, network: nn.Module, channels: int, size: Sequence[int], of: str, joined: int = 0) -> None:
    """InputError if a network does not take and give so many channels, or not maps of this size.

    Args:
        key: of the network, below model.init_args.
        network: of its attributes `dim`, `in_channels`, `out_channels`, `size` and `divisor` those are compared that it
            has.
        channels: of what it takes and gives.
        size: of what it takes and gives, one for each spatial axis.
        of: what that is, in words.
        joined: channels that it takes beside them.
    """
    beside = f", beside which it takes {joined}" if joined else ""
    for name, expected in (("dim", len(size)), ("in_channels", channels + joined), ("out_channels", channels)):
        if (found := getattr(network, name, expected)) != expected:
            raise InputError(
                f"model.init_args.{key}.init_args.{name} is {found}, but {of} have {len(size)} axes and {channels} "
                f"channels{beside}; give {expected}."
            )
    found_size = " x ".join(map(str, size))
    if tuple(own := getattr(network, "size", size)) != tuple(size):
        raise InputError(
            f"model.init_args.{key}: {of} are {found_size}, but the {key} takes {' x '.join(map(str, own))}; change "
            "one of them."
        )
    divisor = getattr(network, "divisor", 1)
    if any(side % divisor for side in size):
        raise InputError(
            f"model.init_args.{key}: {of} are {found_size}, but the {key} takes multiples of {divisor}; give images of "
            "another size, or fewer levels."
        )
