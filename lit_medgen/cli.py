"""The command line: Lightning's verbs and ours, on LightningCLI.

What differs from LightningCLI, and why:

* a checkpoint's own config comes first, so `sample --ckpt_path X` needs no `--config` and everything the user
  writes wins (Lightning lets the checkpoint win, silently); `fit --ckpt_path X` also takes its trainer section;
* a wrong key or value is one line and exit code 2;
* no abbreviated keys (`--trainer.max_epoch` would silently mean max_epochs);
* the resolved config is written by `fit` alone, into the run folder.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import data_modules  # noqa: F401 (lets a config name its classes)
from data_modules.base import MedicalDataModule
from data_modules.summary import counts
from lit_medgen.arguments import read_yaml, values, without
from lit_medgen.callbacks.run_folder import RunConfig
from lit_medgen.errors import InputError, MissingDataError, constructed, describe
from lit_medgen.help import of_verb
from lit_medgen.loading import SECTIONS, kept_config, refuse_other_method
from lit_medgen.loggers import RunLogger
from lit_medgen.mistakes import explain, nearest_file, shorten
from lit_medgen.output import say
from lit_medgen.trainer import Trainer
from lit_medgen.training.method import Method
from lit_medgen.trust import EVERYTHING, trusting
from lit_medgen.words import TRUST, checked, known_config, replaced_callbacks, require_checkpoint

PREPARE_FLAGS = {
    "--verify": "Compare the SHA-256 of every volume already there.",
    "--figures": "Plot every image as it came, with the outline of what is kept, and as it was prepared; and one of "
    "them as it is augmented.",
}
VERBS = ("fit", "validate", "test", "sample", "app", "evaluate", "detect", "anomalies", "audit", "utility")


class Parser(LightningArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Called by argparse and jsonargparse with every fault of the user's input."""
        raise InputError(shorten(message))

    verb: str = ""
    """The verb whose help is asked for, on one screen; the help of the stack otherwise."""

    def format_help(self, formatter: Any = None) -> str:
        """The text of `--help`, on one screen."""
        return of_verb(self, self.verb) if self.verb else super().format_help()


