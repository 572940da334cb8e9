"""`--help` of a verb on one screen: its own options first; the hundreds of keys of trainer, model and data by name."""

from __future__ import annotations

import textwrap
from argparse import SUPPRESS, Action

from jsonargparse import ArgumentParser

SECTIONS = {
    "--model": "the method: model.class_path, model.init_args.<name>; --model.help CLASS lists them",
    "--data": "the images: data.class_path, data.init_args.<name>; --data.help CLASS lists them",
    "--trainer.<name>": "Lightning's Trainer; --help=all lists its keys",
}
EVERYWHERE = {
    "--config FILE": "a YAML file of such keys; several in order, the later wins",
    "--print_config": "print every key with its value, and exit",
    "--trust_config": "import classes of your own that a file names",
    "--debug": "show the traceback of an error",
}
LAST = {
    "name": "name of the run folder below trainer.default_root_dir",
    "seed_everything": "seed of all that is random",
}
"""Options that all of these verbs have."""
WIDTH, INDENT = 100, 24


def of_verb(parser: ArgumentParser, verb: str) -> str:
    """The help of a verb of Lightning's kind; its parser has a group for the trainer."""
    own = sorted(filter(_is_own, parser._actions), key=lambda action: action.dest in LAST)
    lines = [f"usage: python -m lit_medgen {verb} [--config FILE ...] [--key value ...]", ""]
    lines += [*textwrap.wrap(parser.description or "", WIDTH), "", f"options of {verb}:"]
    for action in own:
        default = "" if action.default in (None, SUPPRESS) else f" (default: {action.default})"
        lines += _entry(f"--{action.dest}", f"{LAST.get(action.dest, action.help or '').strip()}{default}")
    lines += ["", "keys of an experiment, by config file or one by one:"]
    lines += [line for entry in SECTIONS.items() for line in _entry(*entry)]
    lines += ["", "and for all verbs:"]
    lines += [line for entry in EVERYWHERE.items() for line in _entry(*entry)]
    return "\n".join(lines) + "\n"


def _is_own(action: Action) -> bool:
    """Whether an option is of the verb itself (or the run's name and seed)."""
    shared = ("help", "config", "print_config", "trainer", "model", "data")
    hidden = action.dest in shared or "." in action.dest or action.help == SUPPRESS
    return bool(action.option_strings) and not hidden


def _entry(option: str, text: str) -> list[str]:
    """One option: its name, then what it does, beside it or below."""
    wrapped = textwrap.wrap(" ".join(text.split()), WIDTH - INDENT) or [""]
    head = f"  {option}".ljust(INDENT)
    first = [head + wrapped[0]] if len(head) == INDENT else [head, " " * INDENT + wrapped[0]]
    return [*first, *(" " * INDENT + line for line in wrapped[1:])]
