"""Zip archives that anybody may have made: members are read without extracting, in bounded memory and time.

An archive is refused as a whole if a name in it leads out of it, is there twice or is no text, or if a member is a link
or a device: nothing that UK Biobank or any honest tool writes is like that. Whatever is wrong is a ValueError of one
line, which names no member but the one that is wanted: names may be those of people.
"""

from __future__ import annotations

import errno
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_medgen.errors import describe

MAX_BYTES = 4 * 1024**3
"""Of a member, unpacked; a larger one is refused before it is unpacked."""
MAX_DIRECTORY = 1024**2
"""Bytes of an archive's table of contents, about 10,000 members; UK Biobank's have 40."""
UNPACKED_FREELY, MAX_RATIO = 512 * 1024**2, 200
"""Bytes to which any member may be unpacked, and the ratio beyond; DEFLATE reaches 1032 with zeros alone."""
CHUNK = 1024**2
"""Bytes that are unpacked at once."""
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
"""Compressions that are read; others may ask for any memory."""
ENCRYPTED = 0x1
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
    *(struct.error, UnicodeError, IndexError, OverflowError),
)
"""What `zipfile` raises for an archive that is no archive, or is damaged."""


def names(path: Path) -> list[str]:
    """Names of the members of an archive; ValueError if it is refused or damaged."""
    with _opened(path) as archive:
        return archive.namelist()


def chunks(path: Path, member: str) -> Iterator[bytes]:
    """The bytes of a member, unpacked a part at a time; KeyError if it has none of that name, ValueError as above."""
    with _opened(path) as archive:
        info = archive.getinfo(member)
        _refuse_member(info)
        size = 0
        with archive.open(info) as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                yield chunk
        if size != info.file_size:
            raise ValueError(f"'{member}' has {size:,} bytes, but the archive says {info.file_size:,}; it is damaged")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file:
            _refuse_directory(file)
            with zipfile.ZipFile(file) as archive:
                _refuse_names(archive.infolist())
                yield archive
    except DAMAGE as error:
        raise ValueError(
            f"cannot be unpacked ({describe(error)[:200]}); is it a zip archive, cut off, or damaged?"
        ) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged archive that names a place before its own beginning
            raise
        raise ValueError(f"cannot be unpacked ({describe(error)}); it is cut off or damaged") from error


def _refuse_directory(file: Any) -> None:
    """ValueError for a table of contents too large to be read, before `zipfile` reads all of it into memory."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # the one that it will itself go by
    if end is None:
        raise zipfile.BadZipFile("it does not end as a zip archive does")
    if end[zipfile._ECD_SIZE] > MAX_DIRECTORY:  # type: ignore[attr-defined]
        raise ValueError(
            f"its table of contents has {end[zipfile._ECD_SIZE]:,} bytes; "  # type: ignore[attr-defined]
            f"expected at most {MAX_DIRECTORY:,}, the members of one scan"
        )
    file.seek(0)


def _refuse_names(members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for number, info in enumerate(members, 1):
        fault = _fault(info) or ("has the name of another" if info.filename in seen else "")
        if fault:
            raise ValueError(
                f"member {number} of this archive {fault}; no zip program writes that, so nothing of it is read"
            )
        seen.add(info.filename)


def _fault(info: zipfile.ZipInfo) -> str:
    name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Cf") for letter in name):
        return "has a name with control characters"
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not name or parts[0] == "" or parts[0].endswith(":"):
        return "has a name that leads out of the archive"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return ""


def _refuse_member(info: zipfile.ZipInfo) -> None:
    name, size = info.filename, info.file_size
    if info.flag_bits & ENCRYPTED:
        raise ValueError(f"'{name}' is locked by a password; unlock the archive first")
    if info.compress_type not in METHODS:
        raise ValueError(
            f"'{name}' is compressed by method {info.compress_type}; expected {' or '.join(METHODS.values())}"
        )
    if size > MAX_BYTES:
        raise ValueError(f"'{name}' says that it has {size:,} bytes; expected at most {MAX_BYTES:,}")
    if size > max(UNPACKED_FREELY, MAX_RATIO * info.compress_size):
        raise ValueError(f"'{name}' says that {info.compress_size:,} bytes unpack to {size:,}; expected an image")
