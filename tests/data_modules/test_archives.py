"""Zip archives made to harm: each is one line, nothing is written outside, memory and time are bounded."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_ukbiobank import EIDS, T1, nifti, write_zip

from data_modules import archives
from data_modules.ukbiobank import BulkMember
from lit_medgen.images import nifti as nifti_files

LARGEST = 64 * 1024**2
"""Bytes that Python may hold while it reads one."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return nifti(tmp_path_factory.mktemp("image"), 0)


def named(*names: str) -> Callable[[Path, bytes], None]:
    """An archive with members of these names beside the right one."""

    def write(path: Path, image: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in (T1, *names):
                info = zipfile.ZipInfo("placeholder")
                info.filename = info.orig_filename = name  # as no writer would let it pass
                archive.writestr(info, image)

    return write


def link(path: Path, image: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(T1)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")


def device(path: Path, image: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(T1, image)
        info = zipfile.ZipInfo("T1/zero")
        info.create_system, info.external_attr = 3, (stat.S_IFCHR | 0o666) << 16
        archive.writestr(info, "")


def twice(path: Path, image: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(T1, image)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(T1, image[::-1])


def patched(field: str, value: int) -> Callable[[Path, bytes], None]:
    """An archive with another number in a field of the table of contents."""
    place, kind = {"flags": (8, "H"), "method": (10, "H"), "crc": (16, "I"), "packed": (20, "I"), "size": (24, "I")}[
        field
    ]

    def write(path: Path, image: bytes) -> None:
        write_zip(path, {T1: image})
        content = bytearray(path.read_bytes())
        struct.pack_into(f"<{kind}", content, content.index(b"PK\x01\x02") + place, value)
        path.write_bytes(content)

    return write


def bomb(path: Path, image: bytes) -> None:
    """A small member that is unpacked to 80 MiB of zeros, and says so."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive, archive.open(T1, "w") as file:
        for _ in range(5):
            file.write(bytes(2**24))


def gzip_bomb(path: Path, image: bytes) -> None:
    """An image that goes on with 160 MiB of zeros after its last voxel."""
    zeros = zlib.compressobj(9, wbits=31)
    rest = b"".join(zeros.compress(bytes(2**24)) for _ in range(10)) + zeros.flush()
    write_zip(path, {T1: image + rest})


def header_bomb(path: Path, image: bytes) -> None:
    """A header that claims 2 GiB of voxels, of which 80 MiB are there as packed zeros."""
    header = bytearray(gzip.decompress(image)[:352])
    struct.pack_into("<8h", header, 40, 3, 812, 812, 812, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 16, 32)
    zeros = zlib.compressobj(9, wbits=31)
    rest = b"".join(zeros.compress(bytes(2**24)) for _ in range(5)) + zeros.flush()
    write_zip(path, {T1: gzip.compress(bytes(header)) + rest})


def extension_bomb(path: Path, image: bytes) -> None:
    """A header extension of less than no bytes, which nibabel takes for all that follows."""
    content = bytearray(gzip.decompress(image))
    struct.pack_into("<f", content, 108, 384.0)
    content[348] = 1
    content[352:352] = struct.pack("<ii", -32, 6) + bytes(24)
    write_zip(path, {T1: gzip.compress(bytes(content))})


def offset_bomb(path: Path, image: bytes) -> None:
    content = bytearray(gzip.decompress(image))
    struct.pack_into("<f", content, 108, 1e12)
    write_zip(path, {T1: gzip.compress(bytes(content))})


def many(path: Path, image: bytes) -> None:
    """A hundred thousand members, written by hand as that is quicker."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0)
    content = b"".join(entry + b"T1/%06d" % k for k in range(100_000))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(content), 0, 0)
    path.write_bytes(content + end)


def raw(content: bytes) -> Callable[[Path, bytes], None]:
    return lambda path, image: path.write_bytes(content) and None


def cut(path: Path, image: bytes) -> None:
    write_zip(path, {T1: image})
    path.write_bytes(path.read_bytes()[:-40])


def nested(path: Path, image: bytes) -> None:
    """An archive in an archive, by the name of the image."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(T1, image)
    write_zip(path, {T1: inner.getvalue()})


OUTSIDE, CONTROL = "name that leads out of the archive", "name with control characters"
ATTACKS: dict[str, tuple[Callable[[Path, bytes], None], str]] = {
    "zip slip": (named("../../slipped"), OUTSIDE),
    "zip slip inside": (named("T1/../../../slipped"), OUTSIDE),
    "zip slip of Windows": (named("..\\..\\slipped"), OUTSIDE),
    "absolute": (named("/tmp/slipped"), OUTSIDE),
    "absolute of Windows": (named("\\\\share\\slipped"), OUTSIDE),
    "drive": (named("C:\\slipped"), OUTSIDE),
    "control characters": (named("T1/\x1b[2J\nslipped"), CONTROL),
    "end of text": (named("T1/T1.nii.gz\x00.txt"), CONTROL),
    "right to left": (named("T1/\u202egz.iin"), CONTROL),
    "link": (link, "is a link or a device"),
    "device": (device, "is a link or a device"),
    "twice": (twice, "has the name of another"),
    "locked": (patched("flags", 1), "locked by a password"),
    "another method": (patched("method", 14), "compressed by method 14"),
    "wrong checksum": (patched("crc", 7), "cannot be unpacked (Bad CRC-32"),
    "says less than it has": (patched("size", 1000), "cannot be unpacked (Bad CRC-32"),
    "says more than it has": (patched("size", 2**20), "but the archive says 1,048,576; it is damaged"),
    "says four gigabytes": (patched("size", 2**32 - 2), "expected an image"),
    "bomb": (bomb, "bytes unpack to 83,886,080; expected an image"),
    "gzip bomb": (gzip_bomb, "goes on long after the last voxel"),
    "header bomb": (header_bomb, "unpacked to more than 200 times"),
    "extension bomb": (extension_bomb, "an extension of the header claims -32 bytes"),
    "offset bomb": (offset_bomb, "header claims that voxels begin at byte 1e"),
    "100,000 members": (many, "table of contents has 5,500,000 bytes"),
    "nothing": (raw(b""), "cannot be unpacked"),
    "no archive": (raw(b"<html>404</html>" * 99), "cannot be unpacked"),
    "cut off": (cut, "cannot be unpacked"),
    "nested": (nested, "is not compressed though its name ends in .gz"),
    "folder": (named("T1/"), ""),
    "empty member": (lambda path, image: write_zip(path, {T1: b""}) and None, "cannot be read as NIfTI"),
    "folder as member": (lambda path, image: write_zip(path, {f"{T1}/": b""}) and None, f"no '{T1}' in this archive"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_archive_made_to_harm_is_one_line(
    name: str, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reader in (archives, nifti_files):
        monkeypatch.setattr(reader, "UNPACKED_FREELY", 32 * 1024**2)  # so that bombs are made quickly
    monkeypatch.setattr(nifti_files, "MAX_OFFSET", 16 * 1024**2)
    write, reason = ATTACKS[name]
    path = tmp_path / "root" / f"{EIDS[0]}_20252_2_0.zip"
    path.parent.mkdir()
    write(path, image)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    tracemalloc.start()
    start = time.monotonic()
    try:
        voxels, _ = BulkMember(path, T1).read()
        fault = ""
        assert voxels.shape == (20, 24, 18)
    except ValueError as error:
        fault = " ".join(str(error).split())
    seconds, (_, most) = time.monotonic() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason in fault, fault
    assert bool(reason) == bool(fault)
    assert "slipped" not in fault
    assert len(fault) < 400
    assert seconds < 10
    assert most < LARGEST
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
