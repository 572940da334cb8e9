"""Changes of a config: precision, gradient checkpointing, batch, accumulation, patch; as a command line writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

Config = dict[str, Any]
Changes = Mapping[str, Any]
"""Key of a config, its parts joined by dots -> value."""

CHECKPOINTING = "gradient_checkpointing"
BATCH_SIZE, ACCUMULATE = "data.init_args.batch_size", "trainer.accumulate_grad_batches"
PATCHES = ("model.init_args.patch", "data.init_args.view.init_args.size")
"""Where a method or a view says how large the part of an image is that a step sees."""


def changed(config: Config, changes: Changes) -> Config:
    """The config with other values, a copy."""
    made = deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = made
        for name in path:
            section = section[name]
        section[last] = value
    return made


def value_of(config: Config, key: str) -> Any:
    """The value of a key; None where there is none."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def checkpointing(config: Config, on: bool) -> dict[str, bool]:
    """The changes that have every network of the model checkpoint its gradients, or none."""
    return dict.fromkeys(_keys(config.get("model"), "model"), on)


def checkpoints(config: Config) -> bool | None:
    """Whether a network checkpoints its gradients; None if none has that option."""
    found = [value_of(config, key) for key in checkpointing(config, True)]
    return any(found) if found else None


def flags(changes: Changes) -> str:
    """The changes as options of a command."""
    return " ".join(f"--{key}={_written(value)}" for key, value in changes.items())


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _keys(section: Any, path: str) -> Iterator[str]:
    for key, value in section.items() if isinstance(section, dict) else ():
        if key == CHECKPOINTING:
            yield f"{path}.{key}"
        yield from _keys(value, f"{path}.{key}")
