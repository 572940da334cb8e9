"""Sources: a file, a series or a member of a zip archive is read, hashed and named in one way."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_modules import archives
from data_modules.preparing import prepare
from data_modules.recipes.volumes import Preprocessing
from data_modules.sources import Scan, ZipMember, source_of
from data_modules.store import Store, StoreAddress
from lit_medgen.errors import InputError

MEMBER = "T1/T1.nii.gz"


@pytest.fixture
def head(tmp_path: Path, write_head: Callable[[Path, int], Path]) -> Path:
    return write_head(tmp_path / "head.nii.gz", 0)


@pytest.fixture
def archive(tmp_path: Path, head: Path) -> Path:
    """As UK Biobank ships a visit."""
    path = tmp_path / "1000223_20252_2_0.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(head, MEMBER)
        file.writestr("T1/T1.json", "{}")
    return path


@pytest.fixture
def address(tmp_path: Path, small: Preprocessing) -> StoreAddress:
    return StoreAddress(tmp_path / "prepared", "heads", small, "axial")


def test_a_member_of_an_archive_is_the_file_it_holds(archive: Path, head: Path, address: StoreAddress) -> None:
    (inside,), _ = prepare(address, [Scan(ZipMember(archive, MEMBER), "1000223", "2")], num_jobs=1)
    before = Store(address).read(inside)
    (alone,), _ = prepare(address, [Scan(head, "1000223", "2")], num_jobs=1)
    assert alone.key == inside.key  # the same bytes, so the same image
    np.testing.assert_array_equal(Store(address).read(alone), before)
    assert str(source_of(ZipMember(archive, MEMBER))) == f"{archive}: {MEMBER}"
    assert Scan(ZipMember(archive, MEMBER), "a").files == [archive]


def test_an_archive_is_read_once_until_it_is_written_again(
    archive: Path, address: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Scan(ZipMember(archive, MEMBER), "a")
    prepare(address, [scan], num_jobs=1)

    def forbidden(*_: object) -> bytes:
        pytest.fail("the archive was read again")

    with monkeypatch.context() as context:
        context.setattr(archives, "chunks", forbidden)
        prepare(address, [scan], num_jobs=1)
    stamp = scan.stamp()
    assert stamp != Scan(ZipMember(archive, "T1/T1.json"), "a").stamp()
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("more", "x")
    assert scan.stamp() != stamp


def test_faults_of_an_archive_are_rejections_that_name_it(
    archive: Path, address: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = archive.with_name("damaged.zip")
    content = bytearray(archive.read_bytes())
    content[60] ^= 1
    damaged.write_bytes(content)
    cut = archive.with_name("cut.zip")
    cut.write_bytes(archive.read_bytes()[:200])
    scans = [Scan(ZipMember(path, MEMBER), path.name) for path in (damaged, cut, archive.with_name("absent.zip"))]
    scans += [Scan(ZipMember(archive, "T1/T2.nii.gz"), "a"), Scan(ZipMember(archive, "T1/T1.json"), "b")]
    accepted, rejected = prepare(address, scans, num_jobs=1)
    assert accepted == []
    reasons = {row.source: row.reason for row in rejected}
    assert "cannot be unpacked" in reasons[f"{damaged}: {MEMBER}"]
    assert "cannot be unpacked" in reasons[f"{cut}: {MEMBER}"]
    assert "No such file" in reasons[f"{archive.with_name('absent.zip')}: {MEMBER}"]
    assert reasons[f"{archive}: T1/T2.nii.gz"] == "no 'T1/T2.nii.gz' in this archive"
    assert len(rejected) == 5
    assert not any("\n" in row.reason for row in rejected)
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
    (row,) = prepare(address, [Scan(ZipMember(archive, MEMBER), "c")], num_jobs=1, verify=True)[1]
    assert "expected at most 100" in row.reason


def test_another_label_map_is_another_image(head: Path, tmp_path: Path, address: StoreAddress) -> None:
    keys = set()
    for content in (b"1", b"2"):
        (tmp_path / "labels").write_bytes(content)
        scan = Scan(head, "a", beside={"label_map": tmp_path / "labels"})
        (record,), _ = prepare(address, [scan], num_jobs=1)  # which this recipe does not read
        keys.add(record.key)
    assert len(keys) == 2


def test_the_image_itself_has_one_source(head: Path) -> None:
    with pytest.raises(InputError, match="`beside` names an 'image'"):
        Scan(head, "a", beside={"image": head})
