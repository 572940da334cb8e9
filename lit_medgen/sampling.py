"""What is asked of a generator, and what it makes of it: requests in, images out.

One loop for the verbs, the grid callback and the report: `Requests.batches`, each answered by `Generator.predict_step`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from lit_medgen.batch import DataSpec, Part, Request, Requests, Split, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.images.nodules import inside_nodules, nodule_classes
from lit_medgen.images.origin import Origin
from lit_medgen.output import say
from lit_medgen.text_embeddings import refuse_other_encoder
from lit_medgen.training.frozen import refuse_other_people
from lit_medgen.training.generator import Generator

FLAGS: dict[Part, str] = {
    "attributes": "--attributes JSON",
    "label_map": "--label_maps DIR",
    "source": "--sources DIR",
    "image": "--sources DIR with --given SLICES or --masks DIR",
    "text": "--text NAME with --text_embeddings FILE",
}
"""How the command line gives each part of a condition."""
WORDS: dict[Part, str] = {
    "attributes": "attributes",
    "label_map": "label maps",
    "source": "source images",
    "image": "given slices or a given region",
    "text": "texts",
}

FACTS_OF_IMAGES = ("size", "channels", "channel_names")
"""Fields of a `DataSpec` that must not differ from those a model was trained on."""


def facts_of_conditions(model: Generator) -> list[str]:
    """The same, with those of what the model makes images from."""
    parts = {*model.required, *model.optional}
    sources = ["sources", "source_size"] if "source" in parts and not model.reconstructs else []
    return [*FACTS_OF_IMAGES, *(["classes"] if "label_map" in parts else []), *sources]


def refuse_unlike(source: str, trained: DataSpec | None, spec: DataSpec, names: Sequence[str]) -> None:
    """InputError for data of other people than the model of a source was trained on, or other in one of these facts."""
    refuse_other_people(trained, spec, source)
    refuse_other_images(source, trained, spec, names)


def refuse_other_images(source: str, trained: DataSpec | None, spec: DataSpec, names: Sequence[str]) -> None:
    """InputError if data differs in one of these facts from what the model of a source was trained on, if it says."""
    for name in names if trained else ():
        ours, theirs = getattr(trained, name), getattr(spec, name)
        if ours != theirs:
            raise InputError(
                f"{source}: its images have {name} {ours}, but those of the data have {theirs}; use the data it was "
                "trained on."
            )


def refuse_other_texts(model: Generator, trained: DataSpec | None, spec: DataSpec) -> None:
    """InputError if a model is made from texts, and those of the data are embedded in another way than in training."""
    if model.reads_text and trained:
        refuse_other_encoder(trained, spec, "data.init_args.text")


def samples(model: Generator, requests: Requests, batch_size: int) -> Iterator[Tensor]:
    """The images of all requests, b c *size in [-1, 1] on the CPU, a batch at a time."""
    for request in requests.batches(batch_size):
        yield model.predict_step(request)


def origin(parts: Collection[Part]) -> Origin:
    """What images made from these parts of patients are: those made from a patient's image are as private as it."""
    if "source" in parts:
        return "reconstruction"
    return "completion" if "image" in parts else "synthetic"


def paired(model: Generator) -> bool:
    """Whether every image is made from what shows how it should be, so that it can be compared with a true one."""
    return bool({"source", "label_map"}.intersection(model.required))


def without_conditions(seeds: Sequence[int]) -> Requests:
    """Requests of images made from nothing but their seeds."""
    return Requests(seeds, [{}] * len(seeds), frozenset(), lambda index: Request([seeds[index]]))


def like_people(model: Generator, data: TrainingData, split: Split, num: int | None) -> Requests:
    """Requests (seeds 0, 1, ...) like the people of a split, of the parts that the model makes images from.

    With `num` None, as many as there are images of one visit of each person. InputError if the data, which is set up,
    lacks what the model needs.
    """
    missing = [name for name in model.attributes if name not in data.spec.attributes]
    if missing:
        raise InputError(
            f"data.init_args: no {missing[0]!r} of the {split} people, from which this model makes images."
        )
    parts = {*model.required, *model.optional} - {"image"}  # a whole image given would leave nothing to make
    requests = data.requests(split, num).only(parts, model.attributes)
    refuse_unfit_parts(model, requests.parts)
    return requests.reconstructing(model.source_of) if model.reconstructs else requests


