"""What a user mistyped, as one line that names the nearest thing there is: option, key, class, file, verb."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._util import import_object
from torch.optim import AdamW
from yaml import YAMLError

from lit_medgen.arguments import is_file, pairs, parse_yaml, read_yaml
from lit_medgen.errors import InputError
from lit_medgen.options import FACES, classes, options

SYNONYMS = {
    **dict.fromkeys(("checkpoint", "ckpt", "resume", "weights", "model_path"), "ckpt_path"),
    **dict.fromkeys(("output", "output_dir", "out_dir", "save_dir", "folder"), "out"),
    **dict.fromkeys(("epochs", "max_epochs", "steps", "iterations"), "trainer.max_steps"),
    **dict.fromkeys(("num_samples", "n", "samples"), "num"),
    **dict.fromkeys(("gpus", "gpu", "num_gpus", "device"), "trainer.devices"),
    **dict.fromkeys(("seed", "random_seed"), "seed_everything"),
    **dict.fromkeys(("learning_rate", "lr"), "model.init_args.optimizer.init_args.lr"),
    **dict.fromkeys(("workers", "n_workers"), "data.init_args.num_workers"),
    **dict.fromkeys(("image_size", "img_size", "resolution"), "data.init_args.preprocessing.size"),
}
"""What other programs call it -> our key."""
RENAMED = {"model.conditioning.attributes": "model.init_args.network.covariates.numbers"}
"""A key of earlier versions, without init_args -> that of now."""


def shorten(message: str) -> str:
    """jsonargparse's message as one line: the key and what is wrong with it, without the list of all options."""
    text = re.sub(r"\s+", " ", message).strip()
    # A fault below `model` or `data` comes wrapped in one list of attempts for each level; the innermost says it.
    if wrapped := re.match(r'Parser key "([^"]+)": ?(.*)', text):
        key, rest = wrapped.groups()
        if inner := re.search(r".*Errors: - (.*?) - Expected a <class 'NoneType'>", rest):
            rest = inner[1]
        text = key + ("." if re.match(r"[\w.]+: ", rest) else ": ") + rest
    text = re.sub(
        r"Expected a dot import path string: (.*)", r"\1 names no class; give its path, as the configs do", text
    )
    if re.search(r"arguments are required: \w+\.(model|data)\b", text):
        text += "; give --config FILE or --ckpt_path FILE"
    if text.endswith("arguments are required: data, model"):  # of estimate
        text += "; give --config FILE"
    if text.endswith("arguments are required: data"):
        text += "; give --config FILE or --data FILE"
    text = re.sub(
        r"(?:- )?Import path (\S+) does not implement protocol (\w+)",
        r"\1 cannot be called as lit_medgen.networks.\2 says; give its forward those arguments (docs/own_classes.md)",
        text,
    )
    text = re.sub(r"(or )?Expected a path but \S+ either not accessible or invalid - ", "", text)
    text = re.sub(r"Expected a <class '(?:[\w.]+\.)?(\w+)'>", r"expected \1", text)
    text = re.sub(
        r" - (?=expected|Expected)", " or ", re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected \1", text)
    )
    text = re.sub(r"expected (?:list|tuple)\b", "expected a list, written as '[a,b]'", text)
    return text if len(text) <= 600 else text[:600] + " ..."


def explain(text: str, parser: ArgumentParser, verb: str, words: Sequence[str]) -> str:
    """A message of `shorten` with what was probably meant: the nearest option, key, class or file."""
    meant = None
    if re.search(r"[Oo]ption '([^']*\.)?covariates\b", text):
        return (
            f"{text} The network of this config is told nothing of an image, or names elsewhere what it is told "
            "(docs/asking_for_images.md); leave configs/with/age_and_sex.yaml out."
        )
    if match := re.search(r"unrecognized arguments: (\S+)", text):
        meant = _option(match[1], parser, verb, words)
    elif match := re.search(r"(?:(\S+): )?(?:Group '(\S+)' does not accept option|Option) '([^']+)'", text):
        meant = _key(".".join(filter(None, match.groups())), parser, verb, words)
    elif match := re.search(r"does not accept option '([^']+)'", text):
        meant = _key(match[1], parser, verb, words)
    elif match := re.search(r"(\S+) names no class|class_path '([^']+)'", text):
        meant = nearest_class(match[1] or match[2])
    elif match := re.search(r"(?:File does not exist: '|Unexpected import path format: )([^' ]+)", text):
        meant, text = nearest_file(Path(match[1])), text.replace("Unexpected import path format:", "no file")
    return f"{text}; did you mean {meant}?" if meant else text


def refuse_swapped(option: str, path: Path, content: Any) -> None:
    """InputError if a whole config is given where one class is asked for, or the other way round."""
    sections = [name for name in ("name", "trainer", "model", "data") if isinstance(content, dict) and name in content]
    is_class = isinstance(content, dict) and "class_path" in content
    if option == "--data" and sections and not is_class:
        raise InputError(
            f"--data {path}: a whole config (it has {', '.join(sections)}), but --data takes one class (class_path, "
            f"init_args); give it with --config {path}."
        )
    if option == "--config" and is_class:
        raise InputError(f"--config {path}: one class, {content['class_path']}; give it with --data {path}.")


