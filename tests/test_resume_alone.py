"""What a checkpoint holds: all that its run needs to go on, and which people it was trained on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_resume import assert_equal
from tiny_run import TinyRun, one_line

from data_modules import ADNIDataModule, Preprocessing
from lit_medgen.__main__ import main
from lit_medgen.batch import DataSpec
from lit_medgen.checkpoints import behind_link, read_checkpoint, write_checkpoint
from lit_medgen.errors import InputError
from lit_medgen.loading import check_classes, config_of, kept_config
from lit_medgen.training.method import refuse_other_people
from lit_medgen.words import known_config, replaced_callbacks

pytestmark = pytest.mark.xdist_group("alone")


@pytest.fixture
def copy(trained: TinyRun, tmp_path: Path) -> TinyRun:
    """The tiny run of two steps in a folder of its own."""
    run = TinyRun(tmp_path / "copy", Path())
    run.options = trained.options
    shutil.copytree(trained.folder, run.folder, symlinks=True)
    return run


# A checkpoint alone.


def test_a_checkpoint_alone_goes_on_as_with_its_config(copy: TinyRun, tmp_path: Path) -> None:
    other = TinyRun(tmp_path / "other", Path())
    shutil.copytree(copy.folder, other.folder, symlinks=True)
    assert copy.fit("--ckpt_path=last", "--trainer.max_steps=3") == 0
    assert main(["fit", f"--ckpt_path={other.last}", "--trainer.max_steps=3"]) == 0
    kept = [read_checkpoint(run.folder / "cdpm" / "checkpoints" / "step_0000003.ckpt") for run in (copy, other)]
    assert_equal(*kept)
    configs = [yaml.safe_load((run.folder / "cdpm" / "config.yaml").read_text()) for run in (copy, other)]
    for config in configs:
        del config["ckpt_path"], config["trainer"]["default_root_dir"]
    assert configs[0] == configs[1]
    trainer = kept[1]["lit_medgen"]["config"]["trainer"]
    assert trainer["gradient_clip_val"] == 1.0
    assert [each["class_path"].rpartition(".")[2] for each in trainer["callbacks"]][:2] == ["EMA", "Checkpoints"]
    assert str(tmp_path) not in str(trainer)


def test_what_is_changed_is_said_and_recorded(copy: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--model.init_args.optimizer.init_args.lr=0.05", "--data.init_args.batch_size=1"]
    assert main(["fit", f"--ckpt_path={copy.last}", "--trainer.max_steps=3", *changes]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed"))
    assert line.endswith("optimizer.lr 0.0001 -> 0.05, data.batch_size 2 -> 1")
    last = read_checkpoint(copy.last)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    assert last["ADNIDataModule"]["position"] == 2 * 2 + 1
    for config in (last["lit_medgen"]["config"], yaml.safe_load((copy.folder / "cdpm" / "config.yaml").read_text())):
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
        assert config["data"]["init_args"]["batch_size"] == 1


def test_other_verbs_take_nothing_of_the_trainer(trained: TinyRun) -> None:
    known = {verb: known_config([verb, f"--ckpt_path={trained.last}"], False) for verb in ("fit", "sample", "evaluate")}
    assert known["fit"] is not None
    assert known["fit"]["seed_everything"] == 0
    assert known["fit"]["trainer"]["max_steps"] == 2
    assert known["fit"]["trainer"]["default_root_dir"] == str(trained.folder)
    for verb in ("sample", "evaluate"):
        assert (known[verb] or {}).keys() == {"name", "model", "data"}


def test_a_checkpoint_elsewhere_begins_a_run_of_its_name(trained: TinyRun, tmp_path: Path) -> None:
    shutil.copy(trained.last, tmp_path / "mine.ckpt")
    config = known_config(["fit", f"--ckpt_path={tmp_path / 'mine.ckpt'}"], False)
    assert config is not None
    assert config["name"] == "cdpm"
    assert "default_root_dir" not in config["trainer"]


def test_folders_of_this_machine_are_not_kept() -> None:
    logger = {"class_path": "lit_medgen.loggers.WandbRun", "init_args": {"save_dir": "/home/me/logs", "tags": ["a.b"]}}
    trainer = {"default_root_dir": "/home/me", "logger": logger, "callbacks": [{"features": "/home/me/net.pt"}]}
    config = {"name": "a", "seed_everything": 1, "model": {"class_path": "lit_medgen.methods.CDPM"}, "data": None}
    kept = kept_config(config | {"trainer": trainer, "ckpt_path": "/home/me/last.ckpt"})
    assert kept["trainer"]["logger"]["init_args"]["save_dir"] == "logs"
    assert kept["trainer"]["callbacks"] == [{"features": "net.pt"}]
    assert "/home" not in str(kept)
    check_classes(kept, Path("x.ckpt"))


def test_foreign_callbacks_are_refused_by_fit_alone(trained: TinyRun, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained.last)
    checkpoint["lit_medgen"]["config"]["trainer"]["callbacks"].append({"class_path": "hostile.Callback"})
    path = tmp_path / "bad.ckpt"
    write_checkpoint(checkpoint, path)
    assert config_of(path)["name"] == "cdpm"
    with pytest.raises(InputError, match=r"bad\.ckpt: names the class 'hostile\.Callback'"):
        config_of(path, resumed=True)


def test_callbacks_that_a_later_list_replaces_are_named(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("trainer: {callbacks: [{class_path: lit_medgen.callbacks.Checkpoints}]}")
    words = ["fit", "--config", "configs/cdpm.yaml", f"--config={overlay}"]
    left: list[Any] = [{"class_path": "lit_medgen.callbacks.Checkpoints"}]
    assert replaced_callbacks(words, left) == ["EMA", "SampleGrid", "Throughput"]
    assert replaced_callbacks(words, ["lit_medgen.callbacks.EMA"]) == ["Checkpoints", "SampleGrid", "Throughput"]
    assert replaced_callbacks(["fit", "--config=configs/with/report.yaml"], ["lit_medgen.callbacks.Report"]) == []
    assert replaced_callbacks(words, None)[0] == "EMA"
    assert replaced_callbacks(words, {"class_path": "lit_medgen.callbacks.EMA"})[0] == "Checkpoints"


def test_what_is_made_of_the_last_checkpoint_is_of_one_file(trained: TinyRun, tmp_path: Path) -> None:
    assert behind_link(str(trained.last)) == str(trained.last.with_name("step_0000002.ckpt"))
    assert behind_link("runs/step.ckpt") == "runs/step.ckpt"
    assert trained.on_checkpoint("evaluate", "--num=2", "--features=none", f"--out={tmp_path}") == 0
    assert json.loads((tmp_path / "report.json").read_text())["source"].endswith("step_0000002.ckpt")


# Whom it was trained on.

SEED = "--data.init_args.seed=4"


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        *[(verb, SEED) for verb in ("fit", "fit alone", "validate", "test", "sample", "evaluate", "evaluate samples")],
        ("evaluate", "--data.init_args.fractions=[0.2,0.2,0.6]"),
    ],
)
def test_another_split_is_refused(
    verb: str, change: str, trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "out", trained.folder / "cdpm" / "config.yaml"
    before = config.read_text()
    if verb == "fit":
        code = trained.fit("--ckpt_path=last", "--trainer.max_steps=3", change)
    elif verb == "fit alone":
        code = main(["fit", f"--ckpt_path={trained.last}", "--trainer.max_steps=3", change])
    elif verb == "evaluate samples":
        assert trained.on_checkpoint("sample", "--num=2", f"--out={tmp_path / 'samples'}") == 0
        code = main(["evaluate", f"--samples={tmp_path / 'samples'}", f"--out={out}", change])
    else:
        more = {"evaluate": [f"--out={out}"], "sample": [f"--out={out}", "--like=test", "--given=[3]"]}
        code = trained.on_checkpoint(verb, *more.get(verb, []), change)
    assert code == 2
    line = one_line(capsys)
    assert all(f"data.init_args.{key}" in line for key in ("seed", "fractions", "root")), line
    source = {"evaluate samples": "--samples", **dict.fromkeys(("fit", "sample", "evaluate"), "step_0000002.ckpt")}
    assert source.get(verb, "last.ckpt") in line
    assert config.read_text() == before  # nothing ran, so nothing is recorded
    assert not list(out.rglob("*.nii.gz"))


@pytest.fixture(scope="module")
def spec_of(phantoms: Path) -> Any:
    """Fractions and seed -> the spec of the tiny runs' data."""

    def spec(fractions: tuple[float, float, float], seed: int) -> DataSpec:
        size = Preprocessing(size=(16, 16, 16), field_of_view_mm=(192, 192, 192))
        store = str(phantoms / "store")
        options: dict[str, Any] = {"preprocessing": size, "store_dir": store, "num_jobs": 1}
        data = ADNIDataModule(str(phantoms), fractions=fractions, seed=seed, **options)
        data.prepare_data()
        data.setup("fit")
        return data.spec

    return spec


