"""The verb `estimate`: what a config costs, told without its data and without a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lit_medgen.errors import InputError, describe
from lit_medgen.estimate.configs import read, resolved, training_of
from lit_medgen.estimate.costs import Estimate, estimated
from lit_medgen.estimate.experiments import PartConfigs
from lit_medgen.estimate.gpus import GPU, SHOWN, named
from lit_medgen.estimate.plans import fitting, needed
from lit_medgen.estimate.settings import (
    ACCUMULATE,
    BATCH_SIZE,
    Config,
    changed,
    checkpointing,
    checkpoints,
    flags,
    value_of,
)
from lit_medgen.files import write_atomically
from lit_medgen.output import say

GIB = 2**30


def estimate(words: list[str]) -> None:
    """Prints what a training step, a sample and the whole run of a config cost."""
    config = resolved(words)
    options = {name: config.pop(name) for name in ("gpus", "share", "fit", "part", "out")}
    cards = named(options["gpus"] or SHOWN)
    if not 0 < options["share"] <= 1:
        raise InputError(f"--share is {options['share']}; give the share of a card's peak, above 0 and at most 1.")
    memory = bytes_of(options["fit"]) if options["fit"] else None
    out = new_file(options["out"]) if options["out"] else None
    parts = PartConfigs(parts_given(options["part"]), folders_of(words), read)
    table = Table(config, parts)
    parts.refuse_unknown()
    for line in table.lines(cards, options["share"]):
        say(line)
    if memory is not None:
        say(table.plan(memory))
    if out:
        write_atomically(out, json.dumps(table.plain(), indent=1).encode())


def new_file(out: str) -> Path:
    """The path of a file that can be written, its folder made; InputError otherwise."""
    path = Path(out)
    if path.is_dir():
        raise InputError(f"--out is '{out}', a folder; give a file, e.g. {path / 'estimate.json'}.")
    if path.exists() and not _is_estimate(path):
        raise InputError(f"--out: '{out}' is there and is no estimate, so it was not touched; give a new file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: '{path.parent}' cannot be made ({describe(error)}); give another file.") from error
    return path


def _is_estimate(path: Path) -> bool:
    if not path.is_file():  # to read a pipe or a terminal would wait for ever
        return False
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"precision", "settings"} <= content.keys()


@dataclass
class Table:
    """The estimates of a config in several settings.

    Attributes:
        config: the experiment.
        parts: where configs of frozen parts are found.
        settings: precision and checkpointing -> the estimate.
    """

    config: Config
    parts: PartConfigs
    settings: dict[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.precision = str(self.config["trainer"]["precision"] or "32-true")
        self.checkpointed = checkpoints(self.config)
        self.own = self.of(self.precision, self.checkpointed)
        for precision in dict.fromkeys((self.precision, "bf16-mixed")):
            for on in (False, True) if self.checkpointed is not None else (None,):
                self.of(precision, on)

    def of(self, precision: str, checkpointed: bool | None) -> Estimate:
        """The estimate of the config with another precision or checkpointing."""
        name = precision + {True: ", checkpointed", False: ", not checkpointed", None: ""}[checkpointed]
        if name not in self.settings:
            changes = {} if checkpointed is None else checkpointing(self.config, checkpointed)
            self.settings[name] = self.estimated(changed(self.config, {**changes, "trainer.precision": precision}))
        return self.settings[name]

    def estimated(self, config: Config, samples: bool = True) -> Estimate:
        """The estimate of a config."""
        return estimated(config, self.parts, training_of(config), samples=samples)

    def lines(self, cards: Sequence[GPU], share: float) -> Iterator[str]:
        """The lines that are printed, in order."""
        own, name = self.own, self.config["model"]["class_path"].rpartition(".")[2]
        frozen = f", and {own.frozen:,} frozen" if own.frozen else ""
        yield f"{name}: {own.trained:,} trained parameters{frozen}"
        batch, accumulated = value_of(self.config, BATCH_SIZE), value_of(self.config, ACCUMULATE) or 1
        images = f"{batch} images" + (f" x {accumulated}" if accumulated > 1 else "")
        sample = f"; a sample: {in_words(own.sample.flops)}FLOP" if own.sample else "; no samples"
        yield f"a training step ({images}): {in_words(own.step.flops)}FLOP{sample}"
        yield f"{'peak memory, GiB':<34}{'step':>8}{'sample':>8}"
        for setting, each in self.settings.items():
            mark = " *" if each is own else ""
            made = f"{each.sample.peak / GIB:8.2f}" if each.sample else ""
            yield f"{setting + mark:<34}{each.step.peak / GIB:8.2f}{made}"
        yield from self._hours(cards, share)

    def _hours(self, cards: Sequence[GPU], share: float) -> Iterator[str]:
        steps = self.config["trainer"]["max_steps"]
        if not steps or steps < 0:
            yield "the whole run: trainer.max_steps is not given, so its hours are not known"
            return
        yield f"the whole run (*), {steps:,} steps, at {share:.0%} of a card's peak in bf16:"
        for card in cards:
            hours = card.hours(steps * self.own.step.flops, share)
            fits = "" if needed(self.own.step.peak) <= card.memory else "   but it does not fit; try --fit"
            yield f"{card.name:<12}{card.memory / GIB:5.0f} GiB{hours:12,.1f} h{fits}"

    def plan(self, memory: float) -> str:
        """A line: what fits into a card of so many bytes."""
        plan = fitting(self.config, memory, partial(self.estimated, samples=False), self.own.accumulates)
        size = f"{needed(plan.peak) / GIB:.1f} of {memory / GIB:.1f} GiB ({plan.peak / GIB:.1f} in tensors)"
        if not plan.changes:
            return f"fits as it is: {size}"
        return f"fits with {flags(plan.changes)}: {size}" + (f"; {plan.remark}" if plan.remark else "")

    def plain(self) -> dict[str, Any]:
        """The estimates by setting, as plain data for a file."""
        return {"precision": self.precision, "settings": {name: asdict(each) for name, each in self.settings.items()}}


def in_words(number: float) -> str:
    """A number with three digits and the prefix of its size."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


def bytes_of(text: str) -> float:
    """The bytes of `24GiB`, `80 GB` or `24`, which is GiB; InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|)\s*", text)
    if not match or not float(match[1]):
        raise InputError(f"--fit is {text!r}; give the memory of a card, e.g. 24GiB.")
    return float(match[1]) * {"GiB": GIB, "GB": 10**9, "MiB": 2**20, "": GIB}[match[2]]


def parts_given(parts: Sequence[str] | None) -> dict[str, list[Path]]:
    """Name of a frozen part -> its config files, from `name=FILE,FILE`; InputError for anything else."""
    given = {}
    for text in parts or ():
        name, equals, files = text.partition("=")
        if not (name and equals and files):
            raise InputError(f"--part is {text!r}; give NAME=FILE[,FILE ...], e.g. first_stage=configs/vqgan.yaml.")
        given[name] = [Path(file) for file in files.split(",")]
    return given


def folders_of(words: Sequence[str]) -> list[Path]:
    """Where configs of frozen parts are looked for: `configs` here and in the package."""
    here = [Path("configs"), Path(__file__).parent.parent / "configs", Path(__file__).parents[2] / "configs"]
    return [folder for folder in here if folder.is_dir()][:1]
