"""What lies below a root: links are followed, every suffix that can be read is, and nothing is left out unsaid."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_run import one_line

from data_modules.adni import ADNIDataModule
from data_modules.folder import FolderDataModule
from data_modules.listing import is_dicom, suffix_of, walk
from data_modules.recipes.volumes import Preprocessing
from data_modules.sources import Scan
from lit_medgen.__main__ import main
from lit_medgen.errors import InputError, MissingDataError, RunError

WriteHead = Callable[[Path, int], Path]
GRID = ["--data.init_args.preprocessing.size=[10,12,9]", "--data.init_args.preprocessing.field_of_view_mm=[40,48,36]"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An empty root."""
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.fixture
def module(raw: Path, tmp_path: Path, small: Preprocessing) -> Callable[..., FolderDataModule]:
    """The folder's data module."""

    def make(root: Path = raw, **options: Any) -> FolderDataModule:
        store = str(tmp_path / "prepared")
        return FolderDataModule(str(root), store_dir=store, preprocessing=small, num_jobs=1, **options)

    return make


Module = Callable[..., FolderDataModule]


def below(root: Path, scans: list[Scan]) -> list[str]:
    return [scan.path.relative_to(root).as_posix() for scan in scans]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_people_behind_links_are_listed(raw: Path, tmp_path: Path, module: Module) -> None:
    touch(tmp_path / "elsewhere", "s2/anat/head.nii.gz", "s3.nii.gz", "site/s4/head.nii.gz")
    touch(raw, "s1/head.nii.gz")
    (raw / "s2").symlink_to(tmp_path / "elsewhere/s2")
    (raw / "s3.nii.gz").symlink_to(tmp_path / "elsewhere/s3.nii.gz")
    (raw / "site").symlink_to(tmp_path / "elsewhere/site", target_is_directory=True)
    scans, rejected = module().scans()
    assert below(raw, scans) == ["s1/head.nii.gz", "s2/anat/head.nii.gz", "s3.nii.gz", "site/s4/head.nii.gz"]
    assert {scan.person for scan in scans} == {"s1", "s2", "s3", "site"}
    assert rejected == []


def test_a_link_to_a_folder_above_ends_there(raw: Path, module: Module) -> None:
    touch(raw, "s1/head.nii.gz")
    (raw / "s1/again").symlink_to(raw)
    (raw / "s1/same").symlink_to(raw / "s1")
    assert below(raw, module().scans()[0]) == ["s1/head.nii.gz"]


def test_links_without_a_target_are_named(raw: Path, tmp_path: Path, module: Module) -> None:
    touch(raw, "s1.nii.gz")
    for name in ("s2.nii.gz", "s3", "notes.txt"):
        (raw / name).symlink_to(tmp_path / "nowhere")
    (raw / "s4.nii.gz").symlink_to(raw / "s4.nii.gz")
    scans, rejected = module().scans()
    assert len(scans) == 1
    assert [Path(row.source).name for row in rejected] == ["s2.nii.gz", "s3", "s4.nii.gz"]
    assert all("cannot be read" in row.reason for row in rejected)


def test_people_of_adni_behind_links_are_listed(raw: Path, tmp_path: Path, write_head: WriteHead) -> None:
    person = tmp_path / "elsewhere" / "002_S_0295"
    write_head(person / "MPRAGE/2006-11-02_08_16_44.0/I7/head.NII.GZ", 0)
    (raw / "002_S_0295").symlink_to(person)
    (raw / "002_S_0296").symlink_to(tmp_path / "nowhere")
    (raw / "c.csv").write_text("Image Data ID,Subject,Sex,Age\nI7,002_S_0295,F,70\n")
    scans, rejected = ADNIDataModule(str(raw)).scans()
    assert [(scan.person, scan.attributes["age_years"]) for scan in scans] == [("002_S_0295", 70)]
    assert [Path(row.source).name for row in rejected] == ["002_S_0296"]


def test_sessions_of_bids_behind_links_are_listed(raw: Path, tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "ses-1/anat/sub-1_ses-1_T1w.nii.gz")
    (raw / "sub-1").mkdir()
    (raw / "sub-1/ses-1").symlink_to(tmp_path / "elsewhere/ses-1")
    (raw / "participants.tsv").write_text("participant_id\nsub-1\n")
    scans, rejected = ADNIDataModule(str(raw)).scans()
    assert below(raw, scans) == ["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"]
    assert rejected == []


@pytest.mark.parametrize(
    "name", ["a.NII.GZ", "a.NII", "a.mgz", "a.MGH", "a.hdr", "a.Nii.GZ", "a.niI.gz", "a.Nii", "a.mGh", "a.Hdr"]
)
def test_every_suffix_is_read(name: str, raw: Path, module: Module, write_head: WriteHead) -> None:
    image = nib.load(write_head(raw.parent / "head.nii.gz", 0))
    path = raw / name.lower()
    if suffix_of(path) in (".mgz", ".mgh"):
        image = nib.MGHImage(np.asarray(image.dataobj, np.float32), image.affine)
    elif path.suffix == ".hdr":
        image = nib.Nifti1Pair(np.asarray(image.dataobj), image.affine, image.header)
    nib.save(image, path)
    path.rename(raw / name)
    if name == "a.Hdr":
        (raw / "a.img").rename(raw / "a.IMG")
    accepted, rejected = module(pattern="**/*").prepare()
    assert (len(accepted), rejected) == (1, [])
    np.testing.assert_allclose(np.linalg.norm(accepted[0].affine[:3, :3], axis=0), 4)
    if name == "a.hdr":
        (raw / "a.img").write_bytes(bytes(100))  # a change of the voxels is seen
        assert module(pattern="**/*").scans()[0][0].files == [raw / "a.img", raw / "a.hdr"]


