"""Reading checkpoints: plain data and tensors only, and classes only from our own packages.

A checkpoint holds the config it was made with, so that one file is enough to sample. What it names is imported
only from `ALLOWED`, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from jsonargparse._util import import_object

from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.methods.base import FACTS, Method

ALLOWED = ("lit_medgen.", "data_modules.", "torch.optim.")
"""Prefixes of the classes that a checkpoint may name."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's content; InputError if it cannot be read, holds code, or is not ours."""
    if not path.is_file():
        raise MissingDataError(
            f"--ckpt_path: no file '{path}'; give a checkpoint, e.g. runs/<name>/checkpoints/last.ckpt."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not a whole checkpoint ({describe(error)[:120]}); use another one.") from error
    if not isinstance(checkpoint, dict) or FACTS not in checkpoint:
        raise InputError(f"{path}: not a checkpoint of lit_medgen; give one that `fit` wrote.")
    return checkpoint


def config_of(path: Path) -> dict[str, Any]:
    """The config a checkpoint was made with: model, data, name."""
    config = read_checkpoint(path)[FACTS]["config"]
    if config is None:
        raise InputError(f"{path}: holds no config (its model was not made by the command line); add --config.")
    check_classes(config, path)
    method_class(config, path)
    return dict(config)


def method_class(config: dict[str, Any], path: Path) -> type[Method]:
    """The method a config names; InputError if this version does not have it."""
    name = str(config["model"]["class_path"])
    try:
        found: type[Method] = import_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: made by {name}, which this version does not have; use the version it was made with."
        ) from error
    return found


def check_classes(config: Any, path: Path) -> None:
    """InputError if a config from a file names a class that is not ours to import."""
    if isinstance(config, dict):
        name = config.get("class_path", ALLOWED[0])
        if not str(name).startswith(ALLOWED):
            raise InputError(f"{path}: names the class {name!r}; only {', '.join(ALLOWED)} are imported from a file.")
        for value in config.values():
            check_classes(value, path)
    elif isinstance(config, list):
        for value in config:
            check_classes(value, path)


def load(path: str | Path) -> Method:
    """The trained method of a checkpoint, with its averaged weights, in evaluation mode; ready to sample."""
    path = Path(path)
    checkpoint = read_checkpoint(path)
    model = build_method(config_of(path)["model"])
    model.load_state_dict(checkpoint["state_dict"])
    model.on_load_checkpoint(checkpoint)
    return model.eval()


def build_method(section: dict[str, Any]) -> Method:
    """An untrained method from its config section: class_path and init_args."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model", required=True)
    model: Method = parser.instantiate_classes(parser.parse_object({"model": section})).model
    model.config = {"model": section}
    return model


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_hash(config: dict[str, Any] | None) -> str:
    """SHA-256 of a config."""
    return hashlib.sha256(yaml.safe_dump(config, sort_keys=True).encode()).hexdigest()
