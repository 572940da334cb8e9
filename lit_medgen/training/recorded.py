"""`Recorded`: what a checkpoint holds of a method besides its weights, frozen parts of any depth included.

    record = {
        "config": the config that the method was made from,
        "spec": the facts of the data that it was trained on,
        "facts": what `facts()` gives,
        "frozen": name -> the record of that part, and "weights", the SHA-256 of its weights,
    }

A record is plain data and tensors. It stands in the checkpoint under `lit_medgen.checkpoints.FACTS`; the weights of
frozen parts stand in `state_dict` with all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch

from lit_medgen.batch import DataSpec
from lit_medgen.checkpoints import FACTS, read_checkpoint
from lit_medgen.errors import InputError
from lit_medgen.loading import load, rebuild
from lit_medgen.training.frozen import SAME_FACTS, FrozenPart, refuse_other_people, weights_hash


class Recorded(L.LightningModule):
    """A module that one checkpoint file is enough to make again."""

    config: dict[str, Any] | None = None
    """The config it was made from: its own section and the name and data of its run; None if it was made in Python."""

    spec: DataSpec | None = None
    """Facts of the data it was trained on; None before it has seen any."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen_parts: dict[str, FrozenPart] = {}
        """Name -> part. A method that is built on others puts them here in its constructor; each is named as the
        argument that gives its path, and becomes a submodule of that name."""

    # What a method with facts or frozen parts of its own gives.

    def facts(self) -> dict[str, Any]:
        """What the checkpoint must hold besides weights and config: plain data and tensors."""
        return {}

    def restore(self, facts: dict[str, Any]) -> None:
        """Takes back what `facts` gave, before the weights are loaded; InputError if it does not fit the config."""

    def build(self) -> None:
        """Makes the networks whose shapes follow from the frozen parts; called once, when all of them are there."""

    def as_frozen_part(self) -> Self:
        """Itself as another method needs it: without what its training alone needs."""
        return self

    # What makers of methods call: the command line, checkpoints, tests.

    def describe(self, config: dict[str, Any]) -> None:
        """Takes the config that it was made from, for its checkpoint."""
        self.config = config

    def take_spec(self, spec: DataSpec) -> None:
        """Takes the facts of the data that it is trained on, or that its images are compared with."""
        self.spec = spec

    def needed_spec(self) -> DataSpec:
        """The spec; InputError if neither data nor a checkpoint gave one."""
        if self.spec is None:
            raise InputError("this model has seen no data: load it from a checkpoint, or fit it first.")
        return self.spec

    # Frozen parts.

    @property
    def built(self) -> bool:
        """Whether all frozen parts are there."""
        return self._parts().keys() == self.frozen_parts.keys()

    def _parts(self) -> dict[str, Any]:
        """Name -> module of each part that is there."""
        return {name: self._modules[name] for name in self.frozen_parts if name in self._modules}

    def take_parts(self, **parts: Any) -> None:
        """Freezes methods, as `as_frozen_part` gives them, in evaluation mode under these names, and builds on them."""
        for name, part in parts.items():
            setattr(self, name, part.requires_grad_(False).eval())
        self.build()

    def bring_parts(self, resumed_from: Path | None) -> None:
        """Reads the parts of a method that is about to be trained.

        Args:
            resumed_from: the checkpoint that training goes on from. It holds copies, so files are needed no more.
        """
        if self.built:
            return
        parts = {}
        for name, part in self.frozen_parts.items():
            if resumed_from and not part.file.is_file():
                parts[name] = _copy(name, resumed_from)
            else:
                parts[name] = part.read(name, self.config)
        self._refuse_mixed(parts, {name: weights_hash(part) for name, part in parts.items()})
        self.take_parts(**parts)

    def _refuse_mixed(self, parts: dict[str, Any], hashes: dict[str, str]) -> None:
        """InputError if parts do not belong together, as `trained_on` and `same_noise` of a `FrozenPart` say.

        Args:
            parts: those to look at.
            hashes: name -> SHA-256 of the weights, of all parts.
        """
        for name, part in parts.items():
            described = self.frozen_parts[name]
            for inner in described.trained_on:
                theirs = part._parts().get(inner)
                if theirs is None or weights_hash(theirs) != hashes[inner]:
                    raise InputError(
                        f"model.init_args.{name}: {described.path} was not trained on the {inner} of "
                        f"{self.frozen_parts[inner].path}; give two that belong together."
                    )
            if described.same_noise:
                theirs, ours = (each.facts().get("log_snr") for each in (part, self))
                if theirs is None or ours is None or not torch.allclose(theirs, ours, rtol=1e-4):
                    raise InputError(
                        f"model.init_args.{name}: {described.path} was trained on other noise levels than this model; "
                        "give one that was trained with the same schedule (model.init_args.schedule)."
                    )

    def refuse_other_images(self, spec: DataSpec, *names: str) -> None:
        """InputError if a part was trained on images that differ from the data's in one of these fields of the spec."""
        for part_name, module in self._parts().items():
            part, trained = self.frozen_parts[part_name], module.needed_spec()
            for name in set(names) & set(part.same_facts) if part.same_data else ():
                found, expected = getattr(spec, name), getattr(trained, name)
                if found != expected:
                    raise InputError(
                        f"data.init_args: {name} of the images is {found}, but {part.path} was trained with "
                        f"{expected}; use the data section it was trained with."
                    )

    def refuse_other_data(self, spec: DataSpec) -> None:
        """InputError if a part was trained on images of another kind, or on another split of people."""
        self.refuse_other_images(spec, *SAME_FACTS)
        for name, part in self._parts().items():
            if self.frozen_parts[name].same_data:
                refuse_other_people(part.needed_spec(), spec, self.frozen_parts[name].path)

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._parts().values():
            part.eval()
        return self

    # The record.

    def record(self) -> dict[str, Any]:
        """What makes the method again, but for its weights: plain data and tensors."""
        return {
            "config": self.config,
            "spec": self.spec.plain() if self.spec else None,
            "facts": self.facts(),
            "frozen": {name: part.record() | {"weights": weights_hash(part)} for name, part in self._parts().items()},
        }

    def take_record(self, record: dict[str, Any], source: Any) -> None:
        """Takes back what `record` gave; the weights are loaded afterwards.

        InputError if the data or the frozen parts at hand are others than those of the record.

        Args:
            record: of a checkpoint, or of a part that one holds.
            source: where it stands, for messages.
        """
        if record["spec"]:
            trained = DataSpec.from_plain(record["spec"])
            refuse_other_people(trained, self.spec, source)
            self.spec = trained
        frozen = record["frozen"]
        needed = {name for name, part in self.frozen_parts.items() if not part.late}
        if not needed <= frozen.keys() <= self.frozen_parts.keys():
            raise InputError(
                f"{source}: trained on the frozen parts [{', '.join(frozen)}], but the config describes "
                f"[{', '.join(self.frozen_parts)}]; give the model section that it was trained with."
            )
        if self.built:
            for name in frozen:
                found, expected = weights_hash(self._parts()[name]), frozen[name]["weights"]
                if found != expected:
                    raise InputError(
                        f"model.init_args.{name}: {self.frozen_parts[name].path} holds other weights (SHA-256 "
                        f"{found[:12]}) than this run was trained on ({expected[:12]}); give that checkpoint again, "
                        "or no file (the run holds a copy), or start a run of another --name."
                    )
        else:
            parts = {name: rebuild(frozen[name], f"{source}: {name}").as_frozen_part() for name in frozen}
            self.take_parts(**parts, **self._late_parts(frozen))
        self.restore(record["facts"])

    def _late_parts(self, frozen: dict[str, Any]) -> dict[str, Any]:
        """The parts, from their files, that a method was trained without; InputError if they do not belong to it.

        Args:
            frozen: the records of those that it was trained with.
        """
        late = {name: part.read(name, self.config) for name, part in self.frozen_parts.items() if name not in frozen}
        self._refuse_mixed(late, {name: kept["weights"] for name, kept in frozen.items()})
        for name, part in late.items():
            if self.frozen_parts[name].same_data:
                refuse_other_people(part.spec, self.spec, self.frozen_parts[name].path)
        return late

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record of the method to a checkpoint."""
        checkpoint[FACTS] = self.record()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the record; the weights follow with those of the frozen parts."""
        record = checkpoint[FACTS]
        self.take_record(record, self._trainer.ckpt_path if self._trainer else "this checkpoint")
        for name in self._parts().keys() - record["frozen"].keys():  # late parts, which have theirs already
            weights = self._parts()[name].state_dict()
            checkpoint["state_dict"] |= {f"{name}.{key}": value for key, value in weights.items()}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, trust: str | Iterable[str] = ()
    ) -> Self:
        """The trained method of a checkpoint, as `lit_medgen.load`; no class named in the file is trusted blindly."""
        model = load(checkpoint_path, trust)
        if not isinstance(model, cls):
            raise InputError(f"{checkpoint_path}: a checkpoint of {type(model).__name__}, not of {cls.__name__}.")
        return model


def _copy(name: str, path: Path) -> Any:
    """The frozen part of that name that a checkpoint holds, with its weights."""
    checkpoint = read_checkpoint(path)
    frozen = checkpoint[FACTS]["frozen"]
    if name not in frozen:
        raise InputError(f"{path}: holds no frozen part {name!r}; give model.init_args.{name}, or another checkpoint.")
    part = rebuild(frozen[name], f"{path}: {name}").as_frozen_part()
    prefix = f"{name}."
    weights = checkpoint["state_dict"].items()
    part.load_state_dict({key.removeprefix(prefix): value for key, value in weights if key.startswith(prefix)})
    return part
