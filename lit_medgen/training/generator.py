"""`Generator`: a method that makes images, and what it can be asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lit_medgen.batch import Condition, DataSpec, Part, Request
from lit_medgen.diffusion import DPMSolverPP2M, Resynthesis
from lit_medgen.errors import InputError
from lit_medgen.text_embeddings import refuse_other_encoder
from lit_medgen.training.method import Method


class Generator(Method):
    """A method that makes images."""

    required: tuple[Part, ...] = ()
    """The parts of a condition that every image must be made from."""

    optional: tuple[Part, ...] = ()
    """The parts that may be given besides."""

    attributes: tuple[str, ...] = ()
    """Names of the attributes that images can be asked to show."""

    categories: Mapping[str, int] = MappingProxyType({})
    """Attributes that are categories -> how many values they have, which are 0, 1, ..."""

    nodule_attributes: frozenset[str] = frozenset()
    """Those attributes that nothing but nodules of a label map are guided to."""

    completes_regions: bool = False
    """Whether `image` among the parts is a region of any shape; else it is slices of a volume."""

    reconstructs: bool = False
    """Whether sources are made of the images themselves (`source_of`), even where the data has other sources."""

    network_evaluations: int | None = None
    """How often networks were called for each image of the last request; None before, and where they are compiled."""

    def before_data(self, shape: DataSpec, resumed_from: Path | None) -> None:
        """InputError too for data without the label maps or texts that images are made from."""
        if "label_map" in self.required and not shape.classes:
            raise InputError(
                f"data.init_args: no label maps, from which {type(self).__name__} makes images; name their classes in "
                "preprocessing.classes, or take a data set that has some."
            )
        if self.reads_text and not shape.text_encoder:
            raise InputError(
                f"data.init_args.text: no texts, from which {type(self).__name__} makes images; give a file of text "
                "embeddings (docs/text.md), or a model without them."
            )
        super().before_data(shape, resumed_from)

    @property
    def reads_text(self) -> bool:
        """Whether images are made from texts."""
        return "text" in {*self.required, *self.optional}

    def take_record(self, record: dict[str, Any], source: Any) -> None:
        """InputError too for texts that another encoder has embedded."""
        if self.reads_text and record["spec"] and self.spec:
            refuse_other_encoder(DataSpec.from_plain(record["spec"]), self.spec, "data.init_args.text")
        super().take_record(record, source)

    def check(self, spec: DataSpec) -> None:
        """InputError too for data that lacks an attribute which images are made from."""
        super().check(spec)
        for name in self.attributes:
            if name not in spec.attributes:
                raise InputError(
                    f"{type(self).__name__} makes images from {', '.join(self.attributes)}: no {name!r} in the data, "
                    f"which has {', '.join(map(repr, spec.attributes)) or 'none'}; look at data.init_args and at the "
                    "covariates of the model's network."
                )

    def source_of(self, images: Tensor) -> Tensor:
        """The sources of images that this method `reconstructs`, b c *s -> b c *l: the images themselves."""
        return images

    def source_spec(self, spec: DataSpec) -> DataSpec:
        """What an image that others are made from must be like, where the images are as `spec` says."""
        return replace(spec, sources=(), source_size=()) if self.reconstructs else spec

    def baselines(self, images: Tensor) -> dict[str, Tensor]:
        """Name -> what can be made of the sources of true images without a model, b c *s; a report shows their scores.

        Args:
            images: b c *s in [-1, 1].
        """
        return {}

    @abstractmethod
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """b c *size in [-1, 1]: one image for each seed; image i depends on seeds[i] and its condition only."""

    def trajectory(self, condition: Condition, seed: int) -> Tensor | None:
        """n c *size in [-1, 1]: one sample at several steps of its making; None where there is nothing to see."""
        return None

    def prior_samples(self, seeds: Sequence[int]) -> Tensor | None:
        """b c *size in [-1, 1]: what the model makes of its prior alone, without its network; None where it has none.

        A report shows them as a null: what is not better than they are was not learned.
        """
        return None

    def counterparts(self, images: Tensor, condition: Condition, seeds: Sequence[int], how: Resynthesis) -> Tensor:
        """b c *size in [-1, 1]: images as the model would rather have them; InputError for a method that cannot say.

        Args:
            images: b c *size in [-1, 1].
            condition: what the counterparts should show.
            seeds: b, of the noise of each.
            how: how far they go towards noise, and how back.
        """
        kind = type(self).__name__
        raise InputError(f"model.class_path: {kind} has no way from an image to noise and back; take a DDPM or an LDM.")

    def seams(self) -> tuple[int, list[int]] | None:
        """Spatial axis and positions i where slices i and i + 1 were made in different stages; None if in one."""
        return None

    @contextmanager
    def in_few_steps(self, max_steps: int | None) -> Iterator[None]:
        """Samples within take at most so many steps; None: as many as always.

        Lowers the public attribute `num_steps`, and puts DPM-Solver++ 2M, which few steps suit, in the place of a
        `sampler` that takes more.
        """
        own: dict[str, Any] = {}
        if max_steps is not None:
            fewer = {"num_steps": max_steps, "sampler": DPMSolverPP2M(max_steps)}
            taken = {"num_steps": self, "sampler": getattr(self, "sampler", None)}
            own = {name: getattr(self, name) for name, of in taken.items() if getattr(of, "num_steps", 0) > max_steps}
        try:
            for name in own:
                setattr(self, name, fewer[name])
            yield
        finally:
            for name, value in own.items():
                setattr(self, name, value)

    @property
    def num_sampling_steps(self) -> int | None:
        """Steps of a sample; None where it is made in one piece."""
        own: int | None = getattr(self, "num_steps", None)
        return own or getattr(getattr(self, "sampler", None), "num_steps", None)

    @contextmanager
    def in_steps(self, num_steps: int) -> Iterator[None]:
        """Samples within take so many steps of the method's own kind, if they are made in steps."""
        sampler: Any = copy(getattr(self, "sampler", None))
        own: dict[str, Any] = {}
        if hasattr(self, "num_steps"):
            own["num_steps"] = num_steps
        elif hasattr(sampler, "num_steps"):
            sampler.num_steps, own["sampler"] = num_steps, sampler
        before = {name: getattr(self, name) for name in own}
        try:
            for name, value in own.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    @property
    def guidance_scales(self) -> dict[str, float]:
        """Name of each scale of guidance that samples can be asked to take -> its value; empty where nothing guides."""
        return {}

    @contextmanager
    def guided_by(self, scales: Mapping[str, float]) -> Iterator[None]:
        """Samples within take these scales, of those that `guidance_scales` names; InputError for any other."""
        if unknown := [name for name in scales if name not in self.guidance_scales]:
            known = ", ".join(self.guidance_scales) or "nothing that guides"
            raise InputError(f"{type(self).__name__} has {known}, not {unknown[0]!r}; leave it out.")
        yield

    @torch.no_grad()
    def predict_step(self, batch: Request, batch_idx: int = 0) -> Tensor:
        """The images of a request, on the CPU in float32: b c *size, cut to [-1, 1] where a method's end outside."""
        with _counted(self.networks_for_speed()) as calls:
            images = self.sample(batch.condition.to(self.device), batch.seeds).float().cpu().clamp(-1, 1)
        self.network_evaluations = sum(calls.values()) or None
        return images


def refuse_other_classes(num_classes: int, shape: DataSpec) -> None:
    """InputError for a network whose label maps have another number of classes than the data's."""
    if num_classes != len(shape.classes):
        raise InputError(
            f"model.init_args.network.init_args.num_classes is {num_classes}, but the label maps of the data have "
            f"{len(shape.classes)}: {'; '.join(shape.classes)}; give {len(shape.classes)}."
        )


@contextmanager
def _counted(networks: Sequence[nn.Module]) -> Iterator[Counter[nn.Module]]:
    """Counts the calls of networks within; hooks would make a compiled network compile again, so it is left out."""
    calls: Counter[nn.Module] = Counter()

    def count(network: nn.Module, _: object) -> None:
        calls[network] += 1

    eager = [network for network in networks if network._compiled_call_impl is None]
    handles = [network.register_forward_pre_hook(count) for network in eager]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
