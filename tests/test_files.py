"""Files are whole or not there, whatever fails while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lit_medgen import files
from lit_medgen.errors import NoSpaceError
from lit_medgen.files import (
    ABANDONED_S,
    HashingFile,
    file_hash,
    growing,
    remove_stale,
    replacing,
    temporary_name,
    write_atomically,
)

OLD, NEW = b"old\n" * 1000, bytes(range(256)) * 100


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_content_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (OLD, NEW, b""):
        expected = hashlib.sha256(content).hexdigest()
        assert write_atomically(path, content) == file_hash(path) == expected
        assert path.read_bytes() == content
    write_atomically(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert names(tmp_path) == ["file"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with replacing(path) as file:
        for start in range(0, len(NEW), 1000):
            file.write(NEW[start : start + 1000])
            file.flush()
            assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_the_old_file(
    error: int, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if there:
        path.write_bytes(OLD)

    def full(self: HashingFile, content: bytes) -> int:
        self._file.write(content[: len(content) // 2])
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(HashingFile, "write", full)
    with pytest.raises(NoSpaceError) as raised:
        write_atomically(path, NEW)
    assert str(path) in str(raised.value)
    assert f"{len(NEW):,} bytes" in str(raised.value)
    assert errno.errorcode[error] in str(raised.value)
    assert names(tmp_path) == (["file"] if there else [])
    assert not there or path.read_bytes() == OLD


def test_a_disk_that_is_full_when_the_buffer_is_written(tmp_path: Path) -> None:
    # The device takes the open and the write, and refuses the flush: the error comes late, as on a network disk.
    path = tmp_path / "file"
    path.write_bytes(OLD)
    temporary_name(path).symlink_to("/dev/full")
    with pytest.raises(NoSpaceError, match="ENOSPC"):
        write_atomically(path, b"few bytes")
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_an_error_that_a_caller_in_between_hides(tmp_path: Path) -> None:
    temporary_name(tmp_path / "file").symlink_to("/dev/full")

    def write_badly() -> None:
        with replacing(tmp_path / "file") as file:
            try:
                file.write(NEW)
            except OSError:
                raise RuntimeError("PytorchStreamWriter failed") from None

    with pytest.raises(NoSpaceError, match="ENOSPC"):
        write_badly()


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyboardInterrupt()], ids=["fault", "Ctrl-C"])
def test_any_other_exception_keeps_its_kind(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def fail() -> None:
        with replacing(path) as file:
            file.write(NEW)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_stale_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = os.uname().nodename
    stale, mine = f".a.{gone.pid}@{here}.part", f".b.{os.getpid()}@{here}.part"
    alive, elsewhere = f".c.{os.getppid()}@{here}.part", f".d.{gone.pid}@another-machine.part"
    others = [".hidden", "data.part", ".e.part", "file"]
    for name in (stale, mine, alive, elsewhere, *others):
        (tmp_path / name).write_bytes(b"x")
    remove_stale(tmp_path)
    assert names(tmp_path) == sorted([alive, elsewhere, *others])
    remove_stale(tmp_path, single_writer=True)
    assert names(tmp_path) == sorted(others)


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, replace, fsync = [], Path.replace, os.fsync

    def noted_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    def noted_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    path = tmp_path / "file"
    write_atomically(path, NEW)
    assert events == [f"sync {temporary_name(path).name}", "rename", f"sync {tmp_path.name}"]


@pytest.mark.parametrize(
    ("owner", "age_s", "taken"),
    [
        ("999999999@{here}", 0, True),
        ("1@{here}", 0, False),
        ("1@elsewhere", 0, False),
        ("1@elsewhere", ABANDONED_S + 9, True),
    ],
)
def test_a_file_grows_from_what_a_killed_process_wrote(owner: str, age_s: float, taken: bool, tmp_path: Path) -> None:
    path, part = tmp_path / "file", tmp_path / f".file.{owner.format(here=os.uname().nodename)}.part"
    part.write_bytes(OLD)
    os.utime(part, (time.time() - age_s,) * 2)
    with suppress(KeyboardInterrupt), growing(path) as file:
        file.write(NEW)
        raise KeyboardInterrupt
    begun = temporary_name(path).name
    assert names(tmp_path) == sorted([begun] if taken else [begun, part.name])
    with growing(path) as file:
        file.seek(0)
        assert file.read() == (OLD if taken else b"") + NEW
        file.write(OLD)
    assert path.read_bytes() == (OLD if taken else b"") + NEW + OLD
    assert names(tmp_path) == sorted(["file"] if taken else [part.name, "file"])
