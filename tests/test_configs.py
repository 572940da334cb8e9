"""Every shipped config, through the real command line: fit, load, sample, evaluate."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from test_readme import commands
from tiny_run import BASES, CHESTXRAY, LIDC, ROOT, TinyRun, data_module, frozen_parts, group_of, one_line, run_of

import lit_medgen
from data_modules.base import MedicalDataModule
from lit_medgen.__main__ import main
from lit_medgen.batch import Condition
from lit_medgen.methods import FactorPriorCDPM, Generator
from lit_medgen.trainer import Trainer

OVERLAYS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/with/*.yaml"))
RAW = "configs/with/raw_heads.yaml"
TOLD = "configs/with/age_and_sex.yaml"
CAN_BE_TOLD = ("absorbing", "autoregressive", "cdpm", "ddpm", "ddpm_2d", "ihdm", "ldm", "ldm_2d", "vdm_latent")
DATA = sorted(ROOT.glob("configs/data/*.yaml"))


SHARED = [("configs/wgan.yaml", "configs/demo/wgan.yaml", f"configs/ixi/{name}.yaml") for name in ("gan", "gan_2d")]
"""Overlays that several methods share, each tried with one of them."""


def experiments() -> list[tuple[str, ...]]:
    """Every method as shipped, with its demo overlay, and with that of IXI if it has one; the shared overlays."""
    found = list[tuple[str, ...]]()
    for base in BASES:
        overlays = [base.replace("configs/", f"configs/{folder}/") for folder in ("demo", "ixi")]
        chain = [base, *(overlay for overlay in overlays if (ROOT / overlay).is_file())]
        found += [tuple(chain[: i + 1]) for i in range(len(chain))]
    return found + SHARED


EXPERIMENTS = experiments()
EACH_EXPERIMENT = [
    pytest.param(each, marks=pytest.mark.xdist_group(group_of(each[0])), id=each[-1][len("configs/") :])
    for each in EXPERIMENTS
]
EACH_OVERLAY = [parameter for parameter, each in zip(EACH_EXPERIMENT, EXPERIMENTS, strict=True) if len(each) > 1]


def test_every_config_is_tried() -> None:
    """Those of real data, which is not here, by the commands that name them, which tests of the README parse."""
    tried = {name for experiment in EXPERIMENTS for name in experiment}
    real = ("anomalies/", "lidc_nodules/", "mixed_ct/", "chestxray14_64/", "open_ms/")
    named = commands(ROOT / "docs" / "results.md")
    tried |= {word for words in named for word in words if any(folder in word for folder in real)}
    shipped = {str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.yaml") if path.parent.name != "sweeps"}
    assert shipped - tried == {*OVERLAYS, *(str(path.relative_to(ROOT)) for path in DATA)}


@pytest.mark.parametrize("base", BASES)
def test_a_method_has_its_overlays_and_a_row_of_the_readme(base: str) -> None:
    """What a method needs beside its file and its config: nothing else lists the methods."""
    assert (ROOT / base.replace("configs/", "configs/demo/")).is_file()
    assert (ROOT / base.replace("configs/", "tests/tiny/")).is_file()
    assert set(frozen_parts(base).values()) <= set(BASES)
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert len([row for row in rows if f"({base})" in row]) == 1


def test_more_factors_than_people_are_refused(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/cdpm.yaml", "configs/demo/cdpm.yaml"))
    assert run.fit("--model.init_args.num_factors=24") == 2
    assert "num_factors is 24, but there are" in one_line(capsys)


def test_a_resumed_run_takes_the_factor_model_of_its_checkpoint(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/cdpm.yaml", "configs/demo/cdpm.yaml"))
    assert run.fit("--trainer.max_steps=1") == 0
    fitted = torch.load(run.last, weights_only=True)["lit_medgen"]["facts"]["factor_model"]
    monkeypatch.setattr(FactorPriorCDPM, "_fit", lambda *_: pytest.fail("fitted again"))
    assert run.fit("--ckpt_path=last") == 0
    kept = torch.load(run.last, weights_only=True)["lit_medgen"]["facts"]["factor_model"]
    assert torch.equal(fitted["loadings"], kept["loadings"])
    capsys.readouterr()
    assert run.fit("--ckpt_path=last", "--trainer.max_steps=3", "--model.init_args.num_factors=0") == 2
    assert "num_factors is 0, but this run began with 1" in one_line(capsys)


@pytest.mark.parametrize("base", BASES)
def test_base_configs_take_one_device(base: str) -> None:
    """More would multiply the paper's batch without a word."""
    assert yaml.safe_load((ROOT / base).read_text())["trainer"]["devices"] == 1


