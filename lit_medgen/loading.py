"""A method from its checkpoint: the config that it was made from, its record, its weights.

A checkpoint holds the config it was made with, so that one file is enough to sample, and to go on training. What the
config names is imported only from packages of `lit_medgen.trust` and from what the user trusts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from jsonargparse._util import import_object
from lightning import LightningModule

from lit_medgen.checkpoints import checkpoint_file, read_checkpoint, read_config
from lit_medgen.errors import InputError, constructed
from lit_medgen.trust import TRUSTED, TRUSTED_IN_CONFIGS, import_classes, prefixes, refuse_foreign_classes, trusting

SECTIONS, TRAINING = ("name", "model", "data"), ("trainer", "seed_everything")
"""The parts of a config that a checkpoint keeps: what samples are made from, and what `fit` needs to go on."""


def kept_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of the config of `fit`: all that goes on the same on another machine.

    Folders of this machine are left out, but for those of the data section: the run folder is where the checkpoint is,
    and of other paths in the trainer section the last part stays.
    """
    trainer = {key: value for key, value in config["trainer"].items() if key != "default_root_dir"}
    return {key: config[key] for key in (*SECTIONS, "seed_everything")} | {"trainer": _without_folders(trainer)}


def without_training(config: Any) -> Any:
    """A config without what `fit` alone needs; what is no config is left for `check_classes` to refuse."""
    return {key: config[key] for key in config if key not in TRAINING} if isinstance(config, dict) else config


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def has_config(path: Path) -> bool:
    """Whether a checkpoint holds the config it was made with; that of a model made in Python does not."""
    return read_config(path) is not None


def config_of(path: Path, resumed: bool = False) -> dict[str, Any]:
    """The config a checkpoint was made with: name, model, data; all that was kept, if its run is resumed."""
    config = read_config(path)
    if config is None:
        raise InputError(f"{path}: holds no config (its model was not made by the command line); add --config.")
    config = config if resumed else without_training(config)
    check_classes(config, path)
    _refuse_unknown_method(config, path)
    return dict(config)


def _refuse_unknown_method(config: dict[str, Any], path: Path | str) -> None:
    """InputError if this version does not have the method that a config names."""
    name = str(config["model"]["class_path"])
    try:
        import_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: made by {name}, which this version does not have; use the version it was made with."
        ) from error


def refuse_other_method(path: Path, expected: str) -> None:
    """InputError if a checkpoint is of another method than the one expected (the name of its class)."""
    config = read_config(path)  # None if the model was made in Python
    trained = config["model"]["class_path"].rpartition(".")[2] if config else expected
    if trained != expected:
        raise InputError(
            f"--ckpt_path {path}: a checkpoint of {trained}, but the config asks for {expected}; leave out the model, "
            "or give the right checkpoint."
        )


def check_classes(config: Any, path: Path | str) -> None:
    """InputError if a config from a file is not like `fit` keeps it, or names a class that is not ours to import."""
    like_ours = isinstance(config, dict) and config.keys() <= {*SECTIONS, *TRAINING}
    sections = [config.get("model"), config.get("data") or {"class_path": TRUSTED[0]}] if like_ours else []
    trainer = config.get("trainer", {}) if like_ours else None
    like_ours = isinstance(trainer, dict) and all(isinstance(each, dict) and "class_path" in each for each in sections)
    if not like_ours:
        raise InputError(f"{path}: its config is not one that `fit` keeps ({', '.join(SECTIONS)}, trainer).")
    refuse_foreign_classes(sections, path)
    refuse_foreign_classes(trainer, path, TRUSTED_IN_CONFIGS)
    import_classes([*sections, trainer], path)


def load(path: str | Path, trust: str | Iterable[str] = ()) -> Any:
    """The trained method of a checkpoint, with its averaged weights, in evaluation mode; ready to sample.

    `trust` names packages of the user's own whose classes it may name, beside those trusted already.
    """
    path = Path(checkpoint_file(str(path)))
    with trusting(prefixes(trust)):
        model = build_method(config_of(path))
        restore(model, path)
    return model.eval()


def restore(model: Any, path: Path) -> None:
    """Gives a method the record and the averaged weights of a checkpoint."""
    checkpoint = read_checkpoint(path)
    model.on_load_checkpoint(checkpoint)  # which builds on the frozen parts that the record brings
    model.load_state_dict(checkpoint["state_dict"])


def build_method(config: dict[str, Any]) -> Any:
    """An untrained method, a `lit_medgen.training.recorded.Recorded`, from the model section of a config."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    model = constructed(lambda: parser.instantiate(parser.parse_object({"model": config["model"]}))).model
    model.describe(config)
    return model


def rebuild(record: dict[str, Any], source: str) -> Any:
    """The method, without its weights, that the record of a frozen part describes in another method's checkpoint.

    InputError, which says that the record stands in `source`, if it names a class that is not trusted.
    """
    check_classes(record["config"], source)
    _refuse_unknown_method(record["config"], source)
    model = build_method(record["config"])
    model.take_record(record, source)
    return model


def config_hash(config: dict[str, Any] | None) -> str:
    """SHA-256 of a config."""
    return hashlib.sha256(yaml.safe_dump(config, sort_keys=True).encode()).hexdigest()