def _option(word: str, parser: ArgumentParser, verb: str, words: Sequence[str]) -> str | None:
    if not word.startswith("-"):
        option = "--data" if isinstance(content := _content(word), dict) and "class_path" in content else "--config"
        return f"{option} {word}" if Path(word).is_file() else nearest_class(word)
    return _key(word.lstrip("-").partition("=")[0], parser, verb, words)


def _key(key: str, parser: ArgumentParser, verb: str, words: Sequence[str]) -> str | None:
    nearest = nearest_key(key, known_keys(parser, verb, words))
    return None if nearest is None else f"--{nearest}"


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known key that ends as this one does, else the one spelt most like it; of one word, the verb's own first."""
    if _plain(key) in RENAMED:
        return RENAMED[_plain(key)]
    known = [other for other in dict.fromkeys(known) if _plain(other) != _plain(key)]
    key = _plain(key.replace("-", "_"))
    last, first = key.rpartition(".")[2], key.partition(".")[0]
    if "." not in key:
        if near := get_close_matches(key, [other for other in known if "." not in other], 1, 0.8):
            return near[0]
        if SYNONYMS.get(key) in known:
            return SYNONYMS[key]
    same = [other for other in known if other.rpartition(".")[2] == last]
    if same:
        return min(same, key=lambda other: (other.partition(".")[0] != first, len(other)))
    by_path = {_plain(other): other for other in reversed(known)}
    by_name = {other.rpartition(".")[2]: other for other in reversed(known)}
    if SYNONYMS.get(last) in by_path.values():
        return SYNONYMS[last]
    near = get_close_matches(key, by_path, 1, 0.8) or ([] if "." in key else get_close_matches(last, by_name, 1, 0.7))
    return (by_path | by_name)[near[0]] if near else None


def _plain(key: str) -> str:
    """A key as it may be written as well: model.optimizer.lr for model.init_args.optimizer.init_args.lr."""
    return key.replace(".init_args", "").replace("init_args.", "")


def known_keys(parser: ArgumentParser, verb: str, words: Sequence[str]) -> Iterator[str]:
    """Every key of a verb: its options, those of the classes that the words name, those its config files set."""
    commands = parser._subcommands_action
    actions = commands._name_parser_map[verb]._actions if commands else parser._actions
    for action in actions:
        yield from (option[2:] for option in action.option_strings if re.fullmatch(r"--[\w.]+(?<!\.help)", option))
    named: dict[str, str] = {}
    for option, value in pairs(words):
        content = _content(value) if option in ("--config", "--data", "--model") else None
        section = "" if option == "--config" else f"{option[2:]}."
        yield from _flat(content, section) if isinstance(content, dict) else ()
        for part in ("model", "data"):
            inner = content.get(part) if isinstance(content, dict) and not section else content
            path = inner.get("class_path") if isinstance(inner, dict) else None
            if section in ("", f"{part}.") and (path or option == f"--{part}"):
                named[part] = str(path or value)
    for part, path in named.items():
        yield from _parameters(path, f"{part}.init_args")


def _content(value: str) -> Any:
    """A config file, or a text that is one, as plain data; None if it cannot be read."""
    try:
        return read_yaml(Path(value)) if is_file(value) else parse_yaml(value) if "\n" in value else None
    except (OSError, ValueError, YAMLError):
        return None


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if name != "class_path":
            yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")


def _parameters(class_path: str, prefix: str) -> Iterator[str]:
    """Keys of a class of ours, those of dataclasses and of the optimizer inside it too."""
    try:
        known = options(import_object(class_path))
    except (ImportError, AttributeError, TypeError, ValueError):
        return
    for name, annotation in known.items():
        yield f"{prefix}.{name}"
        if is_dataclass(annotation):
            yield from (f"{prefix}.{name}.{field.name}" for field in fields(annotation))
        if name == "optimizer":
            yield from (f"{prefix}.optimizer.init_args.{option}" for option in options(AdamW))


def nearest_class(name: str) -> str | None:
    """The path of that class of ours whose name is most like the last part of `name`."""
    paths: dict[str, str] = {}
    for face in FACES:
        for known in classes(face):
            paths.setdefault(known.lower(), f"{face}.{known}")
    near = get_close_matches(name.rpartition(".")[2].lower(), paths, 1, 0.7)
    return paths[near[0]] if near else None


def nearest_file(path: Path) -> str | None:
    """The config file, shipped or beside where `path` should be, whose path is most like it."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    files = [*Path("configs").rglob("*.yaml"), *shown.parent.glob("*.y*ml")]
    shipped = Path(__file__).parent
    files += [file.relative_to(shipped) for file in (shipped / "configs").rglob("*.yaml")]
    near = get_close_matches(str(shown), sorted({str(file) for file in files}), 1, 0.6)
    return near[0] if near else None
