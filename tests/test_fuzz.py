"""Damaged tables and configs: each is read as what it says, or ends in one line that names it; exit code 0 or 2."""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_medgen.__main__ import main

Mutant = Callable[[bytes, np.random.Generator], bytes]

NASTY = [
    *(b"", b"null", b"[]", b"{}", b"-1", b"1e999", b"nan", b"1_0", b"'", b'"', b": :", b"\t", b"\n", b"&a [*a]"),
    *(
        b"!!python/object/apply:os.system [exit]",
        b"\x00",
        b"\xff\xfe",
        b"${oc.env:HOME}",
        b"../../etc/passwd",
        b"9" * 400,
    ),
]


def with_a_word_replaced(content: bytes, random: np.random.Generator) -> bytes:
    words = content.replace(b"\t", b" \t ").split(b" ")
    words[int(random.integers(len(words)))] = NASTY[int(random.integers(len(NASTY)))]
    return b" ".join(words).replace(b" \t ", b"\t")


@pytest.fixture
def data(tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two heads with a table, and the data section that reads it; all paths in it are short."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    rows = ["participant_id\tage\tsex"]
    for person, path in enumerate(sorted(phantoms.rglob("*.nii"))[:2]):
        shutil.copy(path, tmp_path / "raw" / f"sub-{person}_T1w.nii")
        rows.append(f"sub-{person}\t{50 + person}\t{'FM'[person]}")
    (tmp_path / "raw" / "participants.tsv").write_text("\n".join(rows))
    section = {
        "class_path": "data_modules.FolderDataModule",
        "init_args": {
            "root": "raw",
            "pattern": "*.nii",
            "table": "participants.tsv",
            "attributes": ["age", "sex"],
            "store_dir": "prepared",
            "preprocessing": {"size": [8, 8, 8], "field_of_view_mm": [160.0, 192.0, 160.0], "intensity": "minmax"},
            "fractions": [0.5, 0.0, 0.5],
            "num_jobs": 1,
        },
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(section))
    return tmp_path


def check(data: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]) -> int:
    """Prepares; the exit code. What went wrong is one line with one of the names in it; what went right is finite."""
    start = time.monotonic()
    code = main(["prepare", "--data", "data.yaml"])
    assert time.monotonic() - start < 10
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if code:
        assert code == 2
        [line] = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert any(name in line for name in names), line
        return code
    for manifest in (data / "prepared").glob("*/manifest.csv"):
        with manifest.open(newline="") as file:
            for row in csv.DictReader(file):
                values = [float(row[name] or "nan") for name in row if name.startswith("attribute.")]
                assert not any(math.isinf(value) for value in values)
    return 0


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_damaged_tables(kind: str, data: Path, mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    table = data / "raw" / "participants.tsv"
    content, random, codes = table.read_bytes(), np.random.default_rng(0), []
    for _ in range(50):
        table.write_bytes((mutant if kind == "bytes" else with_a_word_replaced)(content, random))
        # Every row may come to name no image, and then it is the images that have no row.
        codes.append(check(data, capsys, ("participants.tsv", "images were rejected")))
    assert {0, 2} <= set(codes)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_damaged_configs(kind: str, data: Path, mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    config = data / "data.yaml"
    content, random, codes = config.read_bytes(), np.random.default_rng(0), []
    for _ in range(50):
        config.write_bytes((mutant if kind == "bytes" else with_a_word_replaced)(content, random))
        codes.append(check(data, capsys, ("data.init_args", "data.yaml", "error: data.", "error: data: ", "raw: ")))
        shutil.rmtree(data / "prepared", ignore_errors=True)
    assert {0, 2} <= set(codes)
