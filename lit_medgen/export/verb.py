"""`export`: a trained model as a folder that others can load, with a card that says what it is.

    --format safetensors    model.safetensors, config.json, README.md; what `--ckpt_path FOLDER` and `load` read
    --format bundle         a MONAI bundle (`lit_medgen.export.bundle`)
    --format torchscript    the network alone (`lit_medgen.export.torchscript`)

The weights are the averaged ones. What a folder says of the data is what `lit_medgen.export.shareable` lets through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from lit_medgen.checkpoints import checkpoint_file, read_checkpoint
from lit_medgen.errors import InputError, describe, with_nearest
from lit_medgen.export.bundle import BUNDLE_FILES, write_bundle
from lit_medgen.export.card import Stated, model_card
from lit_medgen.export.shareable import shareable
from lit_medgen.export.torchscript import TRACE_FILES, write_traced
from lit_medgen.exported import CONFIG, WEIGHTS, write_exported
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.loading import has_config, load
from lit_medgen.output import say
from lit_medgen.signals import temporary_folder
from lit_medgen.training.frozen import weights_hash
from lit_medgen.trust import EVERYTHING, trusting

TRUST = "--trust_config"
CARD = "README.md"


@dataclass(frozen=True)
class Written:
    """How a format is written.

    Attributes:
        files: that it consists of.
        write: writes them into a folder that is there: (folder, model, its shareable record, what is said of it).
    """

    files: tuple[str, ...]
    write: Callable[[Path, Any, Mapping[str, Any], Stated], None]


def export(args: list[str]) -> None:
    """The verb `export --ckpt_path FILE --out DIR`; options are the arguments of `run_export`."""
    parser = jsonargparse.ArgumentParser(
        prog="lit_medgen export",
        exit_on_error=False,
        description="Make a folder of a trained model that others can load, with a card that says what it is.",
    )
    parser.add_argument("--ckpt_path", metavar="FILE", help="the checkpoint, its run folder, or an exported folder")
    parser.add_argument("--out", metavar="DIR", help="folder to write, whose name is that of the model")
    parser.add_argument("--format", type=str, default="safetensors", help=", ".join(FORMATS))
    parser.add_argument("--report", metavar="DIR", help="a report of `evaluate`, whose scores the card shows")
    parser.add_argument("--audit", metavar="DIR", help="a report of `audit`, whose findings the card shows")
    parser.add_argument("--license", type=str, help="under which the weights are given away, e.g. CC-BY-4.0")
    parser.add_argument("--intended_use", type=str, help="what the model is for, a sentence")
    try:
        options = parser.parse_args([word for word in args if word != TRUST])
    except jsonargparse.ArgumentError as error:
        raise InputError(f"export: {with_nearest(str(error), parser)}") from error
    with trusting(EVERYTHING if TRUST in args else ()):
        run_export(**vars(options))


def run_export(
    ckpt_path: str | None,
    out: str | None,
    format: str = "safetensors",
    report: str | None = None,
    audit: str | None = None,
    license: str | None = None,
    intended_use: str | None = None,
) -> None:
    """Writes a model into a folder.

    Args:
        ckpt_path: its checkpoint.
        out: the folder, whose name is that of the model.
        format: safetensors, bundle or torchscript.
        report: folder of a report of `evaluate`.
        audit: folder of a report of `audit`.
        license: under which the weights are given away; None: the card says that it is not stated.
        intended_use: what the model is for; None: the same.
    """
    if format not in FORMATS:
        raise InputError(f"--format is {format!r}; choose from {', '.join(FORMATS)}.")
    for option, value in (("--ckpt_path FILE", ckpt_path), ("--out DIR", out)):
        if not value:
            raise InputError(f"export: {option} is missing; give it, e.g. --ckpt_path runs/<name> --out zoo/<name>.")
    folder, path = Path(out or ""), Path(checkpoint_file(ckpt_path or ""))
    written = FORMATS[format]
    outputs = Outputs(folder, "export", {name: None for of in FORMATS.values() for name in of.files})
    outputs.check()
    read_checkpoint(path)
    if not has_config(path):
        raise InputError(f"{path}: holds no config (its model was made in Python), so nobody could build it again.")
    name = folder.resolve().name
    stated = Stated(name, format, license, intended_use, _read(report, "report"), _read(audit, "audit"))
    model = load(path)
    stated.refuse_other_model(type(model).__name__, model.num_parameters)
    beside = next(path for path in (folder, *folder.parents) if path.is_dir())
    with temporary_folder(".lit_medgen-export-", beside) as new:  # an earlier export stays until the new one is whole
        written.write(new, model, shareable(model.record(), name), stated)
        outputs.claim()
        outputs.clear()
        for file in filter(Path.is_file, new.rglob("*")):
            path = folder / file.relative_to(new)
            path.parent.mkdir(parents=True, exist_ok=True)
            file.replace(path)
    outputs.end()
    say(f"{folder}: {type(model).__name__} as {format}, {model.num_parameters:,} parameters; read {folder / CARD}")


def _write_folder(folder: Path, model: Any, record: Mapping[str, Any], stated: Stated) -> None:
    """Weights, config and card; InputError if the method cannot be built from them alone."""
    write_exported(folder, record, model.state_dict())
    write_atomically(folder / CARD, model_card(model, stated))
    if weights_hash(load(folder)) != weights_hash(model):
        raise InputError("export: the model that was read back has other weights; this method cannot be exported.")


FORMATS: dict[str, Written] = {
    "safetensors": Written((WEIGHTS, CONFIG, CARD), _write_folder),
    "bundle": Written(BUNDLE_FILES, write_bundle),
    "torchscript": Written(TRACE_FILES, write_traced),
}


def _read(folder: str | None, option: str) -> dict[str, Any]:
    """What report.json or audit.json of a folder (or of `report` or `audit` in it) says; empty without a folder."""
    if folder is None:
        return {}
    names = (f"{option}.json", "report.json")
    paths = [place / name for place in (Path(folder), Path(folder, option)) for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(f"--{option}: no report.json in '{folder}'; give the folder that the verb wrote it to.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--{option}: {path} cannot be read ({describe(error)}); make the report again.") from error
    expected = "metrics or own" if option == "report" else "copies or membership"
    if not isinstance(content, dict) or not content.keys() & set(expected.split(" or ")):
        raise InputError(f"--{option}: {path} is no such report (it has no {expected}); give one that the verb wrote.")
    return content
