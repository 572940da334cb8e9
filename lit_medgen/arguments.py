"""The words of a command as options with their values, and the YAML files among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_medgen.errors import InputError, describe


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every word with the value that it has if it is an option, written as `--key value` or as `--key=value`."""
    for word, following in zip(words, [*words[1:], ""][: len(words)], strict=True):
        option, equals, value = word.partition("=")
        yield (option, value) if equals and word.startswith("-") else (word, following)


def values(words: Sequence[str], option: str) -> Iterator[str]:
    """The values that an option is given, in order."""
    return (value for name, value in pairs(words) if name == option)


def without(words: Sequence[str], option: str) -> list[str]:
    """The words without an option and its values."""
    kept, skip = [], False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option
    return kept


def is_file(text: str) -> bool:
    """Whether a word is the path of a file."""
    try:
        return Path(text).is_file()
    except OSError:  # a whole section, too long for a path
        return False


def read_yaml(path: Path, as_text: bool = False) -> Any:
    """What a YAML file holds; InputError if it is not valid YAML, OSError if it cannot be read.

    With `as_text`, every value stays the text it is written as; 2025-02-30, which is no date, is then no error.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), as_text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({describe(error)}).") from error


def parse_yaml(text: str, as_text: bool = False) -> Any:
    """What a text says if it is read as YAML; yaml.YAMLError or ValueError if it cannot be."""
    return yaml.load(text, Loader=yaml.BaseLoader) if as_text else yaml.safe_load(text)
