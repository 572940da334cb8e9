"""Tar archives of many images, packed by gzip or not: listed once, and read member by member without extracting.

A member's place is its offset in the unpacked archive. Of a plain tar it is read from there. A gzip stream has to be
unpacked up to it, so each process keeps the last such stream open and goes on in it: members read in the order of their
offsets cost one pass, whichever of them a process reads. What was listed is kept, by the archive's path, size and time,
so that the next preparation does not unpack it all again.

An archive is refused as a whole if it is cut off or damaged, if a name in it leads out of it, or if a member is a link
or a device: the data sets that come as tar have nothing like that. Whatever is wrong is a ValueError of one line, which
names no member: names may be those of people.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from lit_medgen.errors import describe
from lit_medgen.files import write_atomically

SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Of archives that are read, in small letters."""
MAX_BYTES = 256 * 1024**2
"""Of a member; a larger one is refused before it is read."""
MAX_MEMBERS = 1_000_000
CHUNK = 1024**2
"""Bytes that are unpacked at once."""
MAX_NAME = 255
"""Letters of a member's name without folders, as of any file."""
DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile, UnicodeError, OverflowError)
"""What is raised for an archive that is no archive, or is damaged."""


class Place(NamedTuple):
    """Where a file stands in an archive."""

    name: str  # with the folders in the archive
    offset: int  # of its first byte in the unpacked archive
    size: int  # bytes


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive by its name."""
    return path.name.lower().endswith(SUFFIXES)


def places(
    path: Path, cache: Path, skip: Callable[[Place], bool] = lambda place: False, skipped: str = ""
) -> list[Place]:
    """The files in an archive, in order; ValueError if it is refused or damaged.

    Args:
        path: the archive.
        cache: folder that keeps lists of archives, and is made if it is not there.
        skip: which files are left out, also of the list that is kept: those of people who withdrew.
        skipped: a hash of whom that is about; where it is another, the archive is listed anew.
    """
    facts = path.stat()
    stamp = hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
    kept = cache / f"tar-{stamp[:16]}-{skipped[:8]}.json"
    try:
        return [Place(str(name), int(offset), int(size)) for name, offset, size in json.loads(kept.read_bytes())]
    except (OSError, ValueError, TypeError):
        found = [place for place in _listed(path) if not skip(place)]
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f"tar-{stamp[:16]}-*.json"):
        old.unlink(missing_ok=True)
    write_atomically(kept, json.dumps(found))
    return found


def content(path: Path, offset: int, size: int) -> bytes:
    """The bytes of a member; ValueError if the archive is damaged or not the one that was listed."""
    return _content(path, path.stat().st_mtime_ns, offset, size)


@lru_cache(maxsize=1)  # an image is read for its key and then for its pixels
def _content(path: Path, time_ns: int, offset: int, size: int) -> bytes:
    with _damage():
        if path.name.lower().endswith(".tar"):
            with path.open("rb") as file:
                file.seek(offset)
                found = file.read(size)
        else:
            stream = _stream(path, time_ns)
            stream.seek(offset)
            found = stream.read(size)
        if len(found) != size:
            raise EOFError(f"a member of {size:,} bytes has {len(found):,}")
    return found


@lru_cache(maxsize=1)
def _stream(path: Path, time_ns: int) -> BinaryIO:
    """The unpacked archive, which stays open for the next member."""
    return cast(BinaryIO, gzip.open(path))


class _Unpacked:
    """An unpacked archive that remembers the last block that was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.last = file, b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Like that of any file."""
        self.last = self._file.read(size)
        return self.last


def _listed(path: Path) -> Iterator[Place]:
    packed = not path.name.lower().endswith(".tar")
    with _damage(), cast(BinaryIO, gzip.open(path)) if packed else path.open("rb") as raw:
        file = _Unpacked(raw)
        with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as archive:
            for number, info in enumerate(archive, 1):
                if fault := _fault(info) or ("is one too many" if number > MAX_MEMBERS else ""):
                    raise ValueError(f"member {number:,} of this archive {fault}, so nothing of it is read")
                if info.isreg():
                    yield Place(info.name, info.offset_data, info.size)
        # `tarfile` takes whatever is no header for the end.
        if len(file.last) != tarfile.BLOCKSIZE or any(file.last):
            raise EOFError("it does not end as a tar archive does")
        while file.read(CHUNK):  # up to the checksum of gzip
            if any(file.last):
                raise EOFError("something follows its end")


def _fault(info: tarfile.TarInfo) -> str:
    parts = info.name.replace("\\", "/").split("/")
    if ".." in parts or info.name.startswith("/") or not info.name.isprintable() or len(parts[-1]) > MAX_NAME:
        return "has a name that leads out of the archive or is none"
    if not (info.isreg() or info.isdir()):
        return "is a link or a device"
    if info.issparse() or info.size > MAX_BYTES:
        return f"has {info.size:,} bytes; expected an image of at most {MAX_BYTES:,}"
    return ""


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"cannot be unpacked ({describe(error)[:200]}); it is no tar archive, cut off or damaged: download it again"
        ) from error
