"""What the page does for a visitor: images of what is wished, and files of them, by the ways of `sample`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from lit_medgen.app.maps import LabelMap
from lit_medgen.batch import DataSpec, Request, Requests
from lit_medgen.errors import InputError
from lit_medgen.images.origin import Origin
from lit_medgen.requests import RequestOptions, requested, showing
from lit_medgen.sample_files import Format, SampleFile, sample_names
from lit_medgen.sampling import asking_of_nodules, checked_attributes, origin, refuse_unfit_parts, samples
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method

MIN_MAX_STEPS = 100
"""A sampler can be asked for so many steps at least, even if it takes fewer by itself."""


@dataclass(frozen=True)
class Wishes:
    """What an image is asked to be.

    Attributes:
        seed: of its noise.
        attributes: name -> value, or the name of a category.
        num_steps: of sampling; None: the model's own.
        guidance: name -> scale, of those that the model has.
        label_map: what it is made from; None for models that take none.
        source: folder of the image that it is made from; None for models that take none.
    """

    seed: int
    attributes: Mapping[str, float | str | None] = field(default_factory=dict)
    num_steps: int | None = None
    guidance: Mapping[str, float] = field(default_factory=dict)
    label_map: LabelMap | None = None
    source: Path | None = None


@dataclass(frozen=True)
class Made:
    """An image that was made.

    Attributes:
        seed: of its noise.
        name: of its files.
        image: c *s in [-1, 1].
        affine: 4 4, voxel to world; None: the grid of the data.
        origin: what it was made from.
    """

    seed: int
    name: str
    image: Tensor
    affine: Tensor | None
    origin: Origin

    def values(self, spec: DataSpec) -> np.ndarray:
        """The image in the units of the data, c *s."""
        return np.asarray(spec.to_window(self.image).numpy())


class Desk:
    """A trained model, and the folder where files of its images lie until the server ends.

    Args:
        model: in evaluation mode, on its device.
        model_hash: SHA-256 of its checkpoint.
        folder: private to the user.
        maps: label maps of the data, where it is at hand.
    """

    def __init__(self, model: Generator, model_hash: str, folder: Path, maps: Requests | None = None) -> None:
        self.model, self.model_hash, self.folder, self.maps = model, model_hash, folder, maps
        self.spec = model.needed_spec()

    @property
    def max_steps(self) -> int | None:
        """Most steps that samples can be asked for; None where they are not made in steps.

        A method with `num_steps` of its own has learned so many levels and no more.
        """
        own = self.model.num_sampling_steps
        return own if own is None or hasattr(self.model, "num_steps") else max(own, MIN_MAX_STEPS)

    @property
    def num_maps(self) -> int:
        """Label maps of the data."""
        return len(self.maps) if self.maps else 0

    def map_of_data(self, index: int) -> LabelMap:
        """A label map of the data, with its place; the first comes after the last."""
        assert self.maps is not None
        request = self.maps.read(index % len(self.maps))
        assert request.condition.label_map is not None
        return LabelMap(request.condition.label_map[0, 0].numpy(), request.affine)

    def requests(self, wishes: Wishes) -> Requests:
        """The request that `sample` would make; InputError for what the model cannot make images from."""
        sources = str(wishes.source) if wishes.source else None
        options = RequestOptions(seeds=[wishes.seed], attributes=wishes.attributes, sources=sources)
        if (label_map := wishes.label_map) is None:
            return requested(options, self.model, self.spec, None)
        affine = self.spec.affine()[None] if label_map.affine is None else label_map.affine
        request = Request([wishes.seed], label_map.condition, affine=affine)
        requests = Requests(request.seeds, [{}], frozenset(request.condition.parts), lambda _: request)
        if wishes.attributes:
            requests = showing(requests, checked_attributes(self.model, wishes.attributes, self.spec, "wishes"))
        refuse_unfit_parts(self.model, requests.parts)
        return asking_of_nodules(self.model, requests)

    def make(self, wishes: Wishes) -> Made:
        """The image of wishes, bit for bit that which `sample` makes of the same seed alone."""
        requests = self.requests(wishes)
        steps = self.model.in_steps(wishes.num_steps) if wishes.num_steps else nullcontext()
        with steps, self.model.guided_by(wishes.guidance):
            ((image,),) = samples(self.model, requests, 1)
        of, affine = origin(requests.of_patients), requests.read(0).affine
        (name,) = sample_names([wishes.seed], of)
        return Made(wishes.seed, name, image, None if affine is None else affine[0], of)

    def make_several(self, wishes: Wishes, num: int) -> Iterator[Made]:
        """The images of this seed and those after it."""
        for seed in range(wishes.seed, wishes.seed + num):
            yield self.make(replace(wishes, seed=seed))

    def file(self, made: Made, format: Format, folder: Path) -> Path:
        """A NIfTI or DICOM file of an image as `sample` writes it; of a volume in DICOM a zip of its slices."""
        file = SampleFile(format, self.spec, made.origin, self.model_hash)
        folder.mkdir(parents=True, exist_ok=True)
        file.write(folder, made.name, made.image, made.affine)
        path = folder / file.named(made.name)
        if format != "dicom":
            return path
        if len(slices := list(path.iterdir())) == 1:
            return Path(shutil.move(slices[0], folder / f"{made.name}.dcm"))
        return Path(shutil.make_archive(str(path), "zip", folder, made.name))


def servable(model: Method) -> Generator:
    """The model, if the page can ask it for images; InputError, which names the verb that can, otherwise."""
    kind = type(model).__name__
    if not isinstance(model, Generator):
        raise InputError(f"app: {kind} makes no images; `evaluate` reports its own scores.")
    if model.reads_text:
        raise InputError(f"app: {kind} makes images from texts, which the page does not take; use sample --text NAME.")
    if len(model.required) > 1:
        parts = " and ".join(model.required)
        raise InputError(f"app: {kind} makes images from {parts} together, which the page does not take; use sample.")
    if "source" in model.required and len(model.needed_spec().sources) > 1:
        raise InputError(f"app: {kind} makes images from several sources; use sample --sources DIR.")
    return model
