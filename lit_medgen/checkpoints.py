"""Checkpoints: written whole, verified when read, plain data and tensors only, classes only from our own packages.

    <run folder>/checkpoints/step_0001000.ckpt           one for each saved step
    <run folder>/checkpoints/step_0001000.ckpt.sha256    what `sha256sum --check` reads
    <run folder>/checkpoints/last.ckpt                   a link to the newest

A checkpoint holds the config it was made with, so that one file is enough to sample, and to go on training. What it
names is imported only from packages of `trust` and from what the user trusts, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from jsonargparse import ArgumentParser
from jsonargparse._util import import_object
from lightning import LightningModule
from lightning.fabric.plugins import CheckpointIO

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.files import file_hash, replacing, temporary_name, write_atomically
from lit_medgen.output import say
from lit_medgen.trust import TRUSTED, TRUSTED_IN_CONFIGS, import_classes, prefixes, refuse_foreign_classes, trusting

FACTS = "lit_medgen"
"""The checkpoint's key for what Lightning does not keep: the method's record (`lit_medgen.training.recorded`)."""

RECORD = {"config", "spec", "facts", "frozen"}
"""The keys of a record."""

LAST = "last.ckpt"
SECTIONS, TRAINING = ("name", "model", "data"), ("trainer", "seed_everything")
"""The parts of a config that a checkpoint keeps: what samples are made from, and what `fit` needs to go on."""


class CheckpointFiles(CheckpointIO):
    """Lightning's door to checkpoint files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint whole, its SHA-256, and the link to the newest."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a verified checkpoint, on the CPU; always with `weights_only`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint and its SHA-256."""
        # In this order, a kill in between leaves a file that the next call finds; a hash alone means a lost file.
        sidecar(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """A checkpoint, its SHA-256 beside it, and `last.ckpt`; at every moment each of them is whole or not there.

    NoSpaceError if the disk is full; the checkpoints before stay as they were.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of the same name may be there from a run that was set back; its hash must not outlive it.
    sidecar(path).unlink(missing_ok=True)
    with replacing(path, num_bytes(checkpoint)) as file:
        torch.save(checkpoint, file)  # type: ignore[arg-type]
    write_atomically(sidecar(path), f"{file.sha256}  {path.name}\n")
    link = temporary_name(path.with_name(LAST))
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(path.with_name(LAST))


def sidecar(path: Path) -> Path:
    """The file with the SHA-256 of a checkpoint."""
    return path.with_name(f"{path.name}.sha256")


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, whatever their state."""
    return _newest_first(folder.glob("step_*.ckpt"))


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    numbered = [path for path in paths if re.fullmatch(r"step_\d+", path.stem)]  # step_0001000_best.ckpt is the user's
    return sorted(numbered, key=lambda path: (len(path.name), path.name), reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, None if there never was one.

    Names those it skips on stderr. InputError if there are checkpoints, but none of them is whole: starting afresh
    would throw the run away.
    """
    lost = {path.with_suffix("") for path in folder.glob("step_*.ckpt.sha256")}
    paths = _newest_first(lost.union(saved(folder))) or [path for path in [folder / LAST] if path.is_file()]
    for path in paths:
        fault = fault_of(path)
        if fault is None:
            return path
        say(f"skipped {path}: {fault}", warning=True)
    if paths or (folder / LAST).is_symlink():
        raise InputError(
            f"{folder}: none of {len(paths)} checkpoints is whole; restore one from a backup, or remove the folder to "
            "start afresh."
        )
    return None


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, None if it is whole."""
    try:
        status, beside = path.stat(), sidecar(path.resolve())
    except OSError as error:
        return error.strerror or describe(error)
    return _fault(path.resolve(), status.st_mtime_ns, beside.stat().st_mtime_ns if beside.is_file() else 0)


@lru_cache(maxsize=8)  # a resumed run finds its checkpoint, reads its config and loads it: one hash is enough
def _fault(path: Path, written: int, hashed: int) -> str | None:
    try:
        expected = sidecar(path).read_text().split()
    except FileNotFoundError:
        return _zip_fault(path)  # copied without its hash, or killed between the two
    except (OSError, UnicodeDecodeError) as error:
        return f"its .sha256 cannot be read ({describe(error)})"
    try:
        return None if expected[:1] == [file_hash(path)] else "its SHA-256 is not the one beside it"
    except OSError as error:
        return error.strerror or describe(error)


def _zip_fault(path: Path) -> str | None:
    """A checkpoint is a zip file, whose parts carry checksums of their own; its directory does not, so it is tried."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                return f"wrong checksum of {bad}"
        _load(path)
    except Exception as error:  # a damaged directory may lead into any codec, each with errors of its own
        return describe(error)
    return None


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise InputError(f"not a checkpoint that holds data alone ({describe(error)[:120]})") from error


def checkpoint_file(path: str) -> str:
    """The path, or, of a run folder or its folder `checkpoints`, that of the newest checkpoint in it."""
    for folder in (Path(path, "checkpoints"), Path(path)):
        if (folder / LAST).is_file():
            return str(folder / LAST)
    return path


def behind_link(path: str) -> str:
    """The file that `last.ckpt` leads to now, so that all that is done is of one file while a run goes on."""
    return str(Path(path).parent / Path(path).readlink()) if Path(path).is_symlink() else path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's content; InputError if it is damaged, holds code, or is not ours."""
    if not path.is_file():
        what = "no checkpoint in the folder" if path.is_dir() else "no file"
        others = saved(path if path.is_dir() else path.parent)
        example = others[0] if others else "runs/<name>/checkpoints/last.ckpt"
        raise MissingDataError(f"--ckpt_path: {what} '{path}'; give a checkpoint, e.g. {example}.")
    if fault := fault_of(path):
        raise InputError(f"{path}: damaged, {fault}; use another one.")
    try:
        checkpoint = _load(path)
    except InputError as error:
        raise InputError(f"{path}: {error}.") from error
    if not isinstance(checkpoint, dict) or FACTS not in checkpoint:
        raise InputError(f"{path}: not a checkpoint of lit_medgen; give one that `fit` wrote.")
    if lacking := sorted(RECORD - checkpoint[FACTS].keys()):
        raise InputError(
            f"{path}: written by another version of lit_medgen (its record has no {', '.join(lacking)}); use that "
            "version, or train again."
        )
    return checkpoint


def read_spec(path: Path) -> DataSpec | None:
    """Facts of the data that a checkpoint was trained on; None if it was trained without a data module."""
    spec = read_checkpoint(path)[FACTS].get("spec")
    return DataSpec.from_plain(spec) if spec else None


def num_bytes(content: Any) -> int:
    """Bytes of all tensors in plain data: about the size of its file."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(num_bytes, parts))


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
    return read_checkpoint(path)[FACTS]["config"] is not None


def config_of(path: Path, resumed: bool = False) -> dict[str, Any]:
    """The config a checkpoint was made with: name, model, data; all that was kept, if its run is resumed."""
    config = read_checkpoint(path)[FACTS]["config"]
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


def refuse_other_method(path: Path, wanted: str) -> None:
    """InputError if a checkpoint is of another method than the one wanted (the name of its class)."""
    config = read_checkpoint(path)[FACTS]["config"]  # None if the model was made in Python
    trained = config["model"]["class_path"].rpartition(".")[2] if config else wanted
    if trained != wanted:
        raise InputError(
            f"--ckpt_path {path}: a checkpoint of {trained}, but the config asks for {wanted}; leave out the model, "
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


class Loadable(Protocol):
    """A method, as far as checkpoints know it; `lit_medgen.training.recorded.Recorded` is one."""

    def describe(self, config: dict[str, Any]) -> None:
        """Takes the config that it was made from."""
        ...

    def take_record(self, record: dict[str, Any], source: Any) -> None:
        """Takes what a checkpoint holds of it besides the weights."""
        ...


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
    """An untrained method (a `LightningModule` and `Loadable`) from a config, of which the model section is read."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    model: Loadable = parser.instantiate(parser.parse_object({"model": config["model"]})).model
    model.describe(config)
    return model


def rebuild(record: dict[str, Any], source: str) -> Any:
    """The method that a record describes, without its weights; InputError if it names a class that is not trusted.

    Args:
        record: of a frozen part, which the checkpoint of another method holds.
        source: where it stands, for messages.
    """
    check_classes(record["config"], source)
    _refuse_unknown_method(record["config"], source)
    model = build_method(record["config"])
    model.take_record(record, source)
    return model


def config_hash(config: dict[str, Any] | None) -> str:
    """SHA-256 of a config."""
    return hashlib.sha256(yaml.safe_dump(config, sort_keys=True).encode()).hexdigest()