def test_the_same_people_written_in_another_way_are_accepted(trained: TinyRun, spec_of: Any) -> None:
    kept = DataSpec.from_plain(read_checkpoint(trained.last)["lit_medgen"]["spec"])
    assert kept.people.keys() == {"train", "val", "test"}
    same = spec_of((0.501, 0.099, 0.4), 3)
    assert same.people == kept.people
    refuse_other_people(kept, same, "x")
    with pytest.raises(InputError, match="x: trained on another split of people"):
        refuse_other_people(kept, spec_of((0.5, 0.1, 0.4), 4), "x")
    assert trained.on_checkpoint("test", "--data.init_args.fractions=[0.501,0.099,0.4]") == 0


def test_a_model_that_saw_no_data_meets_any(spec_of: Any) -> None:
    spec = spec_of((0.5, 0.1, 0.4), 3)
    for trained in (None, DataSpec(1, (16, 16, 16), (12.0, 12.0, 12.0))):
        refuse_other_people(trained, spec, "x")
        refuse_other_people(spec, trained, "x")


def test_nobody_can_be_found_in_a_checkpoint(trained: TinyRun, phantoms: Path) -> None:
    rows = [row for path in (phantoms / "store").glob("*/manifest.csv") for row in csv.DictReader(path.open())]
    people = {row["person"] for row in rows}
    assert len(people) == 6
    text = str(read_checkpoint(trained.last)["lit_medgen"])
    assert not [person for person in people if person in text]
