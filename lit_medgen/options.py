"""The options of the classes that configs name, and what their types take: a text, a path, or another class.

Nobody lists the options that hold a path or another text: they are known by the annotations of the constructors.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

FACES = (
    *("lit_medgen.methods", "lit_medgen.methods.cdpm", "lit_medgen.training", "lit_medgen.networks"),
    *("lit_medgen.diffusion", "lit_medgen.callbacks", "lit_medgen.loggers", "data_modules"),
)
"""The modules by which configs name our classes."""

_TEXTS = {str, Path, os.PathLike}
_PLAIN = _TEXTS | {int, float, bool, NoneType}


@cache
def classes(face: str) -> dict[str, type]:
    """The public classes of a face, by name."""
    module = import_module(face)
    own = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == face]
    members = {name: getattr(module, name) for name in getattr(module, "__all__", own)}
    return {name: member for name, member in members.items() if inspect.isclass(member)}


@cache
def options(of: type) -> dict[str, Any]:
    """The options of a class and of its parents, which take what a constructor passes on: name -> type."""
    types: dict[str, Any] = {}
    for parent in reversed(of.__mro__):
        if inspect.isfunction(constructor := vars(parent).get("__init__")):
            names = [name for name, each in inspect.signature(constructor).parameters.items() if each.kind in _NAMED]
            try:
                hints = get_type_hints(constructor)
            except NameError:  # a type that is imported for type checkers alone
                hints = {}
            types |= {name: hints.get(name, Any) for name in names[1:]}
    return types


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def takes(of: type | None, option: str, text: bool) -> bool:
    """Whether an option takes plain values alone, so that nothing it holds is read as the path of a class.

    Every class of ours, and Lightning's trainer, that has an option of this name must agree: a later file may give the
    value to another class. `of` is the one that has it, if that is known; with `text`, a value must be a text or path.
    """
    known = [each for each in _all_classes() if option in options(each)]
    if of is not None and option not in options(of):
        return False
    types = [set(_kinds(options(each)[option])) for each in [*known, *([of] if of else [])]]
    return bool(types) and all(kinds <= _PLAIN and (not text or bool(kinds & _TEXTS)) for kinds in types)


def is_option(name: str) -> bool:
    """Whether a class of ours, or Lightning's trainer, has an option of this name."""
    return any(name in options(each) for each in _all_classes())


@cache
def _all_classes() -> list[type]:
    return [each for face in (*FACES, "lightning.pytorch") for each in classes(face).values()]


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is put together from."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _kinds(parts[0])
    elif origin is Literal:
        yield from map(type, parts)
    elif origin in (Union, UnionType) or (inspect.isclass(origin) and issubclass(origin, Collection)):
        for part in parts:
            yield from _kinds(part) if part is not Ellipsis else ()
    else:
        yield origin if origin is os.PathLike else annotation
