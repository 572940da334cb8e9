"""Cross-validation by the sweep that is shipped: names of its runs, and each person in the test part of one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import ROOT, TinyRun, made, raw_data

from data_modules import MedicalDataModule
from data_modules.splits import SPLITS
from lit_medgen.__main__ import main
from lit_medgen.errors import InputError
from lit_medgen.sweep_file import expand, read, run_names

FILE = ROOT / "configs/sweeps/folds.yaml"


def of_three(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"parameters": {"data.init_args.fold": {"values": [f"{k} of 3" for k in range(3)]}}}


def test_runs_are_named_after_their_folds() -> None:
    content = read(FILE)
    runs = expand(content, FILE)
    assert run_names(content, runs, FILE) == [f"cdpm_fold{k}" for k in range(5)]
    assert run_names(content | {"name": "plain"}, runs, FILE) == [f"run_{k:03}" for k in range(5)]


@pytest.mark.parametrize("name", ["fold{folds}", "always{fold:.0}", "a/{fold}", "{fold", "{}"])
def test_names_that_cannot_be_are_one_line(name: str) -> None:
    content = read(FILE) | {"name": name}
    with pytest.raises(InputError, match=r"folds\.yaml: name is "):
        run_names(content, expand(content, FILE), FILE)


def test_each_person_is_tested_in_one_of_three_folds(phantoms: Path) -> None:
    content = of_three(read(FILE))
    configs = [word for word in content["command"] if word.endswith(".yaml")]
    sections = [yaml.safe_load((ROOT / config).read_text()).get("data", {}) for config in [*configs, *TINY]]
    tested: list[str] = []
    for run in expand(content, FILE):
        raw = raw_data(phantoms, (configs[0],)) | {"store_dir": str(phantoms / "store"), **fold_of(run)}
        data: MedicalDataModule = made(MedicalDataModule, [*sections, {"init_args": raw}])
        data.prepare_data()
        data.setup("predict")
        parts = {split: set(data.people(split).values()) for split in SPLITS}
        assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 6
        tested += parts["test"]
    assert len(tested) == len(set(tested)) == 6


TINY = ("tests/tiny/any.yaml", "tests/tiny/volumes.yaml")


def fold_of(run: dict[str, Any]) -> dict[str, str]:
    return {key.removeprefix("data.init_args."): value for key, value in run.items()}


@pytest.mark.slow  # three trainings, each with a report
def test_three_folds_are_swept_and_compared(tmp_path: Path, phantoms: Path) -> None:
    # So few people that not every fold has a Frechet distance; all have a nearest training person.
    # Under this seed every fold tests two people or more.
    content = of_three(read(FILE)) | {"metric": {"name": "metrics.nearest_training.value", "goal": "minimize"}}
    (tmp_path / "folds.yaml").write_text(yaml.safe_dump(content))
    run, out = TinyRun(tmp_path, phantoms), tmp_path / "out"
    # The report once more, since the callbacks of the tiny overlay replace those of the file.
    more = [*run.configs[2:], "--config=configs/with/report.yaml", *run.options, "--data.init_args.seed=13"]
    assert main(["sweep", str(tmp_path / "folds.yaml"), f"--out={out}", "--", *more]) == 0
    names = [f"cdpm_fold{k}" for k in range(3)]
    reports = [json.loads((out / name / "report" / "report.json").read_text()) for name in names]
    assert [report["name"] for report in reports] == names
    assert main(["compare", *(str(out / name) for name in names), f"--out={tmp_path / 'compared'}"]) == 0
    assert all(name in (tmp_path / "compared" / "compare.md").read_text() for name in names)
