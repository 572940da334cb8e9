"""The baseline of crop classifiers: regressions on a few numbers of each nodule, and predictions made of slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks import nodule_boxes, nodule_classifier, nodule_control, nodule_pictures
from benchmarks.nodule_classifier import LABELS, Nodules, of_nodules, predicted_by_regression
from lit_medgen.__main__ import main
from lit_medgen.training.label_skill import Predicted, Skill

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "data" / "lidc_nodules.yaml"
REAL = "configs/lidc_nodules"
CHAIN = {
    "autoencoder_kl_ct": ["autoencoder_kl_ct"],
    "autoencoder_kl_ct_folds": ["autoencoder_kl_ct", "autoencoder_kl_ct_folds"],
    "crop_classifier": ["crop_classifier"],
    "crop_classifier_malignant": ["crop_classifier", "crop_classifier_malignant"],
    "crop_judge": ["crop_judge"],
    "lsdm": ["lsdm"],
    "lsdm_attributes": ["lsdm", "lsdm_attributes"],
    "lsdm_both": ["lsdm", "lsdm_both"],
    "lsdm_concatenated": ["lsdm", "lsdm_concatenated"],
    "spade_gan": ["spade_gan"],
}
"""Experiment on real nodules -> its overlays, after the method's own config, in the order that they need each other."""


def test_a_nodule_is_the_mean_of_its_pixels() -> None:
    """A slice counts as much as it shows of the nodule; of equal slices it is their mean."""
    values = torch.tensor([[[0.2]], [[0.5]], [[0.4]]])
    slices = Predicted(["a-0", "b-0", "a-1"], ["x", "y", "x"], torch.tensor([[1.0], [0.0], [1.0]]), values)
    found, even = of_nodules(slices, torch.tensor([30, 7, 10])), of_nodules(slices, torch.ones(3))
    assert (found.keys, found.people) == (["a", "b"], ["x", "y"])
    torch.testing.assert_close(found.values, torch.tensor([[[0.25]], [[0.5]]]))
    torch.testing.assert_close(even.values, torch.tensor([[[0.3]], [[0.5]]]))
    torch.testing.assert_close(found.labels, torch.tensor([[1.0], [0.0]]))


def test_regressions_find_what_follows_from_the_features() -> None:
    """Ratings linear in the logarithm of the size; malignant where it is large. The last third is not trained on."""
    random = np.random.default_rng(0)
    features = np.exp(random.normal(size=(90, 4)))
    size = np.log(features[:, 0])
    nodules = Nodules([], [], features, np.stack([size > 0, size, 2 * size, -size], axis=1).astype(float))
    trained = np.arange(90) < 60
    found = predicted_by_regression(nodules, trained)[~trained]
    skill = Skill(
        Predicted(
            [""] * 30, [*map(str, range(30))], torch.from_numpy(nodules.labels[60:]), torch.tensor(found)[:, None]
        ),
        LABELS,
        (0.0,),
    ).clean()
    assert skill["auc_malignant"] > 0.99
    assert min(skill[f"r2_{name}"] for name, kind in LABELS.items() if kind == "number") > 0.99


@pytest.mark.data
@pytest.mark.slow
def test_malignancy_of_real_nodules_follows_from_four_numbers(shared_data: Path, tmp_path: Path) -> None:
    nodule_boxes.write_boxes(shared_data / "lungct" / "lidc_nodules", tmp_path / "raw", 64)
    section = yaml.safe_load(CONFIG.read_text())
    section["init_args"] |= {"root": str(tmp_path / "raw"), "store_dir": str(tmp_path)}
    found = nodule_classifier.regressions(section, 5)
    assert len(found.keys) == len(set(found.keys)) == 178  # everybody is tested once
    assert Skill(found, LABELS, (0.0,)).clean()["auc_malignant"] > 0.8


@pytest.mark.usefixtures("fine_figures")
@pytest.mark.data
@pytest.mark.slow
def test_the_experiments_on_real_nodules(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every config of them for three steps on a sixth of the nodules, and every benchmark on what they make."""
    assert {Path(name).stem for overlays in CHAIN.values() for name in overlays} == {
        path.stem for path in (ROOT / REAL).glob("*.yaml")
    }
    boxes, raw = shared_data / "lungct" / "lidc_nodules", tmp_path / "raw"
    few = tmp_path / "boxes"
    few.mkdir()
    for kind in ("image", "mask"):
        (few / kind).symlink_to(boxes / kind)
    header, *rows = (boxes / "nodules.csv").read_text().splitlines()
    (few / "nodules.csv").write_text("\n".join([header, *rows[::6]]))
    nodule_boxes.write_boxes(few, raw, 64)
    paths = {name: fitted(name, raw, tmp_path) for name in CHAIN}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodule_control, "CLASSIFIER_SCALES", (0.0, 8.0))
    monkeypatch.setattr(nodule_control, "FREE_SCALES", (0.0, 2.0))
    guided = ["--guided", paths["lsdm"], "--classifier", paths["crop_classifier_malignant"]]
    of_attributes = ["--attributes", paths["lsdm_attributes"], "--judge", paths["crop_judge"]]
    called(monkeypatch, nodule_control, *guided, *of_attributes, "--out", "control.png")
    section = yaml.safe_load(CONFIG.read_text())
    section["init_args"] |= {"root": str(raw), "store_dir": str(tmp_path / "store")}
    Path("data.yaml").write_text(yaml.safe_dump(section))
    told = ["--ckpt_path", paths["crop_classifier"], "--out", "skill.png"]
    called(monkeypatch, nodule_classifier, "--data", "data.yaml", "--folds", "2", *told)
    called(monkeypatch, nodule_pictures, f"SPADE={paths['lsdm']}", f"both={paths['lsdm_both']}", "--out", "nodules.png")
    assert all(Path(name).stat().st_size > 5_000 for name in ("control.png", "skill.png", "nodules.png"))


def fitted(name: str, raw: Path, folder: Path) -> str:
    """The checkpoint of an experiment after three steps, on the first stage that was trained before."""
    base = CHAIN[name][0]
    chain = [f"configs/{base}.yaml", *(f"{REAL}/{overlay}.yaml" for overlay in CHAIN[name])]
    parts = yaml.safe_load((ROOT / chain[1]).read_text())["model"]["init_args"]
    words = [f"--data.init_args.root={raw}", f"--data.init_args.store_dir={folder / 'store'}", "--trainer.max_steps=3"]
    words += [f"--name={name}", f"--trainer.default_root_dir={folder}", "--trainer.val_check_interval=3"]
    words += ["--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]
    if "first_stage" in parts:
        words.append(f"--model.init_args.first_stage={folder}/autoencoder_kl_ct/checkpoints/last.ckpt")
    if base == "lsdm":
        words.append("--model.init_args.sampler.init_args.num_steps=2")
    assert main(["fit", *(word for config in chain for word in ("--config", str(ROOT / config))), *words]) == 0
    return str(folder / name / "checkpoints" / "last.ckpt")


def called(monkeypatch: pytest.MonkeyPatch, module: Any, *words: str) -> None:
    """Runs a benchmark as its command does."""
    monkeypatch.setattr("sys.argv", ["benchmark", *words])
    module.main()
