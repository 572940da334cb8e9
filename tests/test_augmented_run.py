"""A run on people of lists, with augmented images, that is killed in the middle: it ends as one that was left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from killed import at_boundary, run_in_child
from test_resume import assert_equal, losses
from tiny_run import TinyRun, one_line

from data_modules.records import person_hash
from data_modules.splits import identity
from lit_medgen.__main__ import main

AUGMENTATION = [
    {"class_path": "data_modules.Flip"},
    {"class_path": "data_modules.Rotation", "init_args": {"degrees": 8.0}},
    {"class_path": "data_modules.Shift", "init_args": {"voxels": 1.0}},
    {"class_path": "data_modules.BiasField"},
    {"class_path": "data_modules.Noise"},
]


@pytest.mark.xdist_group("kill")
def test_lists_and_augmentation_survive_a_kill(
    tmp_path: Path, phantoms: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    people = sorted(path.name for path in (phantoms / "ADNI").iterdir())
    lists = {"train": people[:3], "val": people[3:4], "test": people[4:]}
    for part, names in lists.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(names))
    files = json.dumps({part: str(tmp_path / f"{part}.txt") for part in lists})
    words = [f"--data.init_args.split_files={files}", "--trainer.max_steps=4", "--ckpt_path=last"]
    augmented = [*words, f"--data.init_args.augmentation={json.dumps(AUGMENTATION)}"]
    straight, killed = (TinyRun(tmp_path / name, phantoms) for name in "ab")
    assert straight.fit(*augmented) == 0
    line = ["fit", *killed.configs, *killed.options, f"--trainer.default_root_dir={killed.folder}", *augmented]
    killed.folder.mkdir()
    assert run_in_child(line, tmp_path / "log", aim=at_boundary(2, before=False)) == -9, (tmp_path / "log").read_text()
    assert main(line) == 0
    a, b = (torch.load(run.last, weights_only=True) for run in (straight, killed))
    for part in ("state_dict", "callbacks", "optimizer_states"):
        assert_equal(a[part], b[part])
    assert losses(straight.folder) == losses(killed.folder)
    hashes = {part: identity(map(person_hash, names)) for part, names in lists.items()}
    assert a["lit_medgen"]["spec"]["people"] == hashes
    capfd.readouterr()
    assert killed.fit(*words, "--trainer.max_steps=4", "--data.init_args.split_files={test: lost.txt}") == 2
    assert "split_files.test: lost.txt cannot be read" in one_line(capfd)
    swapped = words[0].replace("train.txt", "t.txt").replace("test.txt", "train.txt").replace("t.txt", "test.txt")
    assert killed.fit(*words, swapped) == 2
    assert "trained on another split of people" in one_line(capfd)
