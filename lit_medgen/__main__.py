"""`python -m lit_medgen <verb>`: the command line's door. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_medgen.errors import InputError, describe

VERBS = {
    "phantom": "draw subjects in a data set's own raw layout, to try everything without data",
    "prepare": "raw data -> prepared store, with a list of what was rejected and why",
    "fit": "train a method",
    "validate": "the loss on the validation people",
    "test": "the loss on the test people",
    "predict": "Lightning's predict",
    "sample": "make images from a checkpoint",
    "evaluate": "score samples against real images and write a report",
}

USAGE = """usage: python -m lit_medgen <verb> [--config FILE ...] [--key value ...] [--debug]

{verbs}

python -m lit_medgen <verb> --help lists the keys of a verb; --debug shows the traceback of an error.
Precedence: defaults < the checkpoint's config < --config files in order < command line."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 a fault of ours, 2 bad input."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())))
        return 0
    try:
        run(words[0], words[1:])
    except InputError as error:
        if debug:
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


def run(verb: str, args: list[str]) -> None:
    """Imports what the verb needs and runs it."""
    if verb not in VERBS:
        raise InputError(f"no verb {verb!r}; choose from {', '.join(VERBS)}.")
    if verb == "phantom":
        from data_modules.phantoms import phantom

        phantom(args)
    elif verb == "prepare":
        from lit_medgen.cli import prepare

        prepare(args)
    else:
        from lit_medgen.cli import run_verb

        run_verb([verb, *args])


if __name__ == "__main__":
    sys.exit(main())
