"""LSDM through the command line: trained without a classifier, guided by one in `sample` and `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import TinyRun, first_stage, group_of, one_line

import lit_medgen
from lit_medgen.images.png import read_png

pytestmark = pytest.mark.xdist_group(group_of("configs/lsdm.yaml"))

CLASSIFIER = "--model.init_args.classifier"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> TinyRun:
    """A tiny LSDM after two steps, without a classifier; its label map changes what it makes."""
    found = TinyRun(tmp_path_factory.mktemp("lsdm"), phantoms, ("configs/lsdm.yaml",))
    assert found.fit() == 0
    return found


@pytest.fixture(scope="module")
def classifier(phantoms: Path) -> Path:
    """A tiny crop classifier of the same first stage."""
    return first_stage(phantoms, "configs/crop_classifier.yaml")


def images(folder: Path) -> list[torch.Tensor]:
    return [torch.from_numpy(read_png(path)[0]) for path in sorted(folder.glob("*.png"))]


def test_a_classifier_that_comes_later_guides_what_is_asked_for(
    run: TinyRun, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of equal maps and seeds; a scale of 0, a wish that is unknown, and no classifier are all the same."""
    like = ["--like=test", "--num=2"]
    guided = [f"{CLASSIFIER}={classifier}", "--model.init_args.classifier_scale=1e4"]
    asked = '--attributes={"malignant": 1, "lobulation": null}'
    unknown = '--attributes={"malignant": null, "lobulation": null}'
    for name, words in {
        "plain": [],
        "guided": [*guided, asked],
        "unknown": [*guided, unknown],
        "scale_0": [*guided, asked, "--model.init_args.classifier_scale=0"],
    }.items():
        assert run.on_checkpoint("sample", *like, *words, f"--out={tmp_path / name}") == 0
    found = {name: images(tmp_path / name) for name in ("plain", "guided", "unknown", "scale_0")}
    for name in ("unknown", "scale_0"):
        assert all(torch.equal(a, b) for a, b in zip(found[name], found["plain"], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found["guided"], found["plain"], strict=True))
    capsys.readouterr()
    assert run.on_checkpoint("sample", *like, asked, f"--out={tmp_path / 'none'}") == 2
    assert "LSDM is not made from 'malignant'" in one_line(capsys)
    assert run.on_checkpoint("sample", f"{CLASSIFIER}=nowhere.ckpt", f"--out={tmp_path / 'nowhere'}") == 2
    assert "no file 'nowhere.ckpt'; make it with `python -m lit_medgen fit --config configs/crop_c" in one_line(capsys)


def test_a_report_shows_what_guidance_does(run: TinyRun, classifier: Path, tmp_path: Path) -> None:
    words = [f"{CLASSIFIER}={classifier}", "--num=4", f"--out={tmp_path}"]
    assert run.on_checkpoint("evaluate", *words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    names = {f"guided_malignant_{value}_{where}" for value in (0, 1) for where in ("inside", "beyond")}
    assert names <= report["own"].keys()
    assert set(report["plots"]) == {"guided_malignant", "derivatives_malignant"}
    assert {path.stem for path in tmp_path.glob("plots/*.png")} == set(report["plots"])
    assert set(report["strips"]) == {"malignant", "lobulation"}
    assert (tmp_path / "attributes" / "malignant.png").is_file()


def test_a_model_that_was_trained_with_its_classifier_needs_no_file(
    tmp_path: Path, phantoms: Path, classifier: Path
) -> None:
    run = TinyRun(tmp_path, phantoms, ("configs/lsdm.yaml",))
    assert run.fit(f"{CLASSIFIER}={classifier}") == 0
    assert run.fit(f"{CLASSIFIER}={classifier}", "--ckpt_path=last", "--trainer.max_steps=3") == 0
    assert lit_medgen.load(run.last).attributes == ("malignant", "lobulation")
    words = ["--like=test", "--num=1", f"{CLASSIFIER}=nowhere.ckpt", f"--out={tmp_path / 'samples'}"]
    assert run.on_checkpoint("sample", *words) == 0
