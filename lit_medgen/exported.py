"""A model as a folder that others can load: weights in safetensors, and what makes the method of them in JSON.

    <folder>/model.safetensors    the averaged weights under their names; tensors of the record as `record/<path>`
    <folder>/config.json          version, SHA-256 of model.safetensors, the record of the method
    <folder>/README.md            the model card (`lit_medgen.export.card`)

`lit_medgen.checkpoints` reads such a folder as it reads a checkpoint; nothing in it can be unpickled or run. A record
(`lit_medgen.training.recorded`) is plain data and tensors. What JSON has no word for stands in an object with one key:
`$tuple`, `$tensor` (its name among the weights) or `$items` (a mapping whose keys are no texts).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lit_medgen import __version__
from lit_medgen.errors import InputError, describe
from lit_medgen.files import file_hash, replacing, write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"
RECORD = "record/"
"""Start of the names of tensors that are no weights; no module's name has a slash."""
REMEDY = "take the folder again from where it came"


def exported_weights(folder: Path) -> Path | None:
    """The weights of an exported folder; None if it is none."""
    path = folder / WEIGHTS
    return path if path.is_file() and (folder / CONFIG).is_file() else None


def is_exported(path: Path) -> bool:
    """Whether a file is the weights of an exported folder."""
    return path.suffix == ".safetensors"


def read_exported(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the weights (name -> tensor on the CPU) of the exported folder in which the weights lie.

    InputError if a file is missing or damaged, or the weights are not those that config.json names.
    """
    config = _read_config(path.with_name(CONFIG))
    if (found := _hash_of(path, path.stat().st_mtime_ns)) != config["weights_sha256"]:
        raise InputError(
            f"{path}: its SHA-256 is {found[:12]}, but {CONFIG} beside it names {config['weights_sha256'][:12]}; "
            f"{REMEDY}."
        )
    try:
        tensors = load_file(path)
        record = from_json(config["record"], tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path.parent}: not a model that `export` wrote ({describe(error)}); {REMEDY}.") from error
    return record, {name: value for name, value in tensors.items() if not name.startswith(RECORD)}


def write_exported(folder: Path, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Writes weights and config of a folder that is there; returns the SHA-256 of the weights."""
    tensors: dict[str, Tensor] = {}
    plain = as_json(record, tensors)
    sha256 = write_tensors(folder / WEIGHTS, {**weights, **tensors})
    write_config(folder / CONFIG, plain, sha256)
    return sha256


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes tensors as safetensors; returns the SHA-256 of the file."""
    # Of tensors that share memory safetensors takes none.
    content = save({name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())})
    with replacing(path, len(content)) as file:
        file.write(content)
    return file.sha256


def write_config(path: Path, record: Any, sha256: str) -> None:
    """Writes what makes a method of weights of that SHA-256."""
    content = {"lit_medgen": __version__, "weights_sha256": sha256, "record": record}
    write_atomically(path, json.dumps(content, indent=2))


def as_json(value: Any, tensors: dict[str, Tensor], name: str = RECORD.rstrip("/")) -> Any:
    """Plain data as JSON has it; its tensors are put into `tensors`, by the path that leads to them.

    InputError for what is neither.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: as_json(inner, tensors, f"{name}/{key}") for key, inner in value.items()}
        return {"$items": as_json([[key, inner] for key, inner in value.items()], tensors, name)}
    if isinstance(value, list | tuple):
        items = [as_json(inner, tensors, f"{name}/{i}") for i, inner in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"{name}: a {type(value).__name__} cannot be exported; only numbers, texts and tensors can.")


def from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `as_json`; KeyError for a tensor that is not there."""
    if isinstance(value, list):
        return [from_json(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("$tensor", name)]:
            return tensors[name]
        case [("$tuple", items)]:
            return tuple(from_json(items, tensors))
        case [("$items", items)]:
            return dict(from_json(items, tensors))
    return {key: from_json(inner, tensors) for key, inner in value.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config["record"], dict) and isinstance(config["weights_sha256"], str):
            return dict(config)
        problem = "its record is no object"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        problem = describe(error)
    raise InputError(f"{path}: not what `export` wrote ({problem}); {REMEDY}.")


@lru_cache(maxsize=8)  # a verb reads its model several times
def _hash_of(path: Path, written: int) -> str:
    return file_hash(path)
