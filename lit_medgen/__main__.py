"""`python -m lit_medgen <verb>`: the command line's door. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lit_medgen import __version__
from lit_medgen.errors import InputError, Interrupted, RunError, describe, space_for
from lit_medgen.files import SHOWN
from lit_medgen.signals import HEEDED, Stop, end_at_once, heeding, raise_stop

VERBS = {
    "phantom": "draw subjects in a data set's own raw layout, to try everything without data",
    "prepare": "raw data -> prepared store, with a list of what was rejected and why",
    "fit": "train a method",
    "validate": "the loss on the validation people",
    "test": "the loss on the test people",
    "sample": "make images from a checkpoint",
    "app": "try a model in a browser on this machine: paint a label map, choose seeds, look, download",
    "evaluate": "score samples against real images and write a report",
    "detect": "which images are unlike those that a model was trained on, beside controls",
    "anomalies": "map what a diffusion model did not expect in images of test people",
    "audit": "look for copies of training people among samples",
    "utility": "what small networks that learn from samples tell of real people",
    "compare": "put finished reports side by side: one table, a plot, samples",
    "estimate": "parameters, operations, memory and hours of a config, without its data and without a GPU",
    "export": "make a folder of a model that others can load: safetensors with a card, MONAI bundle, TorchScript",
    "readers": "score what readers took for real, from a page of real and synthetic images",
    "sweep": "run a W&B sweep file on this machine",
}

USAGE = """usage: python -m lit_medgen <verb> [--config FILE ...] [--key value ...] [--debug]

{verbs}

python -m lit_medgen <verb> --help lists the keys of a verb, --version prints the version.
--debug shows the traceback of an error; --trust_config imports classes of your own that a file names.
Precedence: defaults < the checkpoint's config < --config files in order < command line."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code.

    0 done, 1 a fault of ours or of the machine, 2 bad input, 3 no space, 4 training is not finite, 128 + n stopped by
    signal n (130 Ctrl-C, 143 SIGTERM, 141 where nobody reads what is printed), by a run that trains after a save, 0 if
    the cluster starts the job again.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name of a file need not be text that the terminal can show
            stream.reconfigure(errors=SHOWN)
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["--version"]:
        print(f"lit_medgen {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())))
        return 0
    try:
        with space_for(Path.cwd()), heeding(end_at_once):
            work = imported(words[0], words[1:])
            with heeding(raise_stop()):
                work()
    except Stop as stop:
        if not _rank():
            print(f"stopped: {stop}; {words[0]} is not done; give the same command again.", file=sys.stderr)
        return 128 + stop.signum
    except RunError as error:
        if debug and not isinstance(error, Interrupted):
            raise
        rank = _rank()
        if not isinstance(error, Interrupted):
            print(f"error: {'' if rank is None else f'rank {rank}: '}{describe(error)}", file=sys.stderr)
        elif not rank:  # all processes stop at the same step; one says so
            print(f"stopped: {describe(error)}", file=sys.stderr)
        return error.exit_code
    return 0


def imported(verb: str, args: list[str]) -> Callable[[], object]:
    """What runs a verb; all that it needs is imported."""
    if verb not in VERBS:
        first = next((word for word in args if verb.startswith("-") and word in VERBS), None)
        near = get_close_matches(verb, VERBS, 1)
        meant = (
            f"; did you mean {near[0]}?" if near else f"; the verb comes first: {first} {verb} ..." if first else "."
        )
        raise InputError(f"no verb {verb!r}; choose from {', '.join(VERBS)}{meant}")
    if verb == "phantom":
        from data_modules.phantoms import phantom  # here and below: each verb loads what it needs

        return partial(phantom, args)
    if verb == "prepare":
        from lit_medgen.cli import prepare  # PyTorch and Lightning

        return partial(prepare, args)
    if verb == "compare":
        from lit_medgen.evaluation.compare import compare  # PyTorch, matplotlib

        return partial(compare, args)
    if verb == "estimate":
        from lit_medgen.estimate import estimate  # PyTorch and Lightning

        return partial(estimate, args)
    if verb == "export":
        from lit_medgen.export.verb import export  # PyTorch and Lightning

        return partial(export, args)
    if verb == "readers":
        from lit_medgen.evaluation.readers import readers  # scipy, scikit-learn

        return partial(readers, args)
    if verb == "sweep":
        from lit_medgen.sweep import sweep  # matplotlib

        return partial(sweep, args)
    from lit_medgen.cli import run_verb  # PyTorch and Lightning

    return partial(run_verb, [verb, *args])


def _rank() -> int | None:
    """This process among several; None if it is alone."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None:
        return None
    return dist.get_rank() if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else None


def _unread(error: BaseException) -> bool:
    """Whether it says that nobody reads what is printed any more, as after `| head`; nothing more is printed then."""
    if isinstance(error, SystemExit):  # of a progress bar: rich prints no more, and exits with 1
        return isinstance(error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # a pipe without a reader has an error, which is told unasked
    if output.poll(0):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def program() -> NoReturn:
    """The whole process. One of several that fails ends at once: no exit handler may wait for peers that are gone."""
    try:
        code = main()
        sys.stdout.flush()
    except (Exception, SystemExit) as error:
        if _unread(error):
            code = 128 + signal.SIGPIPE
        elif isinstance(error, SystemExit):
            raise
        else:
            traceback.print_exc()
            code = 1
    for heeded in HEEDED:
        signal.signal(heeded, signal.SIG_IGN)  # all is said and done; what is taken down now is not disturbed
    if code and _rank() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
