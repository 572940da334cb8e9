"""The form of `report.json` that `compare` needs: every key that it reads, and which kind of value belongs there.

Reports of other versions, and files that were cut or edited, are told by the first key that is not so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from lit_medgen.evaluation.ranked import COSTS
from lit_medgen.metrics.base import Best

MAX_SHOWN = 60
"""Characters of a value in a message."""
EACH = "*"
"""Stands for every key of an object."""


class Kind(NamedTuple):
    """A kind of value."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(value: Any, holds: Callable[[Any], bool], lengths: tuple[int, ...]) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(map(holds, value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
COUNT = Kind("a whole number", lambda value: _is_number(value) and isinstance(value, int))
NUMBER_OR_NULL = Kind("a number or null", lambda value: value is None or _is_number(value))
INTERVAL = Kind("two numbers", lambda value: _is_list_of(value, _is_number, (2,)))
SIZE = Kind("two or three whole numbers", lambda value: _is_list_of(value, COUNT.holds, (2, 3)))
BEST = Kind(f"one of {', '.join(get_args(Best))}", lambda value: value in get_args(Best))

Form = Kind | Mapping[str, Any]
"""A kind of value, or of an object the form of each of its keys."""

HASHES = {EACH: TEXT}
REFERENCE = {"part": TEXT, "size": SIZE, "fold": TEXT, "cohort": TEXT, "people": HASHES, "images": HASHES}
ROW = {"value": NUMBER_OR_NULL, "ci95": INTERVAL, "best": BEST, "features": TEXT}
FORM: Form = {
    "name": TEXT,
    "source": TEXT,
    "method": TEXT,
    "reference": REFERENCE,
    "features": TEXT,
    "num_samples": COUNT,
    "metrics": {EACH: {**ROW, "real_vs_real": NUMBER_OR_NULL}},
    "nulls": {EACH: {EACH: NUMBER_OR_NULL}},
}
OPTIONAL: Form = {
    "pairs": {EACH: {**ROW, "real_vs_real": NUMBER_OR_NULL}},
    "agreement": {EACH: {**ROW, "real": NUMBER_OR_NULL}},
    **dict.fromkeys(COSTS.values(), NUMBER_OR_NULL),
}


def first_mistake(report: Mapping[str, Any]) -> str:
    """The first key of a report that is missing or of another kind, what was found and what is expected; "" if none."""
    present = {key: form for key, form in OPTIONAL.items() if key in report}  # type: ignore[union-attr]
    return next(_mistakes(report, {**FORM, **present}, ""), "")  # type: ignore[dict-item]


def _mistakes(value: Any, form: Form, key: str) -> Iterator[str]:
    """The same of the value of a key, all of them."""
    if isinstance(form, Kind):
        if not form.holds(value):
            yield f"{key} is {repr(value)[:MAX_SHOWN]}, expected {form.words}"
    elif not isinstance(value, dict):
        yield f"{key} is {repr(value)[:MAX_SHOWN]}, expected an object"
    else:
        for name, inner in form.items():
            for each in value if name == EACH else [name]:
                whole = f"{key}.{each}" if key else each
                if each in value:
                    yield from _mistakes(value[each], inner, whole)
                else:
                    yield f"{whole} is missing"
