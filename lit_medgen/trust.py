"""Which classes a file may name. To name one is enough to have it imported, and importing is running.

What a checkpoint says of its model and data names classes of `TRUSTED` alone. Its trainer section, which only `fit`
reads, and a config file also name those of Lightning. Any other class must be trusted by the user, for one command
(`--trust_config`) or one call (`load(path, trust=["my_package"])`); no file says of itself that it is trusted, and
nothing is imported before it is. A command to be run needs `--trust_config` as well. What stands on the command line
itself is the user's own word, and is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml
from jsonargparse._util import import_object

from lit_medgen.arguments import parse_yaml, read_yaml
from lit_medgen.errors import InputError, describe
from lit_medgen.options import is_option, takes

TRUSTED = ("lit_medgen.", "data_modules.", "torch.optim.")
TRUSTED_IN_CONFIGS = (*TRUSTED, "lightning.pytorch.")
EVERYTHING = ("",)
"""What `--trust_config` trusts: the start of every name."""

_also: ContextVar[tuple[str, ...]] = ContextVar("trusted by the user", default=())

REFERENCE = re.compile(r"\$\{(?:[\w.]+\.)?(\w+)\}")
FOLDER = re.compile(r"\$\{oc\.env:\w+\}[^.]*/.*")
"""What `${...}` may be where a class may stand: the value of another option, or a folder from the environment."""


class Option(NamedTuple):
    """A key of a config."""

    owner: str
    """Path of the class whose constructor takes it; "" where the config does not say."""
    name: str

    def takes(self, text: bool) -> bool:
        """Whether nothing that stands here is read as a class, and, if `text`, a text may stand here: people.csv."""
        if not self.owner:
            return takes(None, self.name, text)
        if not trusted(self.owner, TRUSTED_IN_CONFIGS + _also.get()):
            return False
        try:
            return takes(import_object(self.owner), self.name, text)
        except (ImportError, AttributeError, TypeError, ValueError):  # as its reader will say
            return False


@contextmanager
def trusting(packages: tuple[str, ...]) -> Iterator[None]:
    """Inside, files may also name classes whose path begins with one of these: `mine.`, or `EVERYTHING`."""
    before = _also.set(_also.get() + packages)
    try:
        yield
    finally:
        _also.reset(before)


def prefixes(trust: str | Iterable[str]) -> tuple[str, ...]:
    """Names of packages as the beginnings of their classes' paths; InputError for what is no such name."""
    names = [trust] if isinstance(trust, str) else list(trust)
    for name in names:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise InputError(f"trust: {name!r} is no package or module; give names as in class_path, e.g. ['mine'].")
    return tuple(f"{name}." for name in names)


def refuse_foreign_classes(config: Any, path: Path | str, packages: tuple[str, ...] = TRUSTED) -> None:
    """InputError if a checkpoint's config names a class of none of these packages, nor of those the user trusts."""
    if _also.get() == EVERYTHING:
        return
    for name in classes(config):
        if not trusted(name, packages + _also.get()):
            raise InputError(
                f"{path}: names the class {name!r}; only {', '.join(packages)} are imported from a file without "
                f"--trust_config (in Python: trust=[{name.partition('.')[0]!r}]); give it if the file is your own."
            )


def import_classes(config: Any, path: Path | str) -> None:
    """Imports the classes of the user's own that a trusted file names; InputError, in one line, if that fails."""
    for (*_, option), name in _texts(config):
        if option.name != "class_path" or "." not in name or "$" in name or trusted(name, TRUSTED_IN_CONFIGS):
            continue
        module, _, attribute = name.rpartition(".")
        try:
            getattr(import_module(module), attribute)
        except Exception as error:  # a user's own file may raise anything
            raise InputError(
                f"{path}: {name} cannot be imported ({type(error).__name__}: {describe(error)}); mend it, or give the "
                f"command in the folder of {name.partition('.')[0]}.py (--debug shows the traceback)."
            ) from error


def config_files(words: Iterable[str]) -> Iterator[tuple[Any, Path]]:
    """Every config file on the command line, and every file that one names: its content and path."""
    waiting = [Path(word.partition("=")[2] if word.startswith("-") else word) for word in words]
    seen = set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or (config := _content(path)) is None:
            continue
        seen.add(path)
        yield config, path
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
    for (*_, option), text in _texts(config):
        if option.name.rpartition(".")[2] == "strip" and text not in ("registration", "none"):
            raise InputError(
                f"{path}: strip is the command {text!r}; commands of a file are run with --trust_config alone; or "
                "give it on the command line."
            )


def classes(config: Any) -> Iterator[str]:
    """What may be read as the path of a class: under class_path, or, short, as a text alone."""
    for inside, text in _texts(config):
        dotted = "." in text and all(part.isidentifier() for part in text.split("."))
        if inside[-1].name == "class_path" or ((dotted or "${" in text) and _may_be_class(inside, text)):
            yield text


def _may_be_class(inside: Iterable[Option], text: str) -> bool:
    """Whether a text, inside of these options, may be read as the path of a class."""
    if "${" not in text:
        return not any(option.takes(text=True) for option in inside)
    # The value that a reference takes was looked at where it stands, unless a text is free there.
    reference = REFERENCE.fullmatch(text)
    checked = reference and is_option(reference[1]) and not takes(None, reference[1], text=True)
    return not (checked or FOLDER.fullmatch(text) or any(option.takes(text=False) for option in inside))


def trusted(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a path starts in one of the packages and stays there: not so lit_medgen.stopping.subprocess.Popen."""
    if not name.startswith(packages):
        return False
    value, path = None, ""
    for part in name.split("."):
        path = f"{path}.{part}" if path else part
        if not hasattr(value, part):
            try:
                imported = import_module(path)
            except Exception:  # a user's own file may raise anything
                return True  # it cannot be imported, as whoever needs it will say
        value = getattr(value, part) if hasattr(value, part) else imported
        on_the_way = any(package.startswith(f"{path}.") for package in packages)  # torch, of torch.optim
        if isinstance(value, ModuleType) and not on_the_way and not f"{value.__name__}.".startswith(packages):
            return False
    return True


def _exists(name: str) -> bool:
    """Whether a text could be imported by a trusted command: run.v2 cannot, nor a class by its short name."""
    first = name.partition(".")[0]
    try:
        return any((Path(f"{first}.py").is_file(), Path(first, "__init__.py").is_file(), find_spec(first) is not None))
    except ValueError:
        return True  # __main__


def _texts(
    value: Any, inside: tuple[Option, ...] = (Option("", ""),), owner: str = ""
) -> Iterator[tuple[tuple[Option, ...], str]]:
    """All texts, each with the options that it stands in, the outermost first.

    The parser reads a text that is YAML itself as what it says, so what stands in it counts too.
    """
    if isinstance(value, dict):
        of = str(value.get("class_path", ""))
        for name, inner in value.items():
            if name == "init_args":  # these are the options of the class, not one of the option that holds it
                yield from _texts(inner, inside, of)
            else:
                yield from _texts(inner, (*inside, Option(owner, str(name))))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, inside, owner)
    elif isinstance(value, str):
        yield inside, value
        with suppress(yaml.YAMLError):
            inner = parse_yaml(value, as_text=True)
            if isinstance(inner, dict | list):
                yield from _texts(inner, inside, owner)


def _content(path: Path) -> Any:
    """What a config file holds; None if it is no such file. One that cannot be read is reported by its reader."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # an archive: a checkpoint, which may be large
                return None
        content = read_yaml(path, as_text=True)
    except (OSError, InputError):
        return None
    return content if isinstance(content, dict | list) else None