class CLI(LightningCLI):
    """LightningCLI with our verbs, precedence and errors."""

    trainer: Trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Verbs, and the arguments of their methods that the command line supplies itself."""
        return {
            **{
                verb: skipped | {"weights_only"}
                for verb, skipped in LightningCLI.subcommands().items()
                if verb in VERBS  # not predict, which would make images without a word of where they are
            },
            "sample": {"model", "datamodule"},
            "app": {"model", "datamodule"},
            "evaluate": {"model", "datamodule"},
            "detect": {"model", "datamodule"},
            "anomalies": {"model", "datamodule"},
            "audit": {"model", "datamodule"},
            "utility": {"model", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The name of the run."""
        parser.add_argument(
            "--name", type=str, default="run", help="Name of the run folder below trainer.default_root_dir."
        )
        parser.link_arguments("name", "trainer.run_name")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Puts the config of the checkpoint (or of a folder of samples) before everything the user wrote."""
        words = checked(args)
        verb, *rest = words or [""]
        if "--help=all" not in rest:
            parser._subcommands_action._name_parser_map[verb].verb = verb  # type: ignore[union-attr]
        words = ["--help" if word == "--help=all" else word for word in words]
        if not any(re.match(r"-h$|--print_config|--([\w.]+\.)?help\b", word) for word in rest):
            require_checkpoint(verb, rest)
        if (config := known_config(words, trusted=TRUST in args)) is not None:
            words[1:1] = ["--config", yaml.safe_dump(config, sort_keys=False)]
        self.config = _parsed(parser, words)
        if self.config.subcommand == "fit" and (lost := replaced_callbacks(words, self.config.fit.trainer.callbacks)):
            say(
                f"trainer.callbacks: a later list replaces {', '.join(lost)} of an earlier one; to add to it, write "
                "callbacks+: in a file, or --trainer.callbacks+= on the command line.",
                warning=True,
            )

    def _parse_ckpt_path(self) -> None:
        """Lightning's own way of reading a checkpoint's config, which would override the command line."""

    def _dump_config(self) -> None:
        """As Lightning does it, without checking once more what has just been parsed."""
        if not hasattr(self, "config_dump"):
            kept = {"skip_link_targets": False, "skip_unset": False, "skip_validation": True}
            self.config_dump = yaml.safe_load(self.parser.dump(self.config, format="yaml", **kept))[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Refuses a checkpoint of another method."""
        section = self.config[self.subcommand]
        path = section.get("ckpt_path")
        if path and path != "last":
            refuse_other_method(Path(path), section.model.class_path.rpartition(".")[2])

    def instantiate_classes(self) -> None:
        """As Lightning does it; a value that a constructor refuses is one line."""
        constructed(super().instantiate_classes)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with its run folder and, unless the config wants no logger, a CSV log there."""
        config = self._get(self.config_init, "trainer")
        name = self.config_init[self.subcommand].name
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(
                f"--name is {name!r}; give the name of one folder, which is made in trainer.default_root_dir."
            )
        if "WANDB_SWEEP_ID" in os.environ:  # `wandb agent` starts the same command again and again
            name += f"_{os.environ.get('WANDB_RUN_ID')}"
        folder = Path(config.get("default_root_dir") or "runs", name)
        if config.get("logger") in (None, True):
            kwargs["logger"] = RunLogger(folder) if self.subcommand == "fit" else False
        trainer: Trainer = super().instantiate_trainer(run_name=folder.name, **kwargs)  # type: ignore[assignment]
        has_csv = any(isinstance(logger, RunLogger) for logger in trainer.loggers)
        if self.subcommand == "fit" and trainer.loggers and not has_csv:
            trainer.loggers = [*trainer.loggers, RunLogger(folder)]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Gives the model the config it was made from, for its checkpoint."""
        self._dump_config()
        config = self.config_dump
        self.model.describe(kept_config(config) if self.subcommand == "fit" else {key: config[key] for key in SECTIONS})


def run_verb(args: list[str]) -> None:
    """Runs one of `VERBS` with its arguments."""
    _quiet()
    try:
        with trusting(EVERYTHING if TRUST in args else ()):
            _run(args)
    except MisconfigurationException as error:  # Lightning's word for a config that cannot be run
        raise InputError(describe(error)) from error


def _run(args: list[str]) -> None:
    verb = args[0]
    _cli_of(verb)(
        model_class=Method,
        datamodule_class=MedicalDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        # The order of samples is already a function of rank and position; Lightning must not cut it again.
        trainer_defaults={"default_root_dir": "runs", "use_distributed_sampler": False},
        save_config_callback=RunConfig,
        auto_configure_optimizers=False,  # every method makes its own, from model.init_args.optimizer
        seed_everything_default=0,
        parser_class=Parser,
        parser_kwargs={
            verb: {"allow_abbrev": False, "parser_mode": "omegaconf+"},
            "allow_abbrev": False,
            "parser_mode": "omegaconf+",
        },
        load_from_checkpoint_support=False,
        args=args,
    )


def _cli_of(verb: str) -> type[CLI]:
    """The command line of one verb; the parsers of the others would only take time."""
    return type("CLI", (CLI,), {"subcommands": staticmethod(lambda: {verb: CLI.subcommands()[verb]})})


