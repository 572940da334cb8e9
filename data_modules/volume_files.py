"""The files of one prepared volume: writing them, whether they are whole, and taking them from another store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lit_medgen.files import replacing, temporary_name


def array_path(path: Path, name: str) -> Path:
    """The file of an array beside that of an image: <key>.<name>.npy beside <key>.npy."""
    return path.with_suffix(f".{name}.npy")


def save_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes a .npy file whole; returns its sha256 and bytes."""
    array = np.ascontiguousarray(array)
    with replacing(path, array.nbytes) as file:
        np.save(file, array)
    return {"sha256": file.sha256, "bytes": path.stat().st_size}


def take_over(path: Path, others: Iterable[Path], verify: bool) -> bool:
    """Links the files of a volume from the first of other folders where they are whole; whether one was found.

    A file system without hard links gets copies.
    """
    for folder in others:
        files = whole_files(folder / path.name, verify)
        for theirs in files:  # the facts last: they say that all is there
            ours = path.with_name(theirs.name)
            part = temporary_name(ours)
            part.unlink(missing_ok=True)
            try:
                os.link(theirs, part)
            except OSError:
                shutil.copyfile(theirs, part)
            part.replace(ours)
        if files:
            return True
    return False


def whole_files(path: Path, verify: bool) -> list[Path]:
    """All files of a volume: its .npy file, what lies beside it, its facts last; none if one is missing or damaged.

    Files must have the size that the facts say and, to `verify`, the SHA-256.
    """
    facts_path = path.with_suffix(".json")
    if not (path.exists() and facts_path.exists()):
        return []
    try:
        facts = json.loads(facts_path.read_text())
    except ValueError:
        return []
    files = {path: facts} | {array_path(path, name): more for name, more in facts.get("beside", {}).items()}
    whole = all(
        file.is_file()
        and file.stat().st_size == known["bytes"]
        and (not verify or hashlib.sha256(file.read_bytes()).hexdigest() == known["sha256"])
        for file, known in files.items()
    )
    return [*files, facts_path] if whole else []