@pytest.mark.parametrize("strategy", ["ddp", DDPStrategy(timeout=timedelta(minutes=5))], ids=["ddp", "own timeout"])
def test_processes_wait_for_one_that_draws_a_grid(strategy: Any) -> None:
    trainer = Trainer(strategy=strategy, devices=1, accelerator="cpu", logger=False)
    wanted = timedelta(hours=2) if strategy == "ddp" else timedelta(minutes=5)
    assert trainer.strategy._timeout == wanted  # type: ignore[attr-defined]


def least_condition(model: Any) -> Condition:
    """No more than a method must be given to make an image."""
    spec, of = model.needed_spec(), model.source_spec(model.needed_spec())
    parts = {
        "source": torch.zeros(1, len(of.sources) or of.channels, *(of.source_size or of.size)),
        "label_map": torch.zeros(1, 1, *spec.size, dtype=torch.int64),
    }
    return Condition(**{part: parts[part] for part in model.required})  # type: ignore[arg-type]


@pytest.mark.parametrize("configs", EACH_EXPERIMENT)
def test_experiment_end_to_end(
    configs: tuple[str, ...], tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are resumed by tests/test_resume.py; those with overlays are evaluated below."""
    run = run_of(phantoms, configs)
    is_base = len(configs) == 1  # overlays change nothing of `test` and `sample`
    if is_base and frozen_parts(configs[0]):  # which come with the checkpoint, after the data
        assert run.on_checkpoint("test") == 0
    model: Any = lit_medgen.load(run.last)
    if isinstance(model, Generator):
        assert (next(run.folder.glob("*/grids")) / "step_0000002.png").is_file()
        images = model.sample(least_condition(model), [0])
        assert images.shape == (1, model.needed_spec().channels, *model.needed_spec().size)
        assert not images.requires_grad  # or a sample would hold every layer's features in memory
        if is_base:
            assert run.on_checkpoint("sample", "--num=2", f"--out={tmp_path / 'samples'}") == 0
    if is_base:
        is_evaluated(run, model, tmp_path, capsys)


@pytest.mark.slow  # reports of the methods themselves, by the same code, are fast
@pytest.mark.parametrize("configs", EACH_OVERLAY)
def test_an_experiment_with_overlays_is_evaluated(
    configs: tuple[str, ...], tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(phantoms, configs)
    is_evaluated(run, lit_medgen.load(run.last), tmp_path, capsys, "--strips=false")  # overlays change nothing of them


def is_evaluated(run: TinyRun, model: Any, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> None:
    """A report of a run's model; one that makes images is compared with real ones, others with what they say."""
    if not isinstance(model, Generator):
        makes_no_images(run, out / "report")
        assert run.on_checkpoint("evaluate", f"--out={out / 'readers'}", "--quartets=3") == 2
        assert f"--quartets: {type(model).__name__} makes no images" in one_line(capsys)
        assert not (out / "readers").exists()
        return
    num = 2 if len(model.needed_spec().size) == 3 else 4
    assert run.on_checkpoint("evaluate", f"--num={num}", f"--out={out / 'report'}", *more) == 0
    report = json.loads((out / "report" / "report.json").read_text())
    for score in report["metrics"].values():
        assert set(score) == {"value", "ci95", "real_vs_real", "num_samples", "num_real", "features", "best"}
    for score in report.get("pairs", {}).values():
        assert "mean training image" in score["baselines"]
        assert ("source unchanged" in score["baselines"]) == ("configs/controlnet.yaml" in run.configs)
    with Image.open(out / "report" / "samples.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


def makes_no_images(run: TinyRun, out: Path) -> None:
    """A method whose own scores are all that is reported of it."""
    assert run.on_checkpoint("evaluate", f"--out={out}") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["own"]
    assert all(score["num"] for score in report["own"].values())
    assert {path.stem for path in out.glob("plots/*.png")} == set(report["plots"])
    header, *rows = (out / "predictions.csv").read_text().splitlines()
    assert header.startswith("fold,key,person,")
    assert len(rows) >= max(score["num"] for score in report["own"].values())


@pytest.mark.parametrize("base", BASES)
def test_overlays_combine_with_every_method(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All at once, each after those before it: a run may take several, and every one says what it says."""
    heads = data_module((base,)) not in (LIDC, CHESTXRAY)
    can_be_told = Path(base).stem in CAN_BE_TOLD
    takes = {RAW: heads, TOLD: can_be_told}
    overlays = [overlay for overlay in OVERLAYS if takes.get(overlay, True)]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *(word for name in (base, *overlays) for word in ("--config", name)), "--print_config"])
    assert exit_.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    sections = [yaml.safe_load((ROOT / overlay).read_text()) for overlay in overlays]
    wanted = {key: value for section in sections for key, value in section.get("trainer", {}).items()}
    for key, value in wanted.items():
        if not isinstance(value, dict) and not key.endswith("+"):
            assert printed["trainer"][key] == value
    added = [item for section in sections for item in section.get("trainer", {}).get("callbacks+", [])]
    own = yaml.safe_load((ROOT / base).read_text())["trainer"]["callbacks"]
    classes = [[item["class_path"] for item in items] for items in (own, added, printed["trainer"]["callbacks"])]
    assert classes[0] + classes[1] == classes[2]
    if can_be_told:
        network = printed["model"]["init_args"]["network"]
        covariates = network.get("init_args", network)["covariates"]
        assert (covariates["numbers"], covariates["categories"]) == (["age_years"], {"sex": 2})
    if heads:
        wanted, printed = (
            of["data"]["init_args"]["preprocessing"]["raw_head"] for of in (sections[overlays.index(RAW)], printed)
        )
        assert printed == wanted


def test_a_network_that_is_told_nothing_refuses_age_and_sex(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "configs/wgan.yaml", "--config", TOLD]) == 2
    assert "is told nothing of an image" in one_line(capsys)


@pytest.mark.parametrize("path", [ROOT / name for name in BASES], ids=lambda path: path.name)
def test_header_says_what_it_is(path: Path) -> None:
    header = path.read_text().split("\nname:")[0]
    for word in ("Paper:", "Data:", "Run:", "Hardware:", "Expect:"):
        assert word in header


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_data_section_describes_a_data_module(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MedicalDataModule, "data", required=True)
    assert parser.instantiate(parser.parse_object({"data": yaml.safe_load(path.read_text())})).data.root


@pytest.mark.parametrize("name", ["adni", "folder"])  # lidc: tests/data_modules/test_lidc.py
def test_data_section_prepares(name: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = yaml.safe_load((ROOT / f"configs/data/{name}.yaml").read_text())
    section["init_args"] |= {
        "root": str(phantoms),
        "store_dir": str(tmp_path),
        "num_jobs": 1,
        "preprocessing": {"size": [8, 8, 8]},
    }
    if name == "folder":
        section["init_args"] |= {"pattern": "**/*.nii", "table": None, "attributes": []}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(section))
    assert main(["prepare", "--data", str(file)]) == 0
    what = "foreground" if name == "folder" else "brain"
    assert f" people; {what} voxels cut by the field of view: " in capsys.readouterr().out
