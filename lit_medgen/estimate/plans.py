"""A plan for a GPU: the first change of a training that fits into its memory, and sees as many images in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lit_medgen.errors import InputError
from lit_medgen.estimate.costs import Estimate
from lit_medgen.estimate.settings import (
    ACCUMULATE,
    BATCH_SIZE,
    PATCHES,
    Changes,
    Config,
    changed,
    checkpointing,
    checkpoints,
    value_of,
)

GIB = 2**30
CONTEXT = 0.75 * GIB
"""Of the driver, its libraries and their workspaces; not measured here."""
FRAGMENTED = 1.1
"""The share by which an allocator needs more than tensors hold; not measured here."""
SMALLEST_PATCH = 16


@dataclass(frozen=True)
class Plan:
    """Changes with which a training fits into a card.

    Attributes:
        changes: of the config.
        peak: bytes that a step holds.
        remark: what the changes change besides memory; "" for nothing.
    """

    changes: dict[str, Any]
    peak: int
    remark: str = ""


def needed(peak: int) -> float:
    """Memory of a card, bytes, that a process needs whose tensors hold so many bytes."""
    return FRAGMENTED * peak + CONTEXT


def fitting(config: Config, memory: float, estimate: Callable[[Config], Estimate], accumulates: bool) -> Plan:
    """The first plan that fits; InputError if none does.

    Args:
        config: the experiment.
        memory: of the card, bytes.
        estimate: a config -> what its step holds.
        accumulates: whether gradients of several batches can be one step, as they cannot in adversarial training.
    """
    least: int | None = None
    for changes, remark in _candidates(config, accumulates):
        peak = estimate(changed(config, changes)).step.peak
        if needed(peak) <= memory:
            return Plan(changes, peak, remark)
        least = peak if least is None else min(least, peak)
    assert least is not None
    raise InputError(
        f"--fit: no batch, checkpointing or patch of this training fits into {memory / GIB:.1f} GiB: the least needs "
        f"{needed(least) / GIB:.1f} GiB, {least / GIB:.1f} of them for tensors; give the network fewer channels, or "
        "smaller images (data.init_args.preprocessing.size)."
    )


def _candidates(config: Config, accumulates: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Changes, from none to many, and what they change besides memory."""
    yield {}, ""
    on = checkpointing(config, True) if checkpoints(config) is False else {}
    time = "a step takes about a third longer" if on else ""
    if on:
        yield {**on}, time
    batch, accumulated = value_of(config, BATCH_SIZE) or 1, value_of(config, ACCUMULATE) or 1
    last: Changes = {}
    for size in (batch // part for part in range(2, batch + 1) if batch % part == 0):
        more = {ACCUMULATE: accumulated * (batch // size)} if accumulates else {}
        last = {**on, BATCH_SIZE: size, **more}
        words = [time, "" if accumulates else f"a step sees {size} images, not {batch}"]
        yield {**last}, "; ".join(filter(None, words))
    for key in PATCHES:
        patch = value_of(config, key)
        while patch and min(_sides(patch)) // 2 >= SMALLEST_PATCH:
            patch = [side // 2 for side in patch] if isinstance(patch, list | tuple) else patch // 2
            yield {**last, **on, key: patch}, "the network sees smaller parts of an image"


def _sides(patch: Any) -> list[int]:
    return list(patch) if isinstance(patch, list | tuple) else [patch]
