"""Files that are whole or not there: written under a temporary name in their own folder, synced, renamed.

The temporary file lies in the target's folder, since a rename is atomic only within a file system (Lightning's own
writes to $TMPDIR and copies: a kill then leaves half a file under the final name).

`Outputs` tells the files that a verb wrote from those of the user, which no verb touches.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lit_medgen.errors import InputError, describe, space_for

PART = ".part"
ABANDONED_S = 1800.0
"""A file that nobody has appended to for so long is written no more, by whatever machine."""
SHOWN = "backslashreplace"
"""How text shows the bytes of a file's name that are not UTF-8: as \\udce4, which every tool can read."""


class HashingFile:
    """A binary file that is written from front to back, with the SHA-256 of what went into it.

    Attributes:
        failure: the error of a write that failed; a caller in between (PyTorch's zip writer) may hide it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        """Appends the content to the file and to its hash; returns the number of bytes written."""
        try:
            written = self._file.write(content)
        except OSError as error:
            self.failure = error
            raise
        self._digest.update(content)
        return written

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """SHA-256 of everything written so far, in hexadecimal."""
        return self._digest.hexdigest()


@contextmanager
def replacing(path: Path, num_bytes: int | None = None) -> Iterator[HashingFile]:
    """A file to write that takes the place of `path` at the end, or, after an exception, leaves it as it was.

    The temporary name is fixed for a process, so a kill leaves one stale file at most; `remove_stale` finds it.
    NoSpaceError, which says about how many bytes are needed, if the disk is full.
    """
    temporary = temporary_name(path)
    try:
        with space_for(path, num_bytes):
            with temporary.open("wb") as raw:
                file = HashingFile(raw)
                try:
                    yield file
                except Exception as error:
                    raise (file.failure or error) from error
                raw.flush()
                os.fsync(raw.fileno())
            temporary.replace(path)
            _sync(path.parent)  # so that the rename lasts through a power cut
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def growing(path: Path, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A file to append to, and to read, that takes the place of `path` at the end.

    After an exception or a kill, what was written stays under its temporary name, and the next process that makes the
    file goes on from it. NoSpaceError, which says about how many bytes are needed, if the disk is full.
    """
    temporary = temporary_name(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        with suppress(FileNotFoundError):  # another process took it
            if part != temporary and (_left_behind(part) or time.time() - part.stat().st_mtime > ABANDONED_S):
                part.unlink() if temporary.exists() else part.rename(temporary)
    with space_for(path, num_bytes):
        with temporary.open("a+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)


def temporary_name(path: Path) -> Path:
    """Where this process writes what will take the place of `path`; `remove_stale` knows it."""
    return path.with_name(f".{path.name}.{os.getpid()}@{os.uname().nodename}{PART}")


def write_atomically(path: Path, content: bytes | str) -> str:
    """Writes a small file whole; returns its SHA-256."""
    content = content.encode(errors=SHOWN) if isinstance(content, str) else content
    with replacing(path, len(content)) as file:
        file.write(content)
    return file.sha256


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows (column -> cell) as CSV with a header; ValueError for a cell of no column."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Outputs:
    """The files that one verb writes into a folder, and the proof that they are its own.

    `.lit_medgen-<verb>.json` beside them lists what it wrote, name -> SHA-256, and, while it is at work, the names it
    is writing. Every other file of such a name is the user's: then the verb refuses the folder.

    Args:
        folder: where the verb writes.
        verb: who writes; two verbs may share a folder.
        names: what it writes, below the folder. `part/*.png` stands for all such files of the folder `part`,
            `part/**/*` for all that lies in it, at any depth.
        remedy: what the user can do about a folder that is refused.
    """

    def __init__(
        self, folder: Path, verb: str, names: Iterable[str], remedy: str = "move it, or give another --out"
    ) -> None:
        self.folder, self.verb, self.names, self.remedy = folder, verb, list(names), remedy
        self._list = folder / f".lit_medgen-{verb}.json"

    def check(self) -> None:
        """InputError if the folder cannot be written, or holds a file of these names that the verb did not write."""
        first = next(path for path in (self.folder, *self.folder.parents) if os.path.lexists(path))
        if not first.is_dir() or not os.access(first, os.W_OK):
            raise self._refused(f"{self.folder}: {first} is no folder that can be written")
        for path in self._there(self.names):
            if not self._own(path):
                raise self._refused(f"{path}: not written by this verb, or changed since, so nothing was touched")

    def claim(self, known: bool = False) -> None:
        """Checks, unless the folder is known to be the verb's own, and notes that these names are now being written."""
        if not known:
            self.check()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(f"{self.folder} cannot be made ({describe(error)})") from error
        written, writing = self._noted
        self._note(written, sorted({*writing, *self.names}))

    def clear(self) -> None:
        """Removes what the verb wrote before; what else lies there stays, and so does the folder of it."""
        written, writing = self._noted
        for path in [*(self.folder / name for name in written), *self._there(writing)]:
            if path.is_file() and self._own(path):
                path.unlink()
                for folder in list(path.relative_to(self.folder).parents)[:-1]:
                    if not any((self.folder / folder).iterdir()):
                        (self.folder / folder).rmdir()

    def end(self) -> None:
        """Notes the SHA-256 of what was written; of a folder only its name."""
        there = self._there(self.names)
        written = {name: sha256 for name, sha256 in self._noted[0].items() if (self.folder / name).is_file()}
        written |= {self._name(path): file_hash(path) for path in there if path.is_file()}
        self._note(written, [self._name(path) for path in there if path.is_dir()])

    def _refused(self, what: str) -> InputError:
        return InputError(f"{self.verb}: {what}; {self.remedy}.")

    def _there(self, names: Iterable[str]) -> list[Path]:
        """What lies at one of the names, or in the way of one."""
        present: dict[Path, None] = {}
        for name in names:
            inner = [self.folder / parent for parent in PurePosixPath(name).parents if parent.name]
            present |= {path: None for path in inner if os.path.lexists(path) and not path.is_dir()}
            path = self.folder / name
            present |= dict.fromkeys(self._matching(name) if "*" in name else [path] * os.path.lexists(path))
        return list(present)

    def _matching(self, pattern: str) -> list[Path]:
        """All that a pattern stands for; of a tree its files and links alone."""
        found = sorted(self.folder.glob(pattern))
        return [path for path in found if path.is_symlink() or not path.is_dir()] if "**" in pattern else found

    def _own(self, path: Path) -> bool:
        name = PurePosixPath(self._name(path))
        written, writing = self._noted
        if path.parent.resolve() != (self.folder.resolve() / name).parent:
            return False  # a link leads out of the folder, to files of the user
        if str(name) in writing or any("*" in pattern and fnmatchcase(str(name), pattern) for pattern in writing):
            return True
        known = written.get(str(name))
        return known is not None and path.is_file() and not path.is_symlink() and file_hash(path) == known

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    @cached_property
    def _noted(self) -> tuple[dict[str, str], set[str]]:
        """What the list says: name -> SHA-256 of files that are written, and the names being written."""
        if not os.path.lexists(self._list):
            return {}, set()
        try:
            content: Any = json.loads(self._list.read_bytes())
            return dict(content["written"]), set(content["writing"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._refused(f"{self._list}: not a list of lit_medgen ({describe(error)})") from error

    def _note(self, written: dict[str, str], writing: Iterable[str]) -> None:
        write_atomically(self._list, json.dumps({"written": written, "writing": list(writing)}, indent=0))
        self._noted = written, set(writing)


def remove_stale(folder: Path, single_writer: bool = False) -> None:
    """Removes temporary files that killed processes left behind; called before the first write.

    Those of live processes and of other machines stay, unless nobody else writes there (`single_writer`).
    """
    for part in folder.glob(f".*{PART}"):
        if _left_behind(part, single_writer):
            part.unlink(missing_ok=True)


def _left_behind(part: Path, single_writer: bool = False) -> bool:
    """Whether nobody else writes this temporary file any more: its process has ended, or is this one."""
    owner = re.search(rf"\.(\d+)@(.+){re.escape(PART)}$", part.name)
    if owner is None:
        return False
    pid, here = int(owner[1]), owner[2] == os.uname().nodename
    return single_writer or (here and (pid == os.getpid() or not _alive(pid)))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(source: str) -> Path:
    """The file of `PATH` or `PATH@sha256:DIGITS`; InputError if its SHA-256 does not begin with these digits."""
    path, at, digits = source.partition("@sha256:")
    if not at:
        return Path(source)
    if not re.fullmatch("[0-9a-f]{12,64}", digits.lower()):
        raise InputError(f"{source}: after @sha256: stands {digits!r}; give 12 to 64 hexadecimal digits.")
    try:
        found = file_hash(Path(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({describe(error)}); give a file.") from error
    if not found.startswith(digits.lower()):
        raise InputError(
            f"{path} has the SHA-256 {found}, not {digits}: it is another file than the one that was meant; take that "
            "one, or this one's hash."
        )
    return Path(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