def refuse_unfit_parts(model: Generator, parts: Collection[Part]) -> None:
    """InputError if images are asked for without what the model needs, or with what it does not use."""
    name = type(model).__name__
    for part in model.required:
        if part not in parts:
            raise InputError(
                f"{name} makes images from {WORDS[part]}: give {FLAGS[part]}, or --like test for those of the data."
            )
    for part in parts:
        if part == "source" and "image" in model.optional and part not in model.optional:
            some, option = ("voxels", "--masks DIR") if model.completes_regions else ("slices", "--given SLICES")
            raise InputError(f"--sources: {name} keeps some {some} of a source and makes the others; add {option}.")
        if part not in (*model.required, *model.optional):
            uses = ", ".join(WORDS[known] for known in (*model.required, *model.optional)) or "nothing but seeds"
            raise InputError(f"{FLAGS[part].split()[0]}: {name} makes images from {uses}, not from {WORDS[part]}.")


def checked_attributes(
    model: Generator, attributes: Mapping[str, float | str | None], spec: DataSpec, where: str = "--attributes"
) -> dict[str, float]:
    """What images are asked to show, NaN for None; InputError for what no training person was like.

    Categories are asked for by name or by number. Of a range in the spec of the training data a twentieth more is
    allowed on either side, of which `say_extrapolated` tells; a code (sex) must be one of those seen. `where` is the
    option or file that the message names.
    """
    for name in attributes:
        if name not in model.attributes:
            raise InputError(
                f"{where}: {type(model).__name__} is not made from {name!r}, but from "
                f"{', '.join(map(repr, model.attributes)) or 'no attributes'}; leave it out, or train with it."
            )
    values = {name: _number(name, value, spec, where) for name, value in attributes.items()}
    for name, value in values.items():
        low, high = spec.attributes[name]
        margin = (high - low) / 20
        if name in spec.codes and value not in (low, high) and not math.isnan(value):
            raise InputError(f"{where}: {name} is {value:g}; it is a code: give {low:g} or {high:g}, or null.")
        if (num := model.categories.get(name)) and not math.isnan(value) and value not in range(num):
            raise InputError(f"{where}: {name} is {value:g}; give a whole number from 0 to {num - 1}, or null.")
        if not math.isnan(value) and not low - margin <= value <= high + margin:
            raise InputError(
                f"{where}: {name} is {value:g}, but the training people had {low:g} to {high:g}; give a value in that "
                "range (or null for unknown)."
            )
    return values


def _number(name: str, value: float | str | None, spec: DataSpec, where: str) -> float:
    """The value of an attribute as data has it: the number of a category that is named, NaN for None.

    InputError for a text that is neither a name nor a number.
    """
    if not isinstance(value, str):
        return math.nan if value is None else float(value)
    names = spec.category_names.get(name, ())
    by_name = {word.casefold(): number for number, word in enumerate(names)}
    if value.strip().casefold() in by_name:
        return by_name[value.strip().casefold()]
    try:
        return float(value)
    except ValueError as error:
        known = f"give {', '.join(names)} or the number of one of them" if names else "give a number"
        raise InputError(f"{where}: {name} is {value!r}; {known}, or nothing for unknown.") from error


def asking_of_nodules(model: Generator, requests: Requests) -> Requests:
    """The same requests, but what a map without a nodule cannot show is not said of its image; one line tells of them.

    InputError where no map has a nodule of which something is asked.
    """
    asked = [index for index, row in enumerate(requests.made_from) if model.nodule_attributes.intersection(row)]
    without = {index for index in asked if not _has_nodule(requests.read(index), model.needed_spec())}
    if not without:
        return requests
    unheard = {name for index in without for name in requests.made_from[index]} & model.nodule_attributes
    names = ", ".join(sorted(unheard))
    if len(without) == len(asked):
        raise InputError(f"no label map has a nodule that could be {names} as asked; paint one, or ask for none of it.")
    say(f"no nodule in {len(without)} of {len(asked)} label maps, so their images are made without {names}")
    made_from = [
        {name: value for name, value in row.items() if index not in without or name not in unheard}
        for index, row in enumerate(requests.made_from)
    ]
    return replace(requests, made_from=made_from)


def _has_nodule(request: Request, spec: DataSpec) -> bool:
    label_map = request.condition.label_map
    return label_map is not None and bool(inside_nodules(label_map, nodule_classes(spec.classes)).any())


def say_extrapolated(model: Generator, requests: Requests, spec: DataSpec) -> None:
    """Says in one line which attributes are asked for outside the range of the training people, whom `spec` is of."""
    found = []
    for name in model.attributes:
        low, high = spec.attributes[name]
        outside = [row[name] for row in requests.made_from if name in row and not low <= row[name] <= high]
        if outside:
            values = " to ".join(f"{value:g}" for value in dict.fromkeys((min(outside), max(outside))))
            found.append(
                f"{name} {values} in {len(outside)} of {len(requests)} images (training people {low:g} to {high:g})"
            )
    if found:
        say(f"asked for outside the training range, where the model extrapolates: {'; '.join(found)}")
