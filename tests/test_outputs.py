"""What a verb writes never takes the place of what it did not write: the user's files stay, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from test_sweep import GRID
from tiny_run import ROOT, TinyRun, one_line

from data_modules.preparing import prepare
from data_modules.recipes.volumes import Preprocessing
from data_modules.store import StoreAddress
from lit_medgen.__main__ import main
from lit_medgen.checkpoints import saved
from lit_medgen.errors import InputError
from lit_medgen.evaluation.checks import FILES, report_files
from lit_medgen.files import Outputs
from lit_medgen.sample_files import sample_files, sample_names


def users_file(path: Path) -> Path:
    """A file that no verb wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"the user's {path.name}".encode())
    return path


def untouched(path: Path) -> bool:
    """Whether it is still as it was."""
    return path.read_bytes() == f"the user's {path.name}".encode()


SAMPLES = [
    *("manifest.csv", "config.yaml", "spec.json", "sample_00000003.nii.gz", "sample_00000003.png"),
    *("sample_00000003/1-001.dcm", "sample_00000003/other.dcm", "sample_00000003"),
]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_name_of_a_sample_is_looked_at(name: str, tmp_path: Path) -> None:
    outputs = sample_files(tmp_path, sample_names([3], "synthetic"))
    outputs.check()
    path = users_file(tmp_path / name)
    with pytest.raises(InputError, match=r"not written by this verb.*another --out"):
        outputs.claim()
    assert untouched(path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize("name", FILES)
def test_every_name_of_a_report_is_looked_at(name: str, tmp_path: Path) -> None:
    path = users_file(tmp_path / name.replace("*", "age_years"))
    with pytest.raises(InputError, match=rf"{path}: not written by this verb"):
        report_files(tmp_path).check()


def test_a_manifest_of_the_users_deletes_nothing(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = users_file(tmp_path / "scan.nii.gz")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("file,subject\nscan.nii.gz,1\n")
    assert trained.on_checkpoint("sample", "--num=1", f"--out={tmp_path}") == 2
    assert f"{manifest}: not written by this verb" in one_line(capsys)
    assert untouched(scan)
    assert manifest.read_text() == "file,subject\nscan.nii.gz,1\n"


def test_a_run_folder_is_no_place_for_samples(trained: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained.last.parents[1]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert trained.on_checkpoint("sample", "--num=1", f"--out={run}") == 2
    assert "a run folder" in one_line(capsys)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["phantom", "adni", "--num_subjects=1", "--out"], "ADNI/011_S_0001/mine.nii"),
        (["phantom", "adni", "--num_subjects=1", "--out"], "phantom_truth.csv"),
        (["phantom", "lidc", "--num_subjects=1", "--num_slices=1", "--out"], "metadata.csv"),
        (["phantom", "lidc", "--num_subjects=1", "--num_slices=1", "--out"], "LIDC-IDRI/LIDC-IDRI-0001/1.dcm"),
        (["sweep", "sweep.yaml", "--out"], "table.csv"),
        (["sweep", "sweep.yaml", "--resume", "--out"], "run_000/done.json"),
        (["evaluate", "--samples", "samples", "--out"], "map.png"),
    ],
    ids=" ".join,
)
def test_verbs_refuse_before_any_work(
    words: list[str],
    name: str,
    trained: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = users_file(tmp_path / "out" / name)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(GRID))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "config.yaml").write_bytes((trained.last.parents[1] / "config.yaml").read_bytes())
    config = yaml.safe_load((tmp_path / "samples" / "config.yaml").read_text())
    (tmp_path / "samples" / "config.yaml").write_text(yaml.safe_dump({key: config[key] for key in ("model", "data")}))
    monkeypatch.chdir(tmp_path)
    assert main([*words, str(tmp_path / "out")]) == 2
    assert "so nothing was touched" in one_line(capsys)
    assert untouched(path)
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", "grids/step_0000002.png", "checkpoints/last.ckpt", "report/report.json"]
)
def test_a_run_does_not_begin_over_files_of_the_users(
    name: str, tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms)
    path = users_file(tmp_path / "mine" / name)
    assert run.fit("--name=mine", "--config", "configs/with/report.yaml") == 2
    assert f"{path}: not written by" in one_line(capsys)
    assert untouched(path)
    assert [each for each in (tmp_path / "mine").rglob("*.ckpt") if each != path] == []


def test_a_copy_of_a_checkpoint_is_not_counted_among_those_that_go(tmp_path: Path) -> None:
    for name in ("step_0000001", "step_0000002", "step_0000001_best", "step_best"):
        users_file(tmp_path / f"{name}.ckpt")
    assert [path.stem for path in saved(tmp_path)] == ["step_0000002", "step_0000001"]


def test_a_store_is_not_written_into_a_folder_of_the_users(tmp_path: Path) -> None:
    address = StoreAddress(tmp_path, "folder", Preprocessing(), "axial")
    path = users_file(address.folder / "manifest.csv")
    with pytest.raises(InputError, match=r"manifest\.csv: not written by this verb"):
        prepare(address, [])
    assert untouched(path)


