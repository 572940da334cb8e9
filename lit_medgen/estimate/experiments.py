"""An experiment from its config alone: method, frozen parts and a batch, also on fake tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from data_modules.base import MedicalDataModule
from lit_medgen.batch import Batch, DataSpec
from lit_medgen.errors import InputError, constructed
from lit_medgen.estimate.batches import made_up_batch, made_up_spec
from lit_medgen.loading import build_method, config_of
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.method import Method

Config = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A method as `fit` would train it, without data.

    Attributes:
        model: with its frozen parts, in training mode.
        spec: the facts of the data that the config tells.
        batch: as `fit` would give it to the method.
    """

    model: Method
    spec: DataSpec
    batch: Batch

    @classmethod
    def of(cls, config: Config, parts: PartConfigs) -> Experiment:
        """The experiment of a config with the sections model and data.

        InputError for a method that does not fit the images, or whose frozen parts have no config that is known.
        """
        data = built_data(config)
        model = built_model(config, data, parts)
        batch = model.rehearsed(made_up_batch(data, model.needed_spec()))
        return cls(model, model.needed_spec(), batch)


@dataclass(frozen=True)
class PartConfigs:
    """Where the configs of frozen parts are found.

    Attributes:
        given: name of a part -> its config files, in order.
        folders: that are searched for the config of the run whose checkpoint a method names.
        read: config files, each over those before it -> their config.
        asked: names of the parts that models turned out to have.
    """

    given: Mapping[str, Sequence[Path]]
    folders: Sequence[Path]
    read: Callable[[Sequence[Path]], Config]
    asked: set[str] = field(default_factory=set)

    def refuse_unknown(self) -> None:
        """InputError for a part that was given and that no model has, once the models are built."""
        for name in self.given.keys() - self.asked:
            has = ", ".join(sorted(self.asked)) or "no frozen part"
            raise InputError(f"--part {name}: the model has no such part; it has {has}.")

    def of(self, name: str, part: FrozenPart) -> Config:
        """The config of a part: of the files given, of its checkpoint, or of the run that its path names."""
        self.asked.add(name)
        files = [*self.given.get(name, ())]
        if not files and part.file.is_file():
            return config_of(part.file)
        files = files or self._of_run(run_of(part.path))
        if not files:
            raise InputError(
                f"model.init_args.{name}: no checkpoint '{part.path}', and no config of a run named "
                f"{run_of(part.path)} in {', '.join(map(str, self.folders))}; give its config files: "
                f"--part {name}=FILE[,FILE ...]."
            )
        for path in files:
            if not path.is_file():
                raise InputError(f"--part {name}: no file '{path}'.")
        return self.read(files)

    def _of_run(self, run: str) -> list[Path]:
        """The config files that the header of a config of that name says are given to `fit`."""
        for folder in self.folders:
            for path in sorted(folder.rglob("*.yaml")):
                text = path.read_text(encoding="utf-8", errors="replace")
                if re.search(rf"^name: {re.escape(run)}\s*$", text, re.MULTILINE):
                    return [_found(word, path) for word in files_of_header(text)] or [path]
        return []


def run_of(checkpoint: Path) -> str:
    """The name of the run whose checkpoint lies at a path, or whose folder it is."""
    return checkpoint.parent.parent.name if checkpoint.suffix else checkpoint.name


def files_of_header(text: str) -> list[str]:
    """The config files of the command after `Run:` in the header of a config."""
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    command = re.search(r"\bRun:\s+(.*?)(?:\s\w+:\s|$)", header)
    return re.findall(r"--config (\S+)", command[1]) if command else []


def _found(word: str, beside: Path) -> Path:
    """A config file that a header names from the folder above `configs`, or the one of that name near the config."""
    path = Path(word)
    root = next((parent.parent for parent in beside.resolve().parents if parent.name == "configs"), Path())
    return path if path.is_file() else root / path


def built_data(config: Config) -> MedicalDataModule:
    """The data module of a config; it has read nothing."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    data: MedicalDataModule = constructed(
        lambda: parser.instantiate(parser.parse_object({"data": config["data"]}))
    ).data
    return data


def built_model(config: Config, data: MedicalDataModule, parts: PartConfigs) -> Method:
    """The method of a config with its frozen parts, nested as deep as they are, and the spec of the data."""
    model: Method = build_method(config)
    model.take_parts(**{name: _part(name, part, parts) for name, part in model.frozen_parts.items()})
    spec = made_up_spec(data, model)
    model.check_shape(spec)
    model.take_spec(spec)
    return model


def _part(name: str, part: FrozenPart, parts: PartConfigs) -> Any:
    config = parts.of(name, part)
    if "data" not in config:
        raise InputError(f"--part {name}: its config has no data section, which says what images it reads.")
    model = built_model(config, built_data(config), parts)
    if not isinstance(model, part.kind):
        raise InputError(f"--part {name}: a config of {type(model).__name__}; give one of {part.kind.__name__}.")
    return model.as_frozen_part()
