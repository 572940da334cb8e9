"""Bad files, bad tables and missing data through the command line: listed or one line, never a traceback."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import lightning  # noqa: F401 (its log keeps the stderr it is imported under, which must not be one test's own)
import nibabel as nib
import numpy as np
import pytest
import yaml
from tiny_run import one_line

from lit_medgen import trainer
from lit_medgen.__main__ import main
from lit_medgen.images.nifti import write_nifti

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
REASONS = {
    "truncated": "cut off or damaged",
    "damaged": "cut off or damaged",
    "no_nifti": "cut off or damaged",
    "nan": "1 of 4096 voxels are NaN or infinite",
    "constant": "constant volume",
    "four_d": "4D image",
    "no_codes": "qform_code and sform_code are both 0",
}


def voxels(seed: int) -> np.ndarray:
    """16 16 16: an image, another one for every seed."""
    return np.random.default_rng(seed).integers(50, 200, (16, 16, 16)).astype(np.float32)


def write_good(root: Path) -> list[Path]:
    """Two good heads."""
    paths = [root / f"good_{k}.nii.gz" for k in range(2)]
    for k, path in enumerate(paths):
        write_nifti(path, voxels(k), AFFINE)
    return paths


def write_bad(root: Path) -> dict[str, Path]:
    """One file of each fault in `REASONS`."""
    paths = {name: root / f"{name}.nii.gz" for name in REASONS}
    for seed, name in enumerate(("truncated", "damaged"), 10):
        write_nifti(paths[name], voxels(seed), AFFINE)
    whole = paths["truncated"].read_bytes()
    paths["truncated"].write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(paths["damaged"].read_bytes())
    damaged[-8] ^= 1  # the checksum
    paths["damaged"].write_bytes(damaged)
    paths["no_nifti"].write_bytes(gzip.compress(b"<html>404</html>" * 100))
    hole = voxels(12)
    hole[3, 4, 5] = np.nan
    write_nifti(paths["nan"], hole, AFFINE)
    write_nifti(paths["constant"], np.full((16, 16, 16), 7, np.float32), AFFINE)
    write_nifti(paths["four_d"], np.stack([voxels(13)] * 2, axis=-1), AFFINE)
    nib.save(nib.Nifti1Image(voxels(14), None), paths["no_codes"])
    return paths


class Cohort:
    """A folder of images and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.kind = folder, folder / "raw", "FolderDataModule"
        self.root.mkdir()
        self.options: dict[str, Any] = {}

    def run(self, verb: str) -> int:
        """`prepare` the folder, or `fit` the least cDPM to it."""
        section = {
            "class_path": f"data_modules.{self.kind}",
            "init_args": {
                "root": str(self.root),
                "store_dir": str(self.folder / "store"),
                "preprocessing": {"size": [16, 16, 16], "field_of_view_mm": [32, 32, 32]},
                "fractions": [1.0, 0.0, 0.0],
                "num_jobs": 1,
                **self.options,
            },
        }
        file = self.folder / "data.yaml"
        if verb == "prepare":
            file.write_text(yaml.safe_dump(section))
            return main(["prepare", "--data", str(file)])
        file.write_text(yaml.safe_dump({"data": section}))
        configs = ["configs/cdpm.yaml", "tests/tiny/any.yaml", "tests/tiny/cdpm.yaml", str(file)]
        words = [word for config in configs for word in ("--config", config)]
        return main(["fit", *words, f"--trainer.default_root_dir={self.folder / 'runs'}"])

    def listed(self, name: str) -> list[dict[str, str]]:
        """The rows of the store's manifest.csv or rejected.csv."""
        with next(self.folder.glob(f"store/*/{name}.csv")).open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """An empty folder of images."""
    return Cohort(tmp_path)


def test_prepare_lists_every_bad_file(cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_good(cohort.root), write_bad(cohort.root)
    assert cohort.run("prepare") == 0
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert not printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("rejected ")]
    rejected = {Path(row["source"]): row["reason"] for row in cohort.listed("rejected")}
    assert rejected.keys() == set(bad.values())
    for name, path in bad.items():
        assert REASONS[name] in rejected[path]
        assert lines.count(f"rejected {path}: {rejected[path]}") == 1
    assert len(lines) == len(bad)
    assert len(cohort.listed("manifest")) == len(good)
    assert f"accepted {len(good)} of {len(good) + len(bad)} images, {len(good)} people; " in printed.out
    assert "; foreground voxels cut by the field of view: mean 0.00%, most 0.00%; store: " in printed.out


