"""Jobs in several processes: their results in order, a progress bar, and an end in order when the user stops them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import Any

from joblib import Parallel
from joblib.parallel import get_active_backend

from lit_medgen.errors import RunError, describe
from lit_medgen.signals import unheard_by_children


def in_parallel(jobs: Iterable[Any], num: int, verb: str, num_jobs: int = -1) -> Iterator[Any]:
    """The result of every joblib job, in order; RunError if a process is killed.

    Args:
        jobs: made by joblib's `delayed`.
        num: how many there are.
        verb: what they are for, the title of the progress bar.
        num_jobs: processes; -1 is one per core. A Dask or Ray backend of joblib is used if one is active.
    """
    from rich.progress import track

    streams = get_active_backend()[0].supports_return_generator  # Ray's backend does not
    with unheard_by_children() if streams else nullcontext():
        results = Parallel(n_jobs=num_jobs, return_as="generator" if streams else "list")(jobs)
    return iter(track(_unless_broken(results, verb), description=verb, total=num))


def _unless_broken(results: Iterable[Any], verb: str) -> Iterator[Any]:
    try:
        yield from results
    except BrokenProcessPool as error:
        raise RunError(
            f"{verb}: a process was killed ({describe(error)}), by a lack of memory as a rule; give a smaller "
            "data.init_args.num_jobs, then the same command again."
        ) from error
