"""Phantoms: drawn subjects in a data set's own raw layout, so that its real loader runs without its data."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import jsonargparse

from lit_medgen.errors import InputError, with_nearest

DATA_SETS = ("adni", "chestxray", "lesions", "lidc", "retinas", "ukbiobank")


def phantom(args: list[str]) -> None:
    """The verb `phantom <data set> --out DIR --num_subjects N --seed S`."""
    if args and args[0] in ("-h", "--help"):
        print(
            f"usage: python -m lit_medgen phantom {'|'.join(DATA_SETS)} --out DIR [--num_subjects N] [--seed S]\n\n"
            "Draws N subjects in the data set's own raw layout into DIR; "
            f"`phantom {DATA_SETS[0]} --help` gives the defaults."
        )
        return
    if not args or args[0] not in DATA_SETS:
        near = get_close_matches(args[0], DATA_SETS, 1) if args else []
        raise InputError(
            f"phantom: give a data set, one of {', '.join(DATA_SETS)}; found {args[0] if args else 'nothing'}"
            + (f"; did you mean {near[0]}?" if near else ".")
        )
    parser = jsonargparse.ArgumentParser(prog=f"lit_medgen phantom {args[0]}", exit_on_error=False, allow_abbrev=False)
    writer = _writer(args[0])
    parser.add_function_arguments(writer)
    try:
        options = parser.parse_args(args[1:])
    except jsonargparse.ArgumentError as error:
        raise InputError(f"phantom: {with_nearest(str(error), parser)}") from error
    writer(**options.as_dict())


def _writer(name: str) -> Callable[..., None]:
    if name == "lidc":
        from data_modules.phantoms.lidc_tree import write_lidc  # each writer loads what it needs

        return write_lidc
    if name == "chestxray":
        from data_modules.phantoms.chestxray import write_chestxray  # as above

        return write_chestxray
    if name == "ukbiobank":
        from data_modules.phantoms.ukbiobank import write_ukbiobank  # as above

        return write_ukbiobank
    if name == "retinas":
        from data_modules.phantoms.retinas import write_retinas  # as above

        return write_retinas
    if name == "lesions":
        from data_modules.phantoms.lesions import write_lesions  # as above

        return write_lesions
    from data_modules.phantoms.heads import write_adni  # as above

    return write_adni
