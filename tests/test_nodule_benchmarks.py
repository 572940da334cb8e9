"""The baseline of crop classifiers: regressions on a few numbers of each nodule, and predictions made of slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks import nodule_boxes, nodule_classifier
from benchmarks.nodule_classifier import LABELS, Nodules, of_nodules, predicted_by_regression
from lit_medgen.training.label_skill import Predicted, Skill

CONFIG = Path(__file__).parents[1] / "configs" / "data" / "lidc_nodules.yaml"


def test_a_nodule_is_the_mean_of_its_slices() -> None:
    values = torch.tensor([[[0.2]], [[0.5]], [[0.4]]])
    slices = Predicted(["a-0", "b-0", "a-1"], ["x", "y", "x"], torch.tensor([[1.0], [0.0], [1.0]]), values)
    found = of_nodules(slices)
    assert (found.keys, found.people) == (["a", "b"], ["x", "y"])
    torch.testing.assert_close(found.values, torch.tensor([[[0.3]], [[0.5]]]))
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