def test_fit_trains_on_the_good_files(
    cohort: Cohort, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_good(cohort.root)
    write_bad(cohort.root)
    monkeypatch.setattr(trainer, "free_bytes", lambda _: 2**20)
    assert cohort.run("fit") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert any(line.startswith(f"accepted 2 of {2 + len(REASONS)} images, 2 people; ") for line in lines)
    assert any("leave 0 test people" in line for line in lines)
    assert sum(line.startswith("warning: a training step needs about 0.") for line in lines) == 1
    assert "Traceback" not in printed.out + printed.err
    assert len(cohort.listed("manifest")) == 2
    assert len(cohort.listed("rejected")) == len(REASONS)
    assert list(cohort.folder.glob("runs/*/checkpoints/last.ckpt"))


@pytest.mark.parametrize("verb", ["prepare", "fit"])
def test_nothing_but_bad_files(verb: str, cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_bad(cohort.root)
    assert cohort.run(verb) == 2
    line = one_line(capsys)
    assert f"all {len(bad)} images were rejected" in line
    assert str(min(bad.values())) in line
    assert "rejected.csv" in line
    assert len(cohort.listed("rejected")) == len(bad)


def test_a_mended_file_is_taken_the_next_time(cohort: Cohort) -> None:
    (_, second), bad = write_good(cohort.root), write_bad(cohort.root)
    assert cohort.run("prepare") == 0
    write_nifti(bad["truncated"], voxels(10), AFFINE)
    second.unlink()
    assert cohort.run("prepare") == 0
    assert len(cohort.listed("manifest")) == 2
    assert str(bad["truncated"]) not in {row["source"] for row in cohort.listed("rejected")}


@pytest.mark.parametrize("verb", ["prepare", "fit"])
@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        ("id,sex\ngood_0,F\ngood_1,M\n", {"attributes": ["age"]}, ["people.csv", "'age'"]),
        ("name,age\ngood_0,60\n", {}, ["people.csv", "'id'"]),
        ("", {}, ["people.csv", "not a table"]),
        (None, {}, ["people.csv", "no such table"]),
    ],
    ids=["no age", "no id", "empty", "missing"],
)
def test_bad_tables(
    verb: str,
    table: str | None,
    options: dict[str, Any],
    words: list[str],
    cohort: Cohort,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_good(cohort.root)
    if table is not None:
        (cohort.root / "people.csv").write_text(table)
    cohort.options = {"table": "people.csv", "key": "id", **options}
    assert cohort.run(verb) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line


def test_people_without_image_and_images_without_row_are_listed(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    _, second = write_good(cohort.root)
    (cohort.root / "people.csv").write_text("id,age\ngood_0,60\nabsent,70\n")
    cohort.options = {"table": "people.csv", "key": "id", "attributes": ["age"]}
    assert cohort.run("prepare") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rejected ")]
    assert lines == [
        f"rejected {second}: no row of people.csv has a id that names this file",
        "rejected people.csv: absent: a row without an image",
    ]


@pytest.mark.parametrize("verb", ["prepare", "fit"])
@pytest.mark.parametrize("kind", ["FolderDataModule", "ADNIDataModule"])
@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_no_data(verb: str, kind: str, there: bool, cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    cohort.kind = kind
    if not there:
        cohort.root.rmdir()
    assert cohort.run(verb) == 2
    line = one_line(capsys)
    assert "data.init_args.root" in line
    assert str(cohort.root) in line
    assert ("ida.loni.usc.edu" if kind == "ADNIDataModule" else "pattern") in line


@pytest.mark.parametrize("verb", ["prepare", "fit"])
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"preprocessing": {"size": [16, 16]}}, "size"),
        ({"axis": "diagonal"}, "axis"),
        ({"patern": "*.nii"}, "patern"),
        ({"batch_size": 0}, "batch_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options(
    verb: str, option: dict[str, Any], named: str, cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    write_good(cohort.root)
    cohort.options = option
    assert cohort.run(verb) == 2
    assert named in one_line(capsys)
