"""Files that are whole or not there: written under a temporary name in their own folder, synced, renamed.

The temporary file lies in the target's folder, since a rename is atomic only within a file system (Lightning's own
writes to $TMPDIR and copies: a kill then leaves half a file under the final name).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lit_medgen.errors import space_for

PART = ".part"
SHOWN = "backslashreplace"
"""How text shows the bytes of a file's name that are not UTF-8: as \\udce4, which every tool can read."""


class HashingFile:
    """A binary file that is written from front to back, with the SHA-256 of what went into it.

    Attributes:
        num_bytes: written so far.
        failure: the error of a write that failed; a caller in between (PyTorch's zip writer) may hide it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.num_bytes = 0
        self.failure: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        """Appends."""
        try:
            written = self._file.write(content)
        except OSError as error:
            self.failure = error
            raise
        self._digest.update(content)
        self.num_bytes += written
        return written

    def flush(self) -> None:
        """To the operating system."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Of everything written."""
        return self._digest.hexdigest()


@contextmanager
def replacing(path: Path, num_bytes: int | None = None) -> Iterator[HashingFile]:
    """A file to write that takes the place of `path` at the end, or, after an exception, leaves it as it was.

    The temporary name is fixed for a process, so a kill leaves one stale file at most; `remove_stale` finds it.

    Args:
        path: the final name.
        num_bytes: about how much will be written, for the error text.

    Raises:
        NoSpaceError: the disk is full.
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
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """Where this process writes what will take the place of `path`; `remove_stale` knows it."""
    return path.with_name(f".{path.name}.{os.getpid()}@{os.uname().nodename}{PART}")


def write_atomically(path: Path, content: bytes | str) -> str:
    """Writes a small file whole; returns its SHA-256."""
    content = content.encode(errors=SHOWN) if isinstance(content, str) else content
    with replacing(path, len(content)) as file:
        file.write(content)
    return file.sha256


def remove_stale(folder: Path, single_writer: bool = False) -> None:
    """Removes temporary files that killed processes left behind; called before the first write.

    Args:
        folder: where to look.
        single_writer: nobody else writes there, so all of them are stale; else those of live processes and of other
            machines stay.
    """
    for part in folder.glob(f".*{PART}"):
        owner = re.search(rf"\.(\d+)@(.+){re.escape(PART)}$", part.name)
        if owner is None:
            continue
        pid, here = int(owner[1]), owner[2] == os.uname().nodename
        if single_writer or (here and (pid == os.getpid() or not _alive(pid))):
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
