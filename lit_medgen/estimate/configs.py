"""The config of an experiment from the words of a command, resolved as `fit` would resolve it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from data_modules.base import MedicalDataModule
from lit_medgen.cli import Parser, _parsed
from lit_medgen.estimate.gpus import GPUS, SHARE
from lit_medgen.estimate.rehearsal import Training
from lit_medgen.trainer import Trainer
from lit_medgen.training.method import Method
from lit_medgen.words import checked

EMA = ("lit_medgen.callbacks.EMA", "lit_medgen.callbacks.ema.EMA")
WHAT = "Parameters, operations, memory and hours of an experiment, from its config alone."
OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "--gpus": (list[str] | None, None, f"Cards whose hours are told, e.g. '[H100, L4]'; of {', '.join(GPUS)}."),
    "--share": (float, SHARE, "Share of a card's peak that the training reaches."),
    "--fit": (str | None, None, "Memory of a card, e.g. 24GiB: proposes changes with which the training fits."),
    "--part": (list[str] | None, None, "Configs of frozen parts, e.g. '[first_stage=configs/vqgan.yaml,b.yaml]'."),
    "--out": (str | None, None, "A JSON file of the same numbers."),
}
"""Option -> type, default, meaning."""


def parser() -> Parser:
    """Takes what `fit` takes."""
    made = Parser(prog="lit_medgen estimate", description=WHAT, parser_mode="omegaconf+", allow_abbrev=False)
    made.add_argument("--config", action=ActionConfigFile, help="A config file, or several, each over those before it.")
    made.add_argument("--name", type=str, default="run", help="Name of the run folder below trainer.default_root_dir.")
    made.add_argument("--seed_everything", type=bool | int, default=0)
    made.add_lightning_class_args(Trainer, "trainer")
    made.add_subclass_arguments(Method, "model", required=True)
    made.add_subclass_arguments(MedicalDataModule, "data", required=True)
    for option, (kind, default, meaning) in OPTIONS.items():
        made.add_argument(option, type=kind, default=default, help=meaning)
    made.verb = "estimate"
    return made


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """The config that words make; what is wrong with them is one line."""
    return dict(_parsed(parser(), ["estimate", *checked(words)]).as_dict())


def read(files: Sequence[Path]) -> dict[str, Any]:
    """The config of some files, each over those before it."""
    return resolved([word for path in files for word in ("--config", str(path))])


def training_of(config: dict[str, Any]) -> Training:
    """What the trainer of a config says of a step."""
    trainer = config["trainer"]
    return Training(str(trainer["precision"] or "32-true"), trainer["accumulate_grad_batches"] or 1, averages(config))


def averages(config: dict[str, Any]) -> bool:
    """Whether the trainer of a config averages weights."""
    callbacks = config["trainer"].get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(each, dict) and each.get("class_path") in EMA for each in listed)