# What is its own, a verb replaces as ever.


def test_samples_take_the_place_of_earlier_ones_alone(
    trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained.on_checkpoint("sample", "--seeds=[0,1]", f"--out={tmp_path}") == 0
    notes, other = users_file(tmp_path / "notes.txt"), users_file(tmp_path / "sample_00000007.nii.gz")
    assert trained.on_checkpoint("sample", "--seeds=[2]", f"--out={tmp_path}") == 0
    assert sorted(path.name for path in tmp_path.glob("sample_*")) == ["sample_00000002.nii.gz", other.name]
    assert untouched(notes)
    assert untouched(other)
    sample = users_file(tmp_path / "sample_00000002.nii.gz")  # painted over by the user
    capsys.readouterr()
    assert trained.on_checkpoint("sample", "--seeds=[2]", f"--out={tmp_path}") == 2
    assert f"{sample}: not written by this verb, or changed since" in one_line(capsys)
    assert untouched(sample)


def test_what_a_killed_verb_left_is_its_own(tmp_path: Path) -> None:
    sample_files(tmp_path, sample_names(range(9), "synthetic"), "nifti").claim()
    users_file(tmp_path / "sample_00000005.nii.gz")
    again = sample_files(tmp_path, sample_names([0], "synthetic"), "nifti")
    again.claim()
    again.clear()
    again.end()
    assert [path.name for path in tmp_path.iterdir()] == [".lit_medgen-sample.json"]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "killed"])
def test_every_file_of_a_tree_is_known(ended: bool, tmp_path: Path) -> None:
    def outputs() -> Outputs:
        return Outputs(tmp_path, "phantom", ["tree/**/*"])

    outputs().claim()
    for name in ("tree/a/1.nii", "tree/b/c/2.nii"):
        users_file(tmp_path / name)
    if not ended:
        again = outputs()
        again.claim()  # what a killed verb was writing
        again.clear()
        assert not (tmp_path / "tree").exists()
        return
    outputs().end()
    outputs().check()
    changed = tmp_path / "tree" / "b" / "c" / "2.nii"
    changed.write_bytes(b"painted over")
    with pytest.raises(InputError, match=rf"{changed}: not written by this verb, or changed since"):
        outputs().claim()
    outputs().clear()
    assert [path.name for path in (tmp_path / "tree").rglob("*.nii")] == ["2.nii"]


def test_a_phantom_cohort_takes_the_place_of_the_one_before_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["phantom", "lidc", "--num_slices=1", f"--out={tmp_path}"]
    assert main([*words, "--num_subjects=1", "--seed=1"]) == 0
    first = {path.name for path in (tmp_path / "LIDC-IDRI").iterdir()}
    assert main([*words, "--num_subjects=1", "--seed=2"]) == 0
    second = {path.name for path in (tmp_path / "LIDC-IDRI").iterdir()}
    assert len(second) == 1
    assert not first & second
    slice_ = next((tmp_path / "LIDC-IDRI").rglob("*.dcm"))
    users_file(slice_)
    capsys.readouterr()
    assert main([*words, "--num_subjects=1"]) == 2
    assert f"{slice_}: not written by this verb, or changed since" in one_line(capsys)
    assert untouched(slice_)


@pytest.mark.parametrize("content", ["", "[]", '{"written": 3}', "\x80"])
def test_a_list_that_is_none_proves_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / ".lit_medgen-evaluate.json").write_bytes(content.encode("latin-1"))
    users_file(tmp_path / "report.md")
    with pytest.raises(InputError, match="not a list of lit_medgen"):
        report_files(tmp_path).claim()


def test_a_list_reaches_no_file_outside(tmp_path: Path) -> None:
    out, away = tmp_path / "out", users_file(tmp_path / "away" / "report.md")
    out.mkdir()
    (out / "inner").symlink_to(away.parent)
    outputs = Outputs(out, "evaluate", ["inner/report.md", "../away/report.md"])
    (out / ".lit_medgen-evaluate.json").write_text(
        json.dumps({"written": {}, "writing": ["inner/report.md", "../away/report.md"]})
    )
    outputs.clear()
    assert untouched(away)


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_a_file_is_no_folder(verb: str, trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = users_file(tmp_path / "out")
    assert trained.on_checkpoint(verb, "--num=2", f"--out={path}") == 2
    assert "no folder that can be written" in one_line(capsys)
    assert untouched(path)


def test_folders_are_relative_to_where_the_command_runs(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    try:
        for _ in range(2):
            outputs = sample_files(Path("out"), sample_names([0], "synthetic"), "dicom")
            outputs.claim()
            outputs.clear()
            users_file(Path("out/sample_00000000/1-001.dcm"))
            outputs.end()
        outputs.clear()
        assert not Path("out/sample_00000000").exists()
    finally:
        os.chdir(ROOT)