@pytest.mark.parametrize("pattern", ["**/*.nii.gz", "*_t1.nii*", "a/**/*", "**/x_t1.NII.GZ", "[ab]/?/*.nii.gz"])
def test_patterns_name_what_globs_name(pattern: str, raw: Path, module: Module) -> None:
    touch(raw, "x_t1.nii.gz", "y_T1.nii.gz", "a/x_t1.nii.gz", "a/b/z.nii.gz", "c/b/z.nii.gz", "a.nii.gz/z.nii")
    found = {path for path in raw.glob(pattern.replace("NII.GZ", "nii.gz")) if path.is_file()}
    assert {scan.path for scan in module(pattern=pattern).scans()[0]} == found


@pytest.mark.parametrize("pattern", ["/data/*.nii.gz", "../*.nii.gz", ""])
def test_a_pattern_beyond_the_root_is_one_line(pattern: str, module: Module) -> None:
    with pytest.raises(InputError, match=r"data\.init_args\.pattern is "):
        module(pattern=pattern).scans()


@pytest.mark.parametrize(
    ("name", "head", "read"),
    [
        ("1.IMA", b"", True),
        ("IM00001", bytes(128) + b"DICM", True),
        ("1.2.840.113619", bytes(128) + b"DICM", True),
        ("IM00001", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", True),  # no preamble
        ("IM00001", b"\x08\x00\x00\x00\x04\x00\x00\x00", True),  # nor value representations
        ("README", b"A study of heads.", False),
        ("DICOMDIR", bytes(128) + b"DICM", False),
        ("DICOMDIR.txt", bytes(128) + b"DICM", False),
    ],
)
def test_dicom_is_known_by_its_beginning(name: str, head: bytes, read: bool, raw: Path) -> None:
    (raw / name).write_bytes(head)
    assert is_dicom(raw / name) == read


def test_what_is_passed_over_is_counted(raw: Path, module: Module, capsys: pytest.CaptureFixture[str]) -> None:
    touch(raw, "s1.nii.gz", "s1.mnc", "s2.mnc", "s3.nrrd", "s4.nii", "notes.txt", ".DS_Store", "IM1")
    (module().address.folder / "volumes").mkdir(parents=True)
    data = module()
    scans, rejected = data.scans()
    data._scans = scans
    (line,) = [line for line in data.taken([], rejected, owner=False) if line.startswith("passed over")]
    assert line.startswith("passed over 5 files: 2 .mnc, ")
    for word in ("1 .nrrd", "1 .nii", "1 without a suffix", "read are .nii, .nii.gz,", ".mgz", ".ima"):
        assert word in line


def test_an_empty_listing_says_what_is_there(raw: Path, module: Module) -> None:
    touch(raw, "p1/1.dcm", "p1/2.dcm", "p1/x.mnc")
    with pytest.raises(MissingDataError, match=r"no images under .*2 \.dcm, 1 \.mnc.*`pattern`.*try '\*\*/\*\.dcm'"):
        module().prepare()


def test_our_own_stores_are_nobodys_images(raw: Path, small: Preprocessing, write_head: WriteHead) -> None:
    write_head(raw / "s1.nii.gz", 0)
    data = FolderDataModule(str(raw), "**/*", store_dir=str(raw), preprocessing=small, num_jobs=1)
    data.prepare(figures=True)
    assert below(raw, data.scans()[0]) == ["s1.nii.gz"]
    assert walk(raw).files == [raw / "s1.nii.gz"]


def test_a_share_that_fails_loses_nobody(raw: Path, module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(RunError, match="the disk or the system fails"):
        module().scans()


def latin(root: Path, name: str) -> Path:
    """A path whose name is not UTF-8."""
    return root / os.fsdecode(name.encode("latin-1"))


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_are_no_utf_8(
    encoding: str, raw: Path, tmp_path: Path, write_head: WriteHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_head(latin(raw, "Müller") / "a.nii.gz", 0)
    latin(raw, "Müller/ü.nii.gz").write_bytes(b"none")
    shutil.copy(write_head(tmp_path / "b.nii.gz", 1), latin(raw, "Jörg.nii.gz"))
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as terminal:
        terminal.setattr(sys, "stdout", shown)
        store = f"--data.init_args.store_dir={tmp_path / 'prepared'}"
        words = ["--data=data_modules.FolderDataModule", f"--data.init_args.root={raw}", store, *GRID]
        assert main(["prepare", *words, "--data.init_args.num_jobs=1"]) == 0
    shown.seek(0)
    text = shown.read()
    assert "accepted 2 of 3 images, 2 people" in text
    assert "M\\udcfcller/\\udcfc.nii.gz: cannot be read as NIfTI" in text
    (listed,) = tmp_path.glob("prepared/*/rejected.csv")
    assert "M\\udcfcller/\\udcfc.nii.gz,cannot be read" in listed.read_text(encoding="utf-8")


def test_a_root_that_is_no_utf_8_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data=data_modules.FolderDataModule", f"--data.init_args.root={latin(tmp_path, 'Müller')}"]
    assert main(["prepare", *words]) == 2
    assert "M\\udcfcller: the bytes are not UTF-8" in one_line(capsys)
