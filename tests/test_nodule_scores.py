"""Scores of the surroundings of nodules in reports: they see the crops alone, and each sample's own target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import People, normal
from test_nodule_crops import SIZE, SPEC
from torch import Tensor

from lit_medgen.batch import Condition, DataSpec, Images, Request, Requests
from lit_medgen.callbacks.report import logged
from lit_medgen.evaluation.nodules import Nodules
from lit_medgen.evaluation.report import Maker, evaluate
from lit_medgen.evaluation.scores import _of_others
from lit_medgen.metrics import PairedPSNR

NUM = 10
WITHOUT = 3


def nodule_map(i: int) -> Tensor:
    """1 1 *SIZE: a nodule of either class; the map of number `WITHOUT` has none."""
    label_map = torch.ones(1, 1, *SIZE, dtype=torch.int64)
    if i != WITHOUT:
        label_map[0, 0, 4 * i : 4 * i + 5, 30:34] = 2 + i % 2
    return label_map


@dataclass
class Chests(People):
    """People with a label map each."""

    spec: DataSpec = SPEC
    read: Mapping[str, Any] = field(default_factory=dict)

    def requests(self, split: str) -> Requests:
        images = {"train": self.train, "test": self.test}[split]
        rows = [{"key": f"{split} {i}"} for i in range(len(images))]

        def read(i: int) -> Request:
            return Request([i], Condition(label_map=nodule_map(i)), target=images[i : i + 1])

        return Requests(range(len(images)), rows, frozenset({"label_map"}), read)


def tissue(seed: int) -> Tensor:
    return (normal(NUM, seed, SIZE) / 3).clamp(-1, 1)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Chests:
    return Chests(tissue(1), tissue(2), cache=tmp_path_factory.mktemp("cache"))


def report(people: Chests, samples: Tensor, out: Path, features: str = "learned") -> dict[str, Any]:
    images, maker = Images.of(samples, [f"test {i}" for i in range(NUM)]), Maker("Painter")
    return evaluate(images, people, out, maker, features=features, targets=range(NUM))  # type: ignore[arg-type]


def test_scores_of_nodules_see_the_crops_alone(people: Chests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are right around nodules and nowhere else: perfect pairs of nodules, bad ones of images."""
    monkeypatch.setattr("lit_medgen.metrics.extractors.NUM_STEPS", 20)
    nodules = Nodules.of(people.requests("test"), SPEC)
    samples = tissue(9)
    for i, (x, y) in nodules.middles.items():
        box = (slice(max(0, int(x) - 32), int(x) + 33), slice(max(0, int(y) - 32), int(y) + 33))
        samples[(i, 0, *box)] = people.test[(i, 0, *box)]
    made = report(people, samples, tmp_path / "report")
    pairs, rows = made["pairs"], made["metrics"]
    assert pairs["nodule_ssim"]["value"] == pytest.approx(1, abs=1e-5)
    assert pairs["nodule_ms_ssim"]["value"] == pytest.approx(1, abs=1e-5)
    assert pairs["nodule_perceptual_learned"]["value"] == 0
    assert pairs["ssim"]["value"] < 0.98
    assert pairs["perceptual_learned"]["value"] > 0
    assert pairs["nodule_ssim"]["num_pairs"] == NUM - 1
    assert "contrastive network of 9 training images" in pairs["nodule_perceptual_learned"]["features"]
    assert "scales: 4, Gaussian window 7" in pairs["nodule_ms_ssim"]["features"]
    assert rows["nodule_frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["nodule_frechet"]["real_vs_real"] > 0
    assert rows["frechet_image"]["value"] > 0
    assert (rows["nodule_frechet"]["num_samples"], rows["nodule_frechet"]["num_real"]) == (NUM - 1, NUM - 1)
    assert all(scores["nodule_frechet"] > 0 for scores in made["nulls"].values())
    assert logged(made)["pairs.nodule_ssim.value"] == pairs["nodule_ssim"]["value"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| nodule_frechet | " in text
    assert "| nodule_ssim, of pairs | " in text


def test_floors_of_pairs_are_those_of_other_people(people: Chests, tmp_path: Path) -> None:
    """Beside each nodule the next of another person with a nodule of the same class."""
    made = report(people, people.test, tmp_path / "report", "none")
    nodules = Nodules.of(people.requests("test"), SPEC)
    crops = {i: nodules.around(people.test[i : i + 1], [i]) for i in nodules.middles}
    metric, order = PairedPSNR(), list(crops)
    for i in order:
        later = [j for j in [*range(i + 1, NUM), *range(i)] if j in crops and j % 2 == i % 2]
        metric.update(crops[later[0]], crops[i])
    assert made["pairs"]["nodule_psnr"]["real_vs_real"] == pytest.approx(metric.compute().item())
    assert made["pairs"]["nodule_psnr"]["value"] == torch.inf
    assert "nodule_frechet" not in made["metrics"]
    assert "nodule_perceptual_learned" not in made["pairs"]


def test_others_are_of_another_person_and_of_the_same_kind() -> None:
    assert _of_others([0, 1, 2, 3], ["a", "a", "b", "c"], {}) == [(2, 0), (2, 1), (3, 2), (0, 3)]
    assert _of_others([0, 1, 2, 3], ["a", "a", "b", "c"], {0: 5, 1: 6, 2: 6, 3: 5}) == [(3, 0), (2, 1), (1, 2), (0, 3)]
    assert _of_others([0, 1], ["a", "a"], {}) == []


def test_without_nodules_there_are_no_such_scores(people: Chests, tmp_path: Path) -> None:
    bare = Chests(
        people.train, people.test, cache=people.cache, spec=DataSpec(1, SIZE, (1, 1), classes=("air", "lung"))
    )
    made = report(bare, tissue(5), tmp_path / "report", "none")
    assert not [name for name in [*made["metrics"], *made["pairs"]] if name.startswith("nodule_")]
