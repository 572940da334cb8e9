"""Controllability of LSDM on nodules: what a judge says of images asked to be benign or malignant, over scales.

The same label maps of people whom the model has not seen, and the same seeds, are asked for either label at each scale:
by a classifier of crops that guides (one checkpoint, `--guided`), or without a classifier, by a model that reads the
attribute (`--attributes`). The judge is a classifier of clean crops, of other people than the guide's. Beside what it
says stands how much guidance changes pixels farther than 16 from the nodule, as a share of the range. Intervals leave
out a patient at a time.

    python -m benchmarks.nodule_control --guided runs/lsdm_nodules/checkpoints/last.ckpt
        --classifier runs/crop_classifier_nodules/checkpoints/last.ckpt
        --attributes runs/lsdm_attributes_nodules/checkpoints/last.ckpt
        --judge runs/crop_judge_nodules/checkpoints/last.ckpt --out control.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch import Tensor

from benchmarks.data import data_of
from benchmarks.nodule_classifier import classifiers
from lit_medgen import load
from lit_medgen.batch import Request, Requests, TrainingData
from lit_medgen.evaluation.nodules import Nodules
from lit_medgen.images.nodules import inside_nodules, nodule_classes
from lit_medgen.images.png import write_figure
from lit_medgen.loading import build_method, config_of, restore
from lit_medgen.methods import LSDM, CropClassifier
from lit_medgen.metrics.agreement import MeanDifference
from lit_medgen.metrics.base import Estimate

Experts = tuple[CropClassifier, CropClassifier]
"""The judge, and the classifier that guides."""
LABEL, FAR_PX, RANGE = "malignant", 16, 2.0
CLASSIFIER_SCALES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
FREE_SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Of guidance without a classifier: 0 asks for nothing, 1 is the conditional model."""


@dataclass(frozen=True)
class Row:
    """What the judge says at a scale, of images asked for 0, for 1, and of the difference; what changed far away.

    `guides` is the difference in the eyes of the classifier that guides, which shows whether guidance does its work.
    """

    how: str
    scale: float
    judged: tuple[Estimate, Estimate, Estimate]
    guides: float
    far: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guided", required=True, help="checkpoint of an LSDM")
    parser.add_argument("--classifier", required=True, help="checkpoint of the CropClassifier that guides it")
    parser.add_argument("--attributes", help="checkpoint of an LSDM that reads the attribute")
    parser.add_argument("--judge", required=True, help="checkpoint of a CropClassifier of clean crops")
    parser.add_argument("--batch_size", type=int, default=36)
    parser.add_argument("--out", required=True, help="PNG: the curves")
    options = parser.parse_args()
    data = data_of(config_of(Path(options.guided))["data"])
    experts, like = (
        (cast(CropClassifier, load(options.judge)), cast(CropClassifier, load(options.classifier))),
        data.requests("test"),
    )
    rows = [*_rows("classifier", guided(options.guided, options.classifier), experts, data, like, options.batch_size)]
    if options.attributes:
        model = load(options.attributes)
        assert isinstance(model, LSDM)
        rows += _rows("classifier-free", model, experts, data, like, options.batch_size)
    table = Table(
        "guidance", "scale", "asked for 0", "asked for 1", "difference", "by the guide", "change far away, % of range"
    )
    for row in rows:
        table.add_row(row.how, f"{row.scale:g}", *map(_text, row.judged), f"{row.guides:.3f}", f"{100 * row.far:.3f}")
    Console(width=140).print(table)
    of_slices, of_nodules = (skill.curves[LABEL][0] for skill in classifiers([options.judge]))
    own = f"{_text(of_slices)} of slices, {_text(of_nodules)} of nodules"
    print(f"the judge's own AUC on its test people: {own}")
    write_figure(Path(options.out), curves(rows, f"the judge's own AUC: {own}"))


def _text(estimate: Estimate) -> str:
    """A value with its interval."""
    return f"{estimate.value:.3f} ({estimate.ci95[0]:.3f} to {estimate.ci95[1]:.3f})"


def guided(path: str, classifier: str) -> LSDM:
    """A trained LSDM with a classifier that it may have been trained without."""
    config = config_of(Path(path))
    config["model"]["init_args"]["classifier"] = classifier
    model = build_method(config)
    restore(model, Path(path))
    assert isinstance(model, LSDM)
    return model.eval()


