"""What lies below the root of a data set: which files can be read as images, and which are passed over.

Links to folders and files are followed. A link that leads to a folder it lies in ends there, and a folder that holds a
prepared store is left out.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from data_modules.sources import Rejected
from lit_medgen.errors import InputError, raise_fault_of_machine
from lit_medgen.images import DICOM_SUFFIXES, begins_as_dicom, partner_of

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".hdr", ".png")
READ = ".nii, .nii.gz, .hdr with .img, .mgz, .mgh, .png, .dcm, .ima, and DICOM without a suffix"
"""What can be read, for a message; capitals make no difference."""

DICOM_HEAD = 132
"""Bytes up to the end of the letters DICM, which follow the preamble."""

STORE = re.compile(r".+-[0-9a-f]{12}")


@dataclass(frozen=True)
class Tree:
    """The files and folders below a root, sorted."""

    root: Path
    files: list[Path] = field(default_factory=list)  # regular files, also behind links
    folders: list[Path] = field(default_factory=list)  # the root and all folders below it
    lost: list[Rejected] = field(default_factory=list)  # links without a target, folders that may not be read

    @cached_property
    def of_folder(self) -> dict[Path, list[Path]]:
        """Folder -> the files directly in it."""
        found: dict[Path, list[Path]] = {}
        for path in self.files:
            found.setdefault(path.parent, []).append(path)
        return found

    def matching(self, pattern: str) -> list[Path]:
        """The files that a glob pattern names; of the suffix, capitals make no difference."""
        words = _words(pattern)
        return [path for path in self.files if self._matches(path, words)]

    def lost_to(self, pattern: str) -> list[Rejected]:
        """What is lost of that: broken links that the pattern names, or that may have been folders."""
        words = _words(pattern)
        return [row for row in self.lost if not suffix_of(Path(row.source)) or self._matches(Path(row.source), words)]

    def _matches(self, path: Path, words: Sequence[str]) -> bool:
        parts = path.relative_to(self.root).parts
        return _matches(parts, words) or _matches((*parts[:-1], _lowered(parts[-1])), words)


def walk(root: Path) -> Tree:
    """All files and folders below a root; none if it is no folder."""
    if not root.is_dir():
        return Tree(root)
    tree = Tree(root, folders=[root])
    top = root.stat()
    waiting = [(root, frozenset({(top.st_dev, top.st_ino)}))]
    while waiting:
        folder, above = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise_fault_of_machine(error, folder)
            tree.lost.append(Rejected(str(folder), f"a folder that cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            path = folder / entry.name
            try:
                facts = None if entry.is_file(follow_symlinks=False) else entry.stat()
            except OSError as error:
                raise_fault_of_machine(error, path)
                tree.lost.append(
                    Rejected(str(path), f"cannot be read ({error.strerror}); is it a link without a target?")
                )
                continue
            if facts is None or stat.S_ISREG(facts.st_mode):
                tree.files.append(path)
            elif stat.S_ISDIR(facts.st_mode) and (facts.st_dev, facts.st_ino) not in above and not _is_store(path):
                tree.folders.append(path)
                waiting.append((path, above | {(facts.st_dev, facts.st_ino)}))
    tree.files.sort()
    tree.folders.sort()
    tree.lost.sort(key=lambda row: row.source)
    return tree


def suffix_of(path: Path) -> str:
    """The suffix in small letters, `.nii.gz` as one; "" where what follows the last dot is a number."""
    if path.name.lower().endswith(".nii.gz"):
        return ".nii.gz"
    suffix = path.suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", suffix) else ""


def stem_of(path: Path) -> str:
    """The name without that suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def is_image(path: Path) -> bool:
    """Whether a file is read as a volume or 2D image of its own."""
    return suffix_of(path) in IMAGE_SUFFIXES and (path.suffix.lower() != ".hdr" or partner_of(path) is not None)


def is_dicom(path: Path) -> bool:
    """Whether a file is read as DICOM: by its suffix, or, where it has none, by how it begins; no table of contents."""
    suffix = suffix_of(path)
    return suffix in DICOM_SUFFIXES or (not suffix and path.name.upper() != "DICOMDIR" and _begins_as_dicom(path))


def count_suffixes(files: Iterable[Path]) -> str:
    """How many files there are of each suffix, the most frequent first."""
    counts = Counter(suffix_of(path) or "without a suffix" for path in files)
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(8)]
    return ", ".join([*shown, "..."] if len(counts) > len(shown) else shown)


def _begins_as_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return begins_as_dicom(file.read(DICOM_HEAD))
    except OSError:
        return False


def _words(pattern: str) -> tuple[str, ...]:
    words = tuple(word for word in _lowered(pattern).split("/") if word not in ("", "."))
    if not words or pattern.startswith("/") or ".." in words:
        raise InputError(
            f"data.init_args.pattern is '{pattern}'; give a pattern below `root`, such as '**/*.nii.gz', without '..'."
        )
    return words


def _matches(parts: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a path below the root, in parts, fits a glob; `**` is any number of folders."""
    if not words:
        return not parts
    if words[0] == "**":
        return any(_matches(parts[first:], words[1:]) for first in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], words[0]) and _matches(parts[1:], words[1:])


def _lowered(name: str) -> str:
    """The name or pattern with the suffix of an image in small letters."""
    for suffix in (*DICOM_SUFFIXES, *IMAGE_SUFFIXES, ".nii*"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)] + suffix
    return name


def _is_store(folder: Path) -> bool:
    """Whether our own prepared images lie there, which are nobody's raw data."""
    return bool(STORE.fullmatch(folder.name)) and (folder / "preprocessing.json").is_file()
