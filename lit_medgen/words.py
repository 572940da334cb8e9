"""The words of a command before a parser sees them: its files looked at, run folders resolved, known configs found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_medgen.arguments import is_file, parse_yaml, read_yaml, values
from lit_medgen.checkpoints import checkpoint_file, refuse_exported
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.loading import check_classes, config_of, has_config, without_training
from lit_medgen.mistakes import refuse_swapped
from lit_medgen.trust import config_files, import_classes, refuse_commands, refuse_untrusted

TRUST = "--trust_config"
NEEDS_MODEL = ("validate", "test", "sample", "app", "evaluate", "detect", "anomalies", "audit", "utility")
"""Verbs that work on a trained model."""
OR_SAMPLES = ("evaluate", "utility")
"""Those of them that take a folder of samples instead."""


def checked(words: Iterable[str]) -> list[str]:
    """The words of the command line, if its config files name only classes of packages that are trusted."""
    words = list(words)
    for word in words:
        if word != word.encode(errors="replace").decode():
            raise InputError(f"{word}: the bytes are not UTF-8, as a config must be; give a link of another name.")
    if TRUST in words and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # `python -m` has it already, the script `lit_medgen` has not
    ready = _with_checkpoint_file([shipped(word) for word in words if word != TRUST])
    for option in ("--config", "--data"):
        for path in map(Path, filter(is_file, values(ready, option))):
            # Whose fault it is, the parser does not say.
            refuse_swapped(option, path, read_yaml(path, as_text=True))
    for config, path in config_files(ready):
        (import_classes if TRUST in words else refuse_untrusted)(config, path)
    return ready


def require_checkpoint(verb: str, words: list[str]) -> None:
    """InputError if a verb that works on a trained model is given none."""
    given = [*values(words, "--ckpt_path"), *(values(words, "--samples") if verb in OR_SAMPLES else ())]
    example = "give --ckpt_path FILE, e.g. runs/<name>/checkpoints/last.ckpt (or its run folder)"
    if verb in NEEDS_MODEL and not given:
        raise InputError(f"{verb}: no trained model; {example}" + (", or --samples DIR." * (verb in OR_SAMPLES) or "."))
    if verb in NEEDS_MODEL and "last" in given:
        raise InputError(f"{verb}: --ckpt_path last is for fit, which knows its run folder; {example}.")


def shipped(word: str) -> str:
    """A path below `configs/` that is not here is taken from the installed package."""
    option, equals, path = word.rpartition("=")
    inside = Path(__file__).parent / path
    return (
        f"{option}{equals}{inside}"
        if path.startswith("configs/") and not Path(path).exists() and inside.exists()
        else word
    )


def known_config(words: list[str], trusted: bool) -> dict[str, Any] | None:
    """The config that a checkpoint (`--ckpt_path FILE`) or a folder of samples (`--samples DIR`) carries."""
    path = next(iter(values(words, "--ckpt_path")), None)
    samples = next(iter(values(words, "--samples")), None)
    if path is not None and path != "last":
        file, resumed = Path(path), words[0] == "fit"
        if resumed:
            refuse_exported(file)
        if not has_config(file) and any(values(words, "--config")):
            return None
        config = config_of(file, resumed)
        if resumed:
            config = in_its_folder(config, file)
    elif samples is not None and (file := Path(samples, "config.yaml")).is_file():
        config = without_training(read_yaml(file))
        check_classes(config, file)
    elif samples is not None and not any(word.startswith(("--config", "--model", "--data")) for word in words):
        what = f"no config.yaml in '{samples}'" if Path(samples).is_dir() else f"no folder '{samples}'"
        raise MissingDataError(f"--samples: {what}; give a folder that `sample` wrote, or add --config FILE.")
    else:
        return None
    if not trusted:
        refuse_commands(config, file)
    return dict(config)


def in_its_folder(config: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The config of a checkpoint, with name and folder of the run that the file lies in, if it does."""
    run = Path(os.path.abspath(checkpoint)).parent.parent
    if not (run / "config.yaml").is_file():
        return config
    return config | {"name": run.name, "trainer": config.get("trainer", {}) | {"default_root_dir": str(run.parent)}}


def replaced_callbacks(words: list[str], left: Any) -> list[str]:
    """Names of callbacks that a config on the command line has, and the list that is left has not."""
    given: dict[str, None] = {}
    for value in values(words, "--config"):
        content = read_yaml(Path(value)) if is_file(value) else parse_yaml(value)
        trainer = content.get("trainer") if isinstance(content, dict) else None
        for key in ("callbacks", "callbacks+"):
            given |= dict.fromkeys(_class_names(trainer.get(key) if isinstance(trainer, dict) else None))
    return [name for name in given if name not in _class_names(left)]


def _class_names(callbacks: Any) -> list[str]:
    parts = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    paths = [each if isinstance(each, str) else each.get("class_path") for each in parts]
    return [str(path).rpartition(".")[2] for path in paths]


def _with_checkpoint_file(words: list[str]) -> list[str]:
    """The words with a run folder given as --ckpt_path replaced by the checkpoint in it."""
    for index, word in enumerate(words):
        option, equals, path = word.partition("=")
        if option == "--ckpt_path" and equals:
            words[index] = f"{option}={checkpoint_file(path)}"
        elif index and words[index - 1] == "--ckpt_path":
            words[index] = checkpoint_file(word)
    return words