def prepare(args: list[str]) -> None:
    """Raw data -> prepared store. Options: --config FILE or --data FILE, and `PREPARE_FLAGS`."""
    _quiet()
    parser = Parser(
        prog="lit_medgen prepare",
        description="raw data -> prepared store",
        parser_mode="omegaconf+",
        allow_abbrev=False,
    )
    for flag, meaning in PREPARE_FLAGS.items():
        parser.add_argument(flag, action="store_true", help=meaning)
    parser.add_argument("--config", metavar="FILE", help="A whole experiment, of which the data section is read.")
    parser.add_subclass_arguments(MedicalDataModule, "data", required=True)
    words = checked(word for word in args if word not in PREPARE_FLAGS)
    paths = list(values(words, "--config"))
    sections = _sections(paths, "data")
    if paths and not sections:
        raise InputError(f"{', '.join(paths)}: no `data` section to prepare.")
    data = [word for section in sections for word in ("--data", yaml.safe_dump(section))]
    words = [*data, *without(words, "--config")]
    config = _parsed(parser, ["prepare", *words])
    datamodule = constructed(lambda: parser.instantiate(config)).data
    if models := _sections(paths, "model"):
        _untrained(models).check_shape(datamodule.shape())
    accepted, rejected = datamodule.prepare(*(flag in args for flag in PREPARE_FLAGS))
    for row in rejected:
        say(f"rejected {row.source}: {row.reason}")
    facts = [counts(accepted, rejected)]
    cut = [record.cut for record in accepted if not math.isnan(record.cut)]
    if cut:
        what = datamodule.anatomy or "foreground"
        facts += [f"{what} voxels cut by the field of view: mean {sum(cut) / len(cut):.2%}, most {max(cut):.2%}"]
    facts += [f"store: {datamodule.address.folder}"]
    if "--figures" in args:
        facts += ["figures: figures/ in it"]
    for line in ["; ".join(facts), *datamodule.taken(accepted, rejected, owner=True)]:
        say(line)


def _parsed(parser: LightningArgumentParser, words: list[str]) -> Any:
    """The config that the words of a verb make; what is wrong with them is one line, with what was probably meant."""
    verb, *rest = words
    try:
        return parser.parse_args(words if verb in VERBS else rest)
    except InputError as error:
        raise InputError(explain(str(error), parser, verb, rest)) from error


def _sections(paths: list[str], name: str) -> list[Any]:
    """The sections of that name in config files; an overlay may have none."""
    contents = []
    for path in paths:
        if not Path(path).is_file():
            near = nearest_file(Path(path))
            raise MissingDataError(f"--config: no file '{path}'" + (f"; did you mean {near}?" if near else "."))
        contents.append(read_yaml(Path(path)))
    return [content[name] for content in contents if isinstance(content, dict) and name in content]


def _untrained(sections: list[Any]) -> Method:
    """The method that config files describe together, without memory for its weights: to see what images it takes."""
    parser = Parser(parser_mode="omegaconf+", allow_abbrev=False)
    parser.add_subclass_arguments(Method, "model", required=True)
    words = [word for section in sections for word in ("--model", yaml.safe_dump(section))]
    config = _parsed(parser, ["prepare", *words])
    with torch.device("meta"):
        model: Method = constructed(lambda: parser.instantiate(config)).model
    return model


def _quiet() -> None:
    """Keeps warnings of the stack that ask nothing of the user out of sight."""
    # Workers are a choice of the config; two cores gain nothing from them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The train loader is endless by design.
    warnings.filterwarnings("ignore", message=".*Your `IterableDataset` has `__len__` defined.*")
    # Resuming is exact: the loader starts at the position that the run has reached.
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended.*")
    # Averaged weights are in the model's own place of a checkpoint; `fit` itself refuses to go on without the callback.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    # Said in our own words where it matters: a part without people.
    warnings.filterwarnings("ignore", message=".*Total length of `WatchedLoader` across ranks is zero.*")
    # A first stage is frozen: it stays in evaluation mode by design.
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    # Deprecations inside Lightning, which only a newer one can mend.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # A data module that leaves moving batches to the method is no mistake.
    warnings.filterwarnings("ignore", message=".*You have overridden `transfer_batch_to_device`.*")
    advertisement = re.compile("litlogger|litmodels")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not advertisement.search(record.getMessage())
    )
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
