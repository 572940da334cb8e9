"""Which classes a file may name. To name one is enough to have it imported, and importing is running.

A checkpoint names classes of `TRUSTED` alone. A config file also names those of Lightning; any other needs
`--trust_config`, and so does a command to be run. What stands on the command line itself is the user's own word, and is
not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from lit_medgen.errors import InputError

TRUSTED = ("lit_medgen.", "data_modules.", "torch.optim.")
TRUSTED_IN_CONFIGS = (*TRUSTED, "lightning.pytorch.")

TEXTS = (
    *("root", "store_dir", "pattern", "table", "key", "person", "attributes", "descriptions", "codes"),
    *("first_stage", "features"),
)
"""Options of data modules and methods that are text, and may look like the path of a class: people.csv."""

INTERPOLATION = re.compile(rf"\$\{{(?!.*\b({'|'.join(TEXTS)})\b)[\w.]+\}}|\$\{{oc\.env:\w+\}}[^.]*/.*")
"""What `${...}` may be: the value of another key, looked at where it stands, or a folder from the environment."""


def refuse_foreign_classes(config: Any, path: Path) -> None:
    """InputError if a checkpoint's config names a class that is not ours to import."""
    for name in classes(config):
        if not trusted(name, TRUSTED):
            raise InputError(f"{path}: names the class {name!r}; only {', '.join(TRUSTED)} are imported from a file.")


def refuse_foreign_configs(words: Iterable[str]) -> None:
    """InputError if a config file on the command line, or one that it names, names a class of another package."""
    waiting = [Path(word.partition("=")[2] if word.startswith("-") else word) for word in words]
    seen = set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or (config := _content(path)) is None:
            continue
        seen.add(path)
        refuse_untrusted(config, path)
        waiting += [folder / text for _, text in _texts(config) for folder in (Path(), path.parent)]


def refuse_untrusted(config: Any, path: Path) -> None:
    """InputError if a file gives a command, or names a class of another package."""
    refuse_commands(config, path)
    for name in classes(config):
        if ("$" in name or _exists(name)) and not trusted(name, TRUSTED_IN_CONFIGS):
            raise InputError(
                f"{path}: names the class {name!r}; only {', '.join(TRUSTED_IN_CONFIGS)} are imported without "
                "--trust_config, which imports whatever the file says."
            )


def refuse_commands(config: Any, path: Path) -> None:
    """InputError if a file gives a command that would be run: one that strips skulls."""
    for key, text in _texts(config):
        if key.rpartition(".")[2] == "strip" and text not in ("registration", "none"):
            raise InputError(
                f"{path}: strip is the command {text!r}; commands of a file are run with --trust_config alone; or "
                "give it on the command line."
            )


def classes(config: Any) -> Iterator[str]:
    """What may be read as the path of a class: under class_path, or, short, as a text alone."""
    for key, text in _texts(config):
        dotted = "." in text and all(part.isidentifier() for part in text.split("."))
        built = "${" in text and not INTERPOLATION.fullmatch(text)
        if key == "class_path" or ((dotted or built) and key not in TEXTS):
            yield text


def trusted(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a path starts in one of the packages and stays there: not so lit_medgen.stopping.subprocess.Popen."""
    if not name.startswith(packages):
        return False
    first, *parts = name.split(".")
    found, path = import_module(first), first
    for part in parts:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                import_module(path)
            except ImportError:
                return True  # it does not exist, as whoever needs it will say
        found = getattr(found, part)
        if isinstance(found, ModuleType) and not f"{found.__name__}.".startswith(packages):
            return False
    return True


def _exists(name: str) -> bool:
    """Whether a text can be imported at all: run.v2 cannot, nor a class by its short name."""
    try:
        return find_spec(name.partition(".")[0]) is not None
    except ValueError:
        return True  # __main__


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts with the innermost key that they stand under, or the outermost of `TEXTS`.

    The parser reads a text that is YAML itself as what it says, so what stands in it counts too.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, key if key in TEXTS else name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value
        with suppress(yaml.YAMLError):
            inner = yaml.load(value, Loader=yaml.BaseLoader)
            if isinstance(inner, dict | list):
                yield from _texts(inner, key)


def _content(path: Path) -> Any:
    """What a config file holds; None if it is no such file. One that cannot be read is reported by its reader."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # an archive: a checkpoint, which may be large
                return None
        content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # all as text: 2025-02-30 is no error
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict | list) else None
