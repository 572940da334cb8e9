"""What a verb prints while it works: one line at a time, once, however many processes there are."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_only


def say(line: str, warning: bool = False) -> None:
    """Prints a line, in the first process alone; a warning goes to stderr, all else to stdout."""
    rank_zero_only(print)(line, file=sys.stderr if warning else sys.stdout, flush=True)