def _rows(
    how: str, model: LSDM, experts: Experts, data: TrainingData, like: Requests, batch_size: int
) -> Iterator[Row]:
    """A row for each scale."""
    judge, guide = experts
    crops = Nodules.of(like, data.spec, judge.crop_size)
    numbers = list(crops.middles)
    named = data.images("test", one_per_person=True)
    of_key = dict(zip(named.keys, named.people, strict=True))
    people = [of_key[like.made_from[number]["key"]] for number in numbers]
    plain: Tensor | None = None
    for scale in CLASSIFIER_SCALES if how == "classifier" else FREE_SCALES:
        pair: list[Tensor] = []
        for value in (0.0, 1.0):
            if scale == 0 and pair:  # asked for nothing
                pair.append(pair[0])
                continue
            requests = [asked(like, number, value if scale else None) for number in numbers]
            pair.append(made(model, how, scale, requests, batch_size))
        if plain is None:
            plain = pair[0]
        seen = [crops.around(images, numbers) for images in pair]
        said = [judge.judged(some)[LABEL].double() for some in seen]
        judged = (
            _mean(said[0], people, (0.0, 1.0)),
            _mean(said[1], people, (0.0, 1.0)),
            _mean(said[1] - said[0], people),
        )
        guides = [float(guide.judged(some)[LABEL].mean()) for some in seen]
        far = far_away(like, numbers, data)
        changes = [float((images - plain).abs()[far].mean()) / RANGE for images in pair]
        row = Row(how, scale, judged, guides[1] - guides[0], sum(changes) / len(changes))
        print(how, scale, [round(one.value, 3) for one in judged], round(row.far, 5), flush=True)
        yield row


def asked(like: Requests, number: int, value: float | None) -> Request:
    """A test person's map with one attribute, or none."""
    request = like.read(number)
    attributes = {} if value is None else {LABEL: torch.tensor([value])}
    return replace(request, condition=replace(request.condition, attributes=attributes, source=None), target=None)


def made(model: LSDM, how: str, scale: float, requests: Sequence[Request], batch_size: int) -> Tensor:
    """Images n c h w of requests at a scale of the guidance."""
    if how == "classifier":
        model.classifier_scale = scale
    else:
        model.conditioning = replace(model.conditioning, guidance_scale=scale or 1.0)
    batches = [Request.join(requests[first : first + batch_size]) for first in range(0, len(requests), batch_size)]
    return torch.cat([model.sample(batch.condition, batch.seeds) for batch in batches])


def far_away(like: Requests, numbers: Sequence[int], data: TrainingData) -> Tensor:
    """Which pixels, n 1 h w, are farther than `FAR_PX` from every nodule of their map."""
    classes = nodule_classes(data.spec.classes)
    masks = []
    for number in numbers:
        label_map = like.read(number).condition.label_map
        assert label_map is not None
        masks.append(inside_nodules(label_map, classes)[0, 0].numpy())
    return torch.from_numpy(np.stack([ndimage.distance_transform_edt(~mask) > FAR_PX for mask in masks]))[:, None]


def _mean(values: Tensor, people: list[str], limits: tuple[float, float] = MeanDifference.limits) -> Estimate:
    """The mean of n values, with its interval over people."""
    metric = MeanDifference()
    metric.limits = limits
    metric.update(torch.zeros_like(values), values, people)
    return metric.estimate()


def curves(rows: Sequence[Row], title: str) -> Figure:
    """Judged probability against the scale, a panel for each kind of guidance, a curve for each label."""
    kinds = list(dict.fromkeys(row.how for row in rows))
    figure = Figure(figsize=(5 * len(kinds), 3.6), layout="constrained")
    for axes, how in zip(np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        some = [row for row in rows if row.how == how]
        for label, (colour, word) in enumerate((("tab:blue", "benign"), ("tab:red", "malignant"))):
            at, found = range(len(some)), [row.judged[label] for row in some]
            axes.plot(at, [one.value for one in found], "o-", color=colour, label=f"asked to be {word}")
            axes.fill_between(at, *zip(*(one.ci95 for one in found), strict=True), color=colour, alpha=0.2)
        axes.set(xlabel=f"scale of {how} guidance", xticks=range(len(some)))
        axes.set_xticklabels([f"{row.scale:g}" for row in some])
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="small")
    figure.axes[0].set_ylabel("probability of malignancy,\nby the judge")
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
