"""The demo at its full size: it learns, and few steps of a good sampler stand for many of the paper's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from joblib import Parallel, delayed
from jsonargparse import ArgumentParser
from test_readme import commands
from tiny_run import ROOT

from data_modules.base import MedicalDataModule
from lit_medgen.batch import Condition
from lit_medgen.checkpoints import build_method, config_of, load, read_checkpoint
from lit_medgen.diffusion import Ancestral, DPMSolverPP2M, Sampler
from lit_medgen.evaluation import evaluate
from lit_medgen.methods import CDPM

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]
SEEDS = range(32)
NUM_CORES = len(os.sched_getaffinity(0))

HELD = {"sharpness", "mode_spread", "nearest_training", "ventricle_spread", "seam_ratio"}
"""Scores for which few steps were measured to stand for many (docs/results.md)."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's demo commands were run, as printed."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "configs").symlink_to(ROOT / "configs")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(NUM_CORES)}
    for words in commands(ROOT / "README.md"):
        if "demo" in " ".join(words) and words[0] != "sweep":  # tests/test_sweep.py runs a smaller one
            subprocess.run([sys.executable, "-m", "lit_medgen", *words], cwd=folder, env=environment, check=True)
    return folder / "demo"


def data_of(demo: Path, checkpoint: Path) -> MedicalDataModule:
    section = config_of(checkpoint)["data"]
    section["init_args"] |= {"root": str(demo / "phantoms"), "store_dir": str(demo / "prepared")}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MedicalDataModule, "data")
    data: MedicalDataModule = parser.instantiate(parser.parse_object({"data": section})).data
    data.setup("test")
    return data


def sample(model: CDPM, seeds: range) -> torch.Tensor:
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16):
        return model.sample(Condition(), seeds).float()


def scores(model: CDPM, data: MedicalDataModule, out: Path, sampler: Sampler) -> dict[str, float]:
    """Name -> value for the samples of SEEDS."""
    model.spec = data.spec
    model.sampler = sampler
    parts = [delayed(sample)(model, SEEDS[i : i + 4]) for i in range(0, len(SEEDS), 4)]
    samples = torch.cat(Parallel(n_jobs=NUM_CORES)(parts))
    report: dict[str, Any] = evaluate(samples, data, out, seams=model.seams())  # type: ignore[arg-type]
    return {name: row["value"] for name, row in report["metrics"].items()}


@pytest.mark.parametrize("name", ["vqgan", "ihdm", "absorbing"])
def test_demo_of_each_stage_beats_its_untrained_copy(demo: Path, tmp_path: Path, name: str) -> None:
    """By the Fréchet distance of samples (of reconstructions, for the first stage)."""
    checkpoint = demo / f"{name}_demo" / "checkpoints" / "last.ckpt"
    report = json.loads((demo / f"{name}_report" / "report.json").read_text())
    data = data_of(demo, checkpoint)
    trained, content = load(checkpoint), read_checkpoint(checkpoint)
    torch.manual_seed(0)
    fresh: Any = build_method(config_of(checkpoint)["model"]).eval()
    fresh.on_load_checkpoint(content)  # the first stage's network, the maps to start from, the spec
    if name != "vqgan":
        fresh.first_stage.load_state_dict(trained.first_stage.state_dict())
    fresh.originals = data.volumes("test", one_per_person=True)
    num = len(fresh.originals)  # as many as the report is of
    samples = torch.cat([fresh.sample(Condition(), range(i, min(i + 11, num))).float() for i in range(0, num, 11)])
    untrained = evaluate(samples, data, tmp_path)["metrics"]["frechet_image"]["value"]  # type: ignore[arg-type]
    assert report["metrics"]["frechet_image"]["value"] < untrained / 2


def test_demo_leaves_what_it_prints(demo: Path) -> None:
    report = json.loads((demo / "report" / "report.json").read_text())
    assert report["metrics"]["ms_ssim"]["num_samples"] == report["metrics"]["ms_ssim"]["num_real"]
    assert (demo / "report" / "samples.png").is_file()
    assert len(list((demo / "samples").glob("*.nii.gz"))) == 4
    assert yaml.safe_load((demo / "samples" / "config.yaml").read_text())["name"] == "cdpm_demo"


def test_demo_beats_its_untrained_copy_and_twenty_steps_do(demo: Path, tmp_path: Path) -> None:
    checkpoints = demo / "cdpm_demo" / "checkpoints"
    last, early = checkpoints / "last.ckpt", checkpoints / "step_0000020.ckpt"
    data = data_of(demo, last)
    few = DPMSolverPP2M(20)
    final = scores(load(last), data, tmp_path / "final", few)  # type: ignore[arg-type]
    tenth = scores(load(early), data, tmp_path / "tenth", few)  # type: ignore[arg-type]
    torch.manual_seed(0)
    fresh = build_method(config_of(last)["model"]).eval()
    fresh.on_load_checkpoint(read_checkpoint(last))  # spec and atlas, but no weights
    untrained = scores(fresh, data, tmp_path / "untrained", few)  # type: ignore[arg-type]
    assert final["ms_ssim_gap"] < untrained["ms_ssim_gap"]
    # Not the MMDs: the atlas of the untrained copy has the mean brain, which is all that they ask for.
    assert abs(final["sharpness"] - 1) < abs(untrained["sharpness"] - 1)
    many = scores(load(last), data, tmp_path / "many", Ancestral(250))  # type: ignore[arg-type]
    print({name: (final[name], many[name], tenth[name]) for name in final})
    for name in HELD:
        assert abs(final[name] - many[name]) < abs(final[name] - tenth[name]) / 4, name
