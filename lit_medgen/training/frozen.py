"""`FirstStage`: an autoencoder that other methods build on, and `TwoStage`: a method that builds on one.

A first stage makes no images of its own; asked for samples, it reconstructs given ones, so that sample grids, `sample`
and `evaluate` show what it keeps, and set the ceiling for any second stage.

A second stage reads its first from the path in the config when it is trained; its checkpoint then holds the first
stage's config and weights, so one file samples.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec, sent
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.training.method import FACTS, Generator, refuse_other_people

SAME_DATA = ("axis", "preprocessing")
"""What both stages must agree on in their data sections; people are compared by `refuse_other_people`."""


class FirstStage(Generator):
    """Images to latents and back."""

    makes = "reconstruction"

    originals: Tensor | None = None
    """n c *s in [-1, 1], the images that "samples" reconstruct: seed i is the i-th."""

    @property
    def most_samples(self) -> int:  # type: ignore[override]
        """As many as there are originals."""
        return 0 if self.originals is None else len(self.originals)

    def check_seeds(self, seeds: Sequence[int]) -> None:
        """InputError if a seed is the number of an image that is not there."""
        if self.originals is None or max(seeds) >= self.most_samples:
            raise InputError(
                f"{type(self).__name__} reconstructs images and makes none of its own; there are {self.most_samples}, "
                "so give fewer (--num) or smaller seeds."
            )

    @abstractmethod
    def reconstruct(self, images: Tensor) -> Tensor:
        """b c *s in [-1, 1] -> b c *s in [-1, 1]."""

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Reconstructions of `originals[seeds]`, b c *size in [-1, 1]."""
        self.check_seeds(seeds)
        assert self.originals is not None
        return self.reconstruct(sent(self.originals[list(seeds)], self.device))


class TwoStage(Generator):
    """A method on the latents of a first stage.

    Attributes:
        first_stage_path: its checkpoint; read when trained.
        first_stage: frozen; None until `setup` or a checkpoint brings it.
    """

    first_stage: Any
    first_stage_type: type[FirstStage]
    """What the first stage must be."""
    make_first_stage: str
    """The command that trains one."""

    def __init__(self, first_stage: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.first_stage = None
        self.first_stage_path = Path(first_stage)
        self._first_stage_section: dict[str, Any] = {}

    @abstractmethod
    def build(self, first_stage: Any) -> None:
        """Makes the networks, whose shapes follow from the first stage and its `spec`."""

    def before_data(self, shape: DataSpec, resumed_from: Path | None) -> None:
        """Reads the first stage, which knows what shape images must have."""
        self._bring_first_stage(resumed_from)
        super().before_data(shape, resumed_from)

    def setup(self, stage: str) -> None:
        """Has the first stage before training, and builds on it."""
        if stage == "fit":
            self._bring_first_stage(getattr(self.trainer, "resumed_from", None))
        super().setup(stage)

    def _bring_first_stage(self, resumed_from: Path | None) -> None:
        """Takes it from its file; a run that goes on needs that no more: its checkpoint holds a copy."""
        if self.first_stage is not None:
            return
        if resumed_from and not self.first_stage_path.is_file():
            self._take_copy(resumed_from)
        else:
            self._take(self._read(self.first_stage_path))

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if the first stage was trained on images of another shape."""
        self._refuse_others(shape, ("size", "channels"))

    def check(self, spec: DataSpec) -> None:
        """InputError if the first stage was trained on images of another kind, or on another split of people."""
        super().check(spec)
        self._refuse_others(spec, ("spacing_mm", "intensity_window"))
        if self.first_stage is not None:
            refuse_other_people(self.first_stage.needed_spec(), spec, self.first_stage_path)

    def _refuse_others(self, spec: DataSpec, names: Sequence[str]) -> None:
        if self.first_stage is None:
            return
        theirs = self.first_stage.needed_spec()
        for name in names:
            found, wanted = getattr(spec, name), getattr(theirs, name)
            if found != wanted:
                raise InputError(
                    f"data.init_args: {name} of the images is {found}, but {self.first_stage_path} was trained with "
                    f"{wanted}; use the data section it was trained with."
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the first stage's config, spec and the hash of its weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[FACTS]["first_stage"] = {
            "config": self._first_stage_section,
            "spec": self.first_stage.needed_spec().plain(),
            "weights": weights_hash(self.first_stage),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds on the first stage of the checkpoint; its weights follow with all others.

        InputError if training goes on with another first stage than it began with.
        """
        super().on_load_checkpoint(checkpoint)
        facts = checkpoint[FACTS]["first_stage"]
        if self.first_stage is None:
            self._take(_built(facts))
        elif weights_hash(self.first_stage) != facts["weights"]:
            raise InputError(
                f"model.init_args.first_stage: {self.first_stage_path} holds other weights (SHA-256 "
                f"{weights_hash(self.first_stage)[:12]}) than this run was trained on ({facts['weights'][:12]}); give "
                "that checkpoint again, or no file (the run holds a copy), or start a run of another --name."
            )

    def _take_copy(self, path: Path) -> None:
        """The first stage that a checkpoint of this method holds."""
        from lit_medgen.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(path)
        self._take(_built(checkpoint[FACTS]["first_stage"]))
        weights = checkpoint["state_dict"]
        self.first_stage.load_state_dict(
            {name: weights[f"first_stage.{name}"] for name in self.first_stage.state_dict()}
        )

    def _read(self, path: Path) -> FirstStage:
        """The first stage of a checkpoint file."""
        from lit_medgen.checkpoints import config_of, load  # they build methods, so they import this module

        if not path.is_file():
            raise MissingDataError(
                f"model.init_args.first_stage: no file '{path}'; make it with `{self.make_first_stage}`, or give the "
                "checkpoint of yours."
            )
        found = load(path)
        if not isinstance(found, self.first_stage_type):
            raise InputError(
                f"model.init_args.first_stage: {path} is a checkpoint of {type(found).__name__}, not of "
                f"{self.first_stage_type.__name__}; make one with `{self.make_first_stage}`."
            )
        theirs, ours = ((config or {}).get("data") or {} for config in (config_of(path), self.config))
        for name in SAME_DATA if theirs and ours else ():
            one, other = (section.get("init_args", {}).get(name) for section in (theirs, ours))
            if one != other:
                raise InputError(
                    f"data.init_args.{name} is {other}, but {path} was trained with {one}; use the same, so that "
                    "images look the same."
                )
        return found

    def _take(self, first_stage: Any) -> None:
        assert first_stage.config is not None
        self._first_stage_section = first_stage.config["model"]
        self.first_stage = first_stage.for_second_stage().requires_grad_(False).eval()
        self.build(self.first_stage)

    def train(self, mode: bool = True) -> Any:
        """The first stage stays in evaluation mode."""
        super().train(mode)
        if self.first_stage is not None:
            self.first_stage.eval()
        return self


def _built(facts: dict[str, Any]) -> Any:
    """The first stage that a checkpoint's facts describe, without its weights."""
    from lit_medgen.checkpoints import build_method
    from lit_medgen.trust import refuse_foreign_classes

    refuse_foreign_classes([facts["config"]], Path("the checkpoint's first stage"))
    first_stage = build_method(facts["config"])
    first_stage.spec = DataSpec.from_plain(facts["spec"])
    return first_stage


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def keys_of(batch: Batch) -> list[tuple[str, int]]:
    """Store key and slice of every image of a batch; slice -1 where images are no slices."""
    places = (
        [-1] * len(batch.key) if batch.condition.slice_index is None else batch.condition.slice_index[:, 0].tolist()
    )
    return list(zip(batch.key, places, strict=True))
