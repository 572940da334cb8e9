"""What every verb that prepares says: how many were taken, of which kinds, what was not, and whom that leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.folder import FolderDataModule
from data_modules.recipes.volumes import Preprocessing
from data_modules.sources import Rejected, Scan
from data_modules.summary import account, kinds
from lit_medgen.images.nifti import read_nifti, write_nifti

WriteHead = Callable[[Path, int], Path]


@pytest.fixture
def module(tmp_path: Path, small: Preprocessing) -> Callable[..., FolderDataModule]:
    """The data module of `tmp_path / "raw"`."""

    def make(**options: Any) -> FolderDataModule:
        store = str(tmp_path / "prepared")
        return FolderDataModule(str(tmp_path / "raw"), store_dir=store, preprocessing=small, num_jobs=1, **options)

    return make


Module = Callable[..., FolderDataModule]


def said(module: FolderDataModule, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of `prepare_data`, without those of the progress bar."""
    module.prepare_data()
    return [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("prepare ")]


def test_what_was_rejected_is_said_each_time(
    tmp_path: Path, module: Module, write_head: WriteHead, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        write_head(tmp_path / f"raw/s{seed}_T1w.nii.gz", seed)
    for number in range(3):
        (tmp_path / f"raw/bad{number}.nii.gz").write_bytes(b"none")
    listed = module().address.folder / "rejected.csv"
    for _ in range(2):  # also where the store is there already
        line, *_ = said(module(), capsys)
        assert line.startswith("accepted 4 of 7 images, 4 people; 3 rejected, the first: cannot be read as NIfTI")
        assert line.endswith(f"; all are listed in {listed}")
    assert listed.is_file()


def test_all_accepted_is_said_as_well(
    tmp_path: Path, module: Module, write_head: WriteHead, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, place in enumerate(("delft/p_0", "delft/p_1", "kyoto/p_0")):
        write_head(tmp_path / f"raw/{place}_T1w.nii.gz", seed)
    lines = said(module(), capsys)
    assert lines == ["accepted 3 of 3 images, 2 people", "images by folder: 2, 1; by name: *_T1w.nii.gz 3"]


def test_only_one_process_says_it(
    tmp_path: Path,
    module: Module,
    write_head: WriteHead,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    write_head(tmp_path / "raw/s1.nii.gz", 0)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert said(module(), capsys) == []


@pytest.mark.parametrize(
    ("fractions", "lines"),
    [
        ((1.0, 0.0, 0.0), ["leave 0 validation people", "leave 0 test people"]),
        ((0.5, 0.5, 0.0), ["leave 0 test people: `evaluate` refuses it"]),
        ((0.5, 0.25, 0.25), []),
    ],
)
def test_a_part_without_people_is_said_before_training(
    fractions: tuple[float, float, float],
    lines: list[str],
    cohort: Path,
    tmp_path: Path,
    small: Preprocessing,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = FolderDataModule(
        str(cohort), preprocessing=small, store_dir=str(tmp_path), num_jobs=1, fractions=fractions, seed=1
    )
    data.prepare_data()
    capsys.readouterr()
    for stage in ("test", "fit"):
        data.setup(stage)
        told = capsys.readouterr().out.splitlines()
        assert len(told) == (len(lines) if stage == "fit" else 0)
    assert all(line in text for line, text in zip(lines, told, strict=True))


def scans(root: Path, *names: str) -> list[Scan]:
    return [Scan(root / name, "somebody") for name in names]


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (("a/s1_T1w.nii.gz", "b/s2_seg.nii.gz"), "1 of 2 names are those of label maps or masks (*_seg.nii.gz 1)"),
        (("s1.nii.gz", "s1_desc-brain_mask.nii.gz"), "(*_brain_mask.nii.gz 1)"),
        (("s1-LESION.nii", "s1.nii"), "(*_LESION.nii 1)"),
        (("imagesTr/s1.nii.gz", "labelsTr/s1.nii.gz"), "1 of 2 names"),
        (("mri/T1.mgz", "mri/aparc+aseg.mgz"), "(*_aparc_aseg.mgz 1)"),
        (("s1_dseg.nii.gz", "s1_T2w.nii.gz", "s1_label-CSF_probseg.nii.gz"), "2 of 3 names"),
        (("s1_lesionMask2.nii.gz", "s1_ct.nii.gz"), "(*_lesionMask2.nii.gz 1)"),
        (("s1_ct.nii.gz", "s1_lung_msk.nii.gz", "s1_parcellation.nii.gz", "groundtruth.nii.gz"), "3 of 4 names"),
        (("s1/brainmask.mgz", "s2/brainmask.mgz"), ""),
        (("acq-mask_T1w.nii.gz", "masked.nii.gz", "segovia/p1.nii.gz", "roisin_T1w.nii.gz"), ""),
    ],
)
def test_masks_among_the_images_are_said(names: tuple[str, ...], masks: str, tmp_path: Path) -> None:
    warnings = [line for line in kinds(scans(tmp_path, *names), tmp_path, owner=False) if "warning" in line]
    assert len(warnings) == bool(masks)
    assert all("masks are among the images" in line and masks in line for line in warnings)


def test_label_maps_are_known_by_their_content(
    tmp_path: Path, module: Module, write_head: WriteHead, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        voxels, affine = read_nifti(write_head(tmp_path / f"raw/p{seed}/a.nii.gz", seed))
        write_nifti(tmp_path / f"raw/p{seed}/b.nii.gz", (voxels // 80).astype(np.uint8), affine)
    (warning,) = [line for line in said(module(), capsys) if line.startswith("warning")]
    assert warning.startswith("warning: 3 of 6 images consist of at most 3 whole numbers, as masks and label maps do")


def test_raw_heads_among_brains_are_said(tmp_path: Path) -> None:
    names = ("s1_T1w_brain.nii.gz", "s1_T1w.nii.gz", "s1_brain_mask.nii.gz")
    lines = kinds(scans(tmp_path, *names), tmp_path, owner=True)
    assert lines[0].startswith("images by folder: ./ 3; by name: *_T1w.nii.gz 1, *_T1w_brain.nii.gz 1, *_brain_mask")
    assert "raw heads seem to be among the brains: 1 of 3" in lines[2]
    assert len(kinds(scans(tmp_path, *names[:1]), tmp_path, owner=True)) == 1


def test_names_of_people_are_for_the_owner_alone(tmp_path: Path) -> None:
    names = [f"Ward/Zuckermann_{number}/Zuckermann-Quast_T1w.nii.gz" for number in range(3)]
    assert "Ward/ 3" in kinds(scans(tmp_path, *names), tmp_path, owner=True)[0]
    assert kinds(scans(tmp_path, *names), tmp_path, owner=False) == ["images by folder: 3; by name: *_T1w.nii.gz 3"]
    folder = tmp_path / "Zuckermann"
    folder.mkdir()
    (folder / "Quast.dcm").touch()
    for row in (
        Rejected(str(folder), "Quast.dcm cannot be read"),
        Rejected(str(folder / "Quast.dcm"), f"[Errno 2] No such file: '{folder / 'Quast.dcm'}'"),
    ):
        line = account([], [row], tmp_path, tmp_path / "store")
        assert "a file" in line
        assert not any(name in line for name in ("Zuckermann", "Quast"))


def test_many_folders_are_summed_up(tmp_path: Path) -> None:
    names = [f"sub-{person:02}/{visit}.nii.gz" for person in range(30) for visit in range(1 + person % 2)]
    assert kinds(scans(tmp_path, *names), tmp_path, owner=True)[0].startswith("images by folder: 30 with 1 to 2 each;")
