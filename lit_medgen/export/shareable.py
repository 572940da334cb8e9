"""What of a method's record may leave the house: nothing of people, folders or the machine, and all that makes images.

The data section keeps arguments that say what images look like (`OF_IMAGES`); where they lie, who is in them and what
stands in tables is the owner's. Paths of frozen parts, which lie within, and all other paths lose their folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lit_medgen.loading import SECTIONS
from lit_medgen.trust import TRUSTED, classes, trusted

OF_IMAGES = (
    "preprocessing",
    "axis",
    "view",
    "ct",
    "crop",
    "nodules_only",
    "malignant_from",
    "size",
    "modality",
    "image",
    "volumes",
    "anatomy",
    "batch_size",
    "fractions",
    "seed",
    "fold",
    "official_split",
)
"""Arguments of data modules that are kept; a new argument is left out unless it is named here."""
STAND_INS = {"root": "your_data", "withdrawals": "your_withdrawals"}
"""What stands for files that a data module cannot do without, which whoever evaluates the model gives."""
WITHIN = "within"
"""What stands for the path of a frozen part, whose weights lie in the same file."""
STRIPPERS = ("registration", "none")
"""What `strip` may be besides a command of the owner's."""
ABSOLUTE = re.compile(r"^(/|~|\\\\|[A-Za-z]:[\\/]|\w+://)")


def shareable(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The record of a method, and of the parts that it is built on, without what is its owner's.

    Args:
        record: as `Recorded.record` gives it.
        name: that takes the place of the run's.
    """
    parts = {part: shareable(of, part) for part, of in record["frozen"].items()}
    return {
        **record,
        "config": None if record["config"] is None else _config(record["config"], name, list(parts)),
        "spec": None if record["spec"] is None else _spec(record["spec"]),
        "frozen": {part: parts[part] | {"weights": of["weights"]} for part, of in record["frozen"].items()},
    }


def _config(config: Mapping[str, Any], name: str, parts: list[str]) -> dict[str, Any]:
    """Name, model and data; training needs more, which is left out."""
    model = dict(config["model"])
    arguments = _without_folders(model.get("init_args") or {})
    model["init_args"] = arguments | {part: WITHIN for part in parts if arguments.get(part) is not None}
    return dict.fromkeys(SECTIONS) | {"name": name, "model": model, "data": _data(config.get("data"))}


def _data(section: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The data section; None where a class of the owner's own reads the data, which nobody else has."""
    if not section or not all(trusted(each, TRUSTED) for each in classes(section)):
        return None
    given = section.get("init_args") or {}
    kept = _without_folders({key: value for key, value in given.items() if key in OF_IMAGES})
    needed = {key: text for key, text in STAND_INS.items() if given.get(key) is not None}
    return {"class_path": section["class_path"], "init_args": needed | kept}


def _spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec without sums of people, of which a small set could be guessed; of a path its last part."""
    return _without_folders(spec) | {"people_sums": {}, "left_out": ""}


def _without_folders(value: Any) -> Any:
    """The same with the last part of every path that says where it lies, and without commands."""
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if key != "strip" or inner in STRIPPERS}
        return {key: _without_folders(inner) for key, inner in kept.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_folders, value))
    if isinstance(value, str) and _is_path(value):
        return PureWindowsPath(PurePosixPath(value).name).name
    return value


def _is_path(text: str) -> bool:
    """Whether a text says where a file lies: absolute, or of several parts that end in a suffix."""
    return bool(ABSOLUTE.match(text)) or (("/" in text or "\\" in text) and re.search(r"\.\w{1,8}$", text) is not None)
