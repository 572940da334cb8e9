"""Looks for words in files: as they stand, in base64, and in what is packed inside."""

from __future__ import annotations

import base64
import gzip
import os
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path


def forms(word: str) -> set[bytes]:
    """The word, and its base64 at each of the three places it may begin within a group."""
    found = {word.encode()}
    for offset in range(3):
        content = bytes(offset) + word.encode()
        whole = len(content) // 3 * 4  # what follows the word changes the last, partial group
        found.add(base64.b64encode(content)[-(-offset * 4 // 3) : whole])
    return found


def layers(content: bytes) -> Iterator[bytes]:
    """A file's bytes, and those of what is packed inside."""
    yield content
    if content.startswith(b"\x1f\x8b"):
        yield from layers(gzip.decompress(content))
    elif content.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from layers(archive.read(name))


def holding(words: tuple[str, ...], place: Path) -> set[tuple[str, str]]:
    """File and word, for each word in the name or content of a file below a folder."""
    found = set()
    for path in (path for path in place.rglob("*") if path.is_file() or path.is_symlink()):
        content = list(layers(path.read_bytes())) if path.is_file() else []
        content += [str(path.relative_to(place)).encode(), os.readlink(path).encode() if path.is_symlink() else b""]
        for word in words:
            if any(form in layer for form in forms(word) for layer in content):
                found.add((path.name, word))
    return found
