"""Channels of an image: those in its own file, or the images of other contrasts that lie beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from data_modules.sources import IMAGE, LABEL_MAP
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import PREPROCESSING

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Of a channel, which is a part of names of files."""


def refuse_names(channels: Sequence[str], sources: Sequence[str], has_raw_head: bool) -> None:
    """InputError for names of channels that cannot be those of files, or that name something else already."""
    if not channels:
        return
    said = f"{PREPROCESSING}.channels is {list(channels)}"
    if len({name.lower() for name in channels}) < len(channels) or not all(map(NAME.fullmatch, channels)):
        raise InputError(f"{said}; give a name of its own to each, of letters, digits, - and _.")
    if taken := {IMAGE, LABEL_MAP, *sources}.intersection(channels):
        raise InputError(f"{said}, but {', '.join(sorted(taken))} names something else beside the images; rename it.")
    if has_raw_head and len(channels) > 1:
        raise InputError(f"{said}: raw_head makes a brain of one contrast alone; give brains, and leave raw_head out.")


def own_channels(channels: Sequence[str], beside: Collection[str]) -> Sequence[str]:
    """The channels that an image's own file should have; none where others lie beside it, or none are asked for.

    ValueError, naming it, for a channel that is missing where another lies beside the image.
    """
    there = [name for name in channels[1:] if name in beside]
    if not there:
        return channels
    if missing := [name for name in channels[1:] if name not in beside]:
        raise ValueError(f"no channel {' and no '.join(missing)} beside it; expected {', '.join(channels)}")
    return ()


def refuse_other_number(num: int, own: Sequence[str]) -> None:
    """ValueError for a file of more or fewer channels than it should have."""
    if num != len(own):
        beside = f", or one channel with {', '.join(own[1:])} beside it" if len(own) > 1 else ""
        raise ValueError(f"{num} channel{'s' * (num != 1)}; expected {len(own)} ({', '.join(own)}){beside}")
