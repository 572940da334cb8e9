"""A run whose people withdraw: it goes on without them, says so, and no file of it or of the store knows them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from test_withdrawals import GONE, holding, write_canary
from tiny_run import ROOT, one_line
from tiny_ukbiobank import EIDS, write_ukbiobank

from data_modules.records import person_hash
from data_modules.splits import split_of
from lit_medgen.__main__ import main

FRACTIONS = (0.6, 0.2, 0.2)


@pytest.fixture
def experiment(tmp_path: Path) -> tuple[Path, bytes]:
    """A config, and the voxels of the person who will withdraw."""
    root = write_ukbiobank(tmp_path / "bulk", 12)
    sign = write_canary(root)
    config = yaml.safe_load((ROOT / "tests/toys/experiment.yaml").read_text())
    grid = {"size": [10, 12, 9], "field_of_view_mm": [40.0, 48.0, 36.0]}
    arguments = {"root": str(root), "withdrawals": str(root / "withdrawals.txt"), "preprocessing": grid}
    arguments |= {"store_dir": str(tmp_path / "store"), "num_jobs": 1, "fractions": list(FRACTIONS), "seed": 0}
    config["data"] = {"class_path": "data_modules.UKBiobankDataModule", "init_args": arguments}
    config["model"] = {"class_path": "toys.attributes.Portrait"}
    config["trainer"]["default_root_dir"] = str(tmp_path / "runs")
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, sign


def test_a_run_goes_on_without_those_who_withdrew(
    experiment: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config, sign), words = experiment, ("--trust_config", "--ckpt_path=last")
    assert split_of(person_hash(GONE), FRACTIONS, 0) == "train"
    assert main(["fit", f"--config={config}", *words, "--trainer.max_steps=1"]) == 0
    manifest = next((tmp_path / "store").glob("*/manifest.csv"))
    key = next(row["key"] for row in csv.DictReader(manifest.open()) if row["person"] == person_hash(GONE))
    (tmp_path / "bulk" / "withdrawals.txt").write_text(f"{GONE}\n")
    capsys.readouterr()
    assert main(["fit", f"--config={config}", *words, "--trainer.max_steps=2"]) == 0
    printed = capsys.readouterr()
    assert "left out: 1 images of 1 people, of 1 who are listed" in printed.out
    assert "trained when people were there who are left out now (1 train)" in printed.err
    assert not any(eid in printed.out + printed.err for eid in EIDS)
    last = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    out = tmp_path / "samples"
    sample = [
        "sample",
        f"--ckpt_path={last}",
        "--trust_config",
        "--like=train",
        f"--out={out}",
        "--trainer.accelerator=cpu",
    ]
    assert main(sample) == 0
    assert len(list(csv.DictReader((out / "manifest.csv").open()))) > 3
    for mark in (sign, GONE.encode(), person_hash(GONE).encode(), key.encode()):
        assert holding(mark, tmp_path / "store", tmp_path / "runs", out) == []
    capsys.readouterr()
    assert main(["fit", f"--config={config}", *words, "--trainer.max_steps=3", "--data.init_args.seed=1"]) == 2
    assert "trained on another split of people" in one_line(capsys)
    (tmp_path / "bulk" / "withdrawals.txt").unlink()
    assert main(["fit", f"--config={config}", *words, "--trainer.max_steps=3"]) == 2
    assert "data.init_args.withdrawals: " in one_line(capsys)
    assert main(["fit", f"--config={config}", *words, "--data.init_args.withdrawals=null"]) == 2
    assert "data.init_args.withdrawals is missing" in one_line(capsys)
