"""Checkpoint files: written whole, verified when read, plain data and tensors only.

    <run folder>/checkpoints/step_0001000.ckpt           one for each saved step
    <run folder>/checkpoints/step_0001000.ckpt.sha256    what `sha256sum --check` reads
    <run folder>/checkpoints/last.ckpt                   a link to the newest

Nothing in a checkpoint is ever unpickled. What methods are made of it: `lit_medgen.loading`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.exported import WEIGHTS, exported_weights, is_exported, read_exported
from lit_medgen.files import file_hash, replacing, temporary_name, write_atomically
from lit_medgen.output import say

FACTS = "lit_medgen"
"""The checkpoint's key for what Lightning does not keep: the method's record (`lit_medgen.training.recorded`)."""

RECORD = {"config", "spec", "facts", "frozen"}
"""The keys of a record."""

LAST = "last.ckpt"


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
        version, beside = _version(path), sidecar(path.resolve())
    except OSError as error:
        return error.strerror or describe(error)
    return _fault(path.resolve(), version, _version(beside) if beside.is_file() else ())


def _version(path: Path) -> tuple[int, ...]:
    """What differs between a file and the one that takes its place, also within one tick of the file system's clock."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)  # a resumed run finds its checkpoint, reads its config and loads it: one hash is enough
def _fault(path: Path, version: tuple[int, ...], of_hash: tuple[int, ...]) -> str | None:
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
    """The path, or, of a run folder or its folder `checkpoints`, that of the newest checkpoint in it.

    Of a folder that `export` wrote that of its weights.
    """
    for folder in (Path(path, "checkpoints"), Path(path)):
        if (folder / LAST).is_file():
            return str(folder / LAST)
    return str(exported_weights(Path(path)) or path)


def behind_link(path: str) -> str:
    """The file that `last.ckpt` leads to now, so that all that is done is of one file while a run goes on."""
    return str(Path(path).parent / Path(path).readlink()) if Path(path).is_symlink() else path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's content; InputError if it is damaged, holds code, or is not ours."""
    if not path.is_file():
        what = "no checkpoint in the folder" if path.is_dir() else "no file"
        others = saved(path if path.is_dir() else path.parent)
        others += [each.parent for each in sorted(path.glob(f"*/{WEIGHTS}"))] if path.is_dir() else []  # a zoo
        example = others[0] if others else "runs/<name>/checkpoints/last.ckpt"
        raise MissingDataError(f"--ckpt_path: {what} '{path}'; give a checkpoint, e.g. {example}.")
    if is_exported(path):
        record, weights = read_exported(path)
        checkpoint = {FACTS: record, "state_dict": weights, "pytorch-lightning_version": lightning.__version__}
        return _complete(checkpoint, path)
    if fault := fault_of(path):
        raise InputError(f"{path}: damaged, {fault}; use another one.")
    try:
        checkpoint = _load(path)
    except InputError as error:
        raise InputError(f"{path}: {error}.") from error
    if not isinstance(checkpoint, dict) or FACTS not in checkpoint:
        raise InputError(f"{path}: not a checkpoint of lit_medgen; give one that `fit` wrote.")
    return _complete(checkpoint, path)


def refuse_exported(path: Path) -> None:
    """InputError for a model that `export` wrote, from which no training can go on."""
    if is_exported(path):
        raise InputError(
            f"--ckpt_path {path}: an exported model, without the optimizer and the averages that its training needs to "
            "go on; give the checkpoint of the run, or build on it as a first stage."
        )


def _complete(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint itself; InputError if its record lacks something."""
    if lacking := sorted(RECORD - checkpoint[FACTS].keys()):
        raise InputError(
            f"{path}: written by another version of lit_medgen (its record has no {', '.join(lacking)}); use that "
            "version, or train again."
        )
    return checkpoint


def read_config(path: Path) -> dict[str, Any] | None:
    """The config that a checkpoint was made with; None if its model was made in Python. Raises as `read_checkpoint`."""
    return _plain_of(path)[0]


def read_spec(path: Path) -> DataSpec | None:
    """Facts of the data that a checkpoint was trained on; None if it was trained without a data module."""
    _, spec = _plain_of(path)
    return DataSpec.from_plain(spec) if spec else None


def _plain_of(path: Path) -> tuple[Any, Any]:
    if not path.is_file() or is_exported(path):
        return _plain(path)
    return deepcopy(_plain_once(path, path.resolve(), _version(path), fault_of(path)))


@lru_cache(maxsize=8)  # a verb asks for them again and again, and each tensor of the file takes time to be found
def _plain_once(path: Path, file: Path, version: tuple[int, ...], fault: str | None) -> tuple[Any, Any]:
    return _plain(path)


def _plain(path: Path) -> tuple[Any, Any]:
    record = read_checkpoint(path)[FACTS]
    return record["config"], record.get("spec")


def num_bytes(content: Any) -> int:
    """Bytes of all tensors in plain data: about the size of its file."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(num_bytes, parts))
