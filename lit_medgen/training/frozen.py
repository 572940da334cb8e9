"""`FrozenPart`: a trained method that another is built on, and what is refused as one.

A method reads its parts from their checkpoints when it is trained. Its own checkpoint then holds their records and
weights, so one file is enough to sample and to go on training; `lit_medgen.training.recorded` keeps and restores them.

A late part is not needed to train: a classifier that guides sampling alone. A method that was trained without one reads
it from its file when it is loaded; one that was there in training is kept like any other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lit_medgen.batch import DataSpec
from lit_medgen.checkpoints import checkpoint_file
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.loading import load
from lit_medgen.output import say
from lit_medgen.people import who_left

SAME_FACTS = ("size", "channels", "channel_names", "spacing_mm", "intensity_window")
"""Fields of the spec that a part's images must share with the data's."""

SAME_SECTIONS = ("axis", "preprocessing", "ct.size", "ct.pixels", "ct.segmentation")
"""Arguments of the data module that a part of the same data must have been trained with; those of others are free."""

MAX_SPACING_RATIO = 1.25
"""Pixels of crops may be larger by this factor than others that a network has seen: scans have pixels of their own."""


@dataclass(frozen=True)
class FrozenPart:
    """A trained method that another one is built on, and which is trained no further.

    Attributes:
        path: its checkpoint, which `fit` reads, or the run folder of that.
        kind: the class that it must be an instance of.
        make: the command that trains one, for the messages.
        same_data: whether it must have been trained on images of the same kind, and on the same people.
        trained_on: names of other parts of the same method that it must itself hold as parts: a classifier that guides
            sampling in the latents of a first stage holds that first stage.
        same_facts: fields of the spec that are compared, where data is the same; the size of a crop is another.
        same_noise: whether it must have been trained on the method's noise levels, which are the `log_snr` of both
            `facts()`.
        late: whether the method may have been trained without it; its constructor names the part where it has a path.
    """

    path: Path
    kind: type[Any]
    make: str
    same_data: bool = True
    trained_on: tuple[str, ...] = ()
    same_facts: tuple[str, ...] = SAME_FACTS
    same_noise: bool = False
    late: bool = False

    @property
    def file(self) -> Path:
        """The file at the path, or the newest checkpoint of the run folder there."""
        return Path(checkpoint_file(str(self.path)))

    def read(self, name: str, config: dict[str, Any] | None) -> Any:
        """The trained method of the checkpoint, without what its training alone needs.

        MissingDataError if there is no file; InputError for a method of another kind, or one that was trained on images
        that were prepared in another way.

        Args:
            name: of the part, which is also the argument that gives its path.
            config: that of the method which is built on it.
        """
        if not self.file.is_file():
            raise MissingDataError(
                f"model.init_args.{name}: no file '{self.path}'; make it with `{self.make}`, or give the checkpoint "
                "of yours."
            )
        part = load(self.file)
        if not isinstance(part, self.kind):
            raise InputError(
                f"model.init_args.{name}: {self.path} is a checkpoint of {type(part).__name__}, not of "
                f"{self.kind.__name__}; make one with `{self.make}`."
            )
        theirs, ours = ((each or {}).get("data") or {} for each in (part.config, config))
        for key in SAME_SECTIONS if self.same_data and theirs and ours else ():
            expected, found = (_of_images(_argument(section, key)) for section in (theirs, ours))
            if found != expected:
                name, found, expected = _differing(key, found, expected)
                raise InputError(
                    f"data.init_args.{name} is {found}, but {self.path} was trained with {expected}; use the same, so "
                    "that images look the same."
                )
        return part.as_frozen_part()


def _of_images(section: Any) -> Any:
    """A section of the data without what is read beside the images, which does not change them.

    Nor does an argument that is empty, which a checkpoint of an earlier version may not have.
    """
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key != "sources" and value not in (None, [], {})}


def _differing(key: str, found: Any, expected: Any) -> tuple[str, Any, Any]:
    """The first argument below `key` in which two sections differ, and its two values."""
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return key, found, expected
    name = next(name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))
    return f"{key}.{name}", found.get(name), expected.get(name)


def _argument(section: dict[str, Any], key: str) -> Any:
    """What a section of a config gives for an argument of the data module, or a.b for a part of it; None: nothing."""
    found: Any = section.get("init_args")
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def spacing_ratio(one: DataSpec, other: DataSpec) -> float:
    """By what factor pixels differ in size, at least 1, on the axis where they do most; 1 where one is unknown."""
    ratios = [max(a / b, b / a) for a, b in zip(one.spacing_mm, other.spacing_mm, strict=False)]
    return max((ratio for ratio in ratios if ratio >= 1), default=1.0)


def refuse_other_people(trained: DataSpec | None, data: DataSpec | None, source: Any) -> None:
    """InputError if two specs are known to be of different splits; people who have left since are told, by number.

    InputError as well if what is known of people has other codes: see `refuse_other_categories`.

    Args:
        trained: of the data that a model, or what made some samples, was trained on.
        data: of the data it meets now.
        source: what was trained, for the message.
    """
    if trained is None or data is None:
        return
    refuse_other_categories(trained, data, source)
    if not (trained.people and data.people):
        return
    other = [part for part in trained.people if trained.people[part] != data.people.get(part)]
    left = {
        part: who_left(trained.people_sums.get(part, ""), data.people_sums.get(part, ""), data.leaving.get(part, ()))
        for part in other
    }
    unknown = [part for part in other if left[part] is None]
    if unknown:
        hashes = ", ".join(
            f"{part} {trained.people[part][:8]}, here {data.people.get(part, '')[:8]}" for part in unknown
        )
        raise InputError(
            f"{source}: trained on another split of people than that of this data (hashes: {hashes}), so some who "
            "count as unseen may have been trained on. Look at data.init_args.seed, data.init_args.fractions, "
            "data.init_args.root and lists of people; give those it was trained with, so that the same people are "
            "unseen. A list of people who are left out may only have grown."
        )
    if other:
        num = ", ".join(f"{len(people or ())} {part}" for part, people in left.items())
        _tell_of_left(str(source).removeprefix("--ckpt_path "), num)


def refuse_other_categories(trained: DataSpec, data: DataSpec, source: Any) -> None:
    """InputError if a category's codes mean other values in the data than where a model was trained.

    Values that came later may follow. Arguments: see `refuse_other_people`.
    """
    for name, values in trained.category_names.items():
        found = data.category_names.get(name, values)
        if found[: len(values)] != values:
            raise InputError(
                f"{source}: trained with the categories {', '.join(values)} of {name}, but those of this data are "
                f"{', '.join(found)}; give data.init_args.categories a list of values that begins with the former."
            )


@lru_cache
def _tell_of_left(source: str, num: str) -> None:
    """Says it once of a source."""
    say(
        f"{source}: trained when people were there who are left out now ({num}): its weights have seen those of train. "
        "Whether it may be used further is for the data's terms to say.",
        warning=True,
    )


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
