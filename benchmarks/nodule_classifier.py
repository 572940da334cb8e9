"""How well real nodules are told apart by a few numbers, and by crop classifiers, in cross-validation over patients.

The numbers are diameter, volume, mean and spread of HU inside the nodule: a logistic regression tells malignancy from
them, a ridge regression the ratings. Each patient is tested once, by what was trained on patients of the other folds;
intervals leave out a patient at a time. Of classifiers give the checkpoints of all folds (`data.init_args.fold`: 0 of
5, 1 of 5, ...): their predictions are pooled. A nodule's prediction is the mean over its pixels in all of its slices.

    python -m benchmarks.nodule_boxes --out data/lidc_nodules
    python -m benchmarks.nodule_classifier [--ckpt_path runs/*/checkpoints/last.ckpt] [--out skill.png]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.data import data_of
from data_modules import LIDCDataModule
from data_modules.lidc.semantic_maps import CLASSES, FIRST_NODULE
from lit_medgen import load
from lit_medgen.batch import Batch
from lit_medgen.images.plots import save_skill
from lit_medgen.loading import config_of
from lit_medgen.methods import CropClassifier
from lit_medgen.training.label_likelihoods import Kind
from lit_medgen.training.label_skill import Predicted, Skill

FEATURES = ("diameter_mm", "volume_mm3", "mean_hu", "spread_hu")
LABELS: dict[str, Kind] = {"malignant": "binary", "lobulation": "number", "spiculation": "number", "texture": "number"}
AT_ONCE = 64
"""Slices that a classifier looks at together."""


@dataclass(frozen=True, eq=False)
class Nodules:
    """All nodules, one each: n keys of their scans, n people, features n f, labels n k."""

    keys: list[str]
    people: list[str]
    features: np.ndarray
    labels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="configs/data/lidc_nodules.yaml", help="config of the data")
    parser.add_argument("--folds", type=int, default=5, help="of the regressions")
    parser.add_argument("--ckpt_path", nargs="*", default=[], help="crop classifiers, of each fold one")
    parser.add_argument("--out", help="PNG: skill of the classifiers against the noise in their crops")
    options = parser.parse_args()
    table = Table("told by", "of each", *LABELS)
    of_folds = regressions(yaml.safe_load(Path(options.data).read_text()), options.folds)
    table.add_row(", ".join(FEATURES), "nodule", *cells(Skill(of_folds, LABELS, (0.0,))))
    if options.ckpt_path:
        skill, by_nodule = classifiers(options.ckpt_path)
        table.add_row(f"{len(options.ckpt_path)} classifiers", "slice", *cells(skill))
        for i, t in enumerate(skill.times):
            table.add_row(f"the same, t = {t:g}", "nodule", *cells(by_nodule, i))
        if options.out:
            save_skill(Path(options.out), by_nodule.panels())
    Console(width=160).print(table)


def cells(skill: Skill, i: int = 0) -> list[str]:
    """AUC or R^2 of each label at the i-th time, with its interval."""
    found = {name: curve[i] for name, curve in skill.curves.items()}
    return [
        f"{found[name].value:.3f} ({found[name].ci95[0]:.3f} to {found[name].ci95[1]:.3f})" if name in found else ""
        for name in LABELS
    ]


def regressions(config: dict[str, Any], num_folds: int) -> Predicted:
    """What regressions on the features predict of each nodule, by those trained on the other folds."""
    parts = []
    nodules = None
    for k in range(num_folds):
        data = data_of(config, fold=f"{k} of {num_folds}", fractions=[1.0, 0.0, 0.0], nodules_only=True)
        nodules = nodules or nodules_of(cast(LIDCDataModule, data))
        tested = np.isin(nodules.people, [*set(data.people("test").values())])
        values = predicted_by_regression(nodules, ~tested)[tested]
        rows = np.flatnonzero(tested)
        keys, people = ([names[i] for i in rows] for names in (nodules.keys, nodules.people))
        labels = torch.from_numpy(nodules.labels[tested])
        parts.append(Predicted(keys, people, labels, torch.from_numpy(values)[:, None]))
    return Predicted.join(parts)


def nodules_of(data: LIDCDataModule) -> Nodules:
    """Features and labels of all nodules, from the slices of all people."""
    facts = data.scan_facts([record for records in data.records.values() for record in records])
    pixels: dict[str, list[np.ndarray]] = defaultdict(list)
    labels: dict[str, list[float]] = {}
    people: dict[str, str] = {}
    scan_of = {record.key: record.file for records in data.records.values() for record in records}
    for split in data.records:
        people |= {scan_of[key]: person for key, person in data.people(split).items()}
        for batch in data.stored(split):
            key = scan_of[batch.key[0]]
            assert batch.condition.label_map is not None
            inside = _of_nodule(batch.condition.label_map)
            pixels[key].append(data.spec.to_window(batch.image)[inside].numpy())
            labels[key] = [float(batch.condition.attributes[name][0]) for name in LABELS]
    features = []
    for key, found in pixels.items():
        (nodule,), hu = facts[key]["nodules"], np.concatenate(found)
        volume = len(hu) * facts[key]["spacing_mm"] ** 2 * facts[key]["thickness_mm"]
        features.append([nodule["diameter_mm"], volume, hu.mean(), hu.std()])
    return Nodules([*pixels], [people[key] for key in pixels], np.array(features), np.array([*labels.values()]))


def predicted_by_regression(nodules: Nodules, trained: np.ndarray) -> np.ndarray:
    """Predictions of all nodules, n k, by regressions on those `trained` on; the logarithm is taken of sizes."""
    x = nodules.features.copy()
    x[:, :2] = np.log(x[:, :2])
    found = []
    for column, kind in zip(nodules.labels.T, LABELS.values(), strict=True):
        if kind == "binary":
            model = make_pipeline(StandardScaler(), LogisticRegression())
            found.append(model.fit(x[trained], column[trained]).predict_proba(x)[:, 1])
        else:
            model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 11)))
            found.append(model.fit(x[trained], column[trained]).predict(x))
    return np.stack(found, axis=1)


@torch.no_grad()
def classifiers(paths: Sequence[str]) -> tuple[Skill, Skill]:
    """What the classifiers of all folds tell of the people whom each is tested on: of slices, and of nodules."""
    models = [cast(CropClassifier, load(path)) for path in paths]
    parts: list[Predicted] = []
    pixels: list[Tensor] = []
    for model, path in zip(models, paths, strict=True):
        data = data_of(config_of(Path(path))["data"])
        batches = list(data.stored("test"))
        for first in range(0, len(batches), AT_ONCE):
            some = Batch.join(batches[first : first + AT_ONCE])
            parts.append(model.predicted(some, data.people("test")))
            assert some.condition.label_map is not None
            pixels.append(_of_nodule(some.condition.label_map).flatten(1).sum(1))
    slices, kinds, times = Predicted.join(parts), models[0].outputs, models[0].skill_times
    return Skill(slices, kinds, times), Skill(of_nodules(slices, torch.cat(pixels)), kinds, times)


def _of_nodule(label_map: Tensor) -> Tensor:
    """Which pixels of label maps are nodule."""
    return torch.isin(label_map, torch.arange(FIRST_NODULE, len(CLASSES)))


def of_nodules(slices: Predicted, pixels: Tensor) -> Predicted:
    """Labels and predictions of each nodule: the mean over its slices, in which it has so many pixels (n)."""
    scans = [key.rpartition("-")[0] for key in slices.keys]
    names = list(dict.fromkeys(scans))
    rows = [[i for i, scan in enumerate(scans) if scan == name] for name in names]
    shares = [pixels[some].to(slices.values.dtype) / pixels[some].sum() for some in rows]
    labels, values = (
        torch.stack([torch.tensordot(share, array[some], dims=1) for share, some in zip(shares, rows, strict=True)])
        for array in (slices.labels, slices.values)
    )
    return Predicted(names, [slices.people[some[0]] for some in rows], labels, values)


if __name__ == "__main__":
    main()
