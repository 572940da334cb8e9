"""The files of a report: its numbers, its page and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.evaluation.agreement import Agreement, line_through
from lit_medgen.evaluation.checks import PREDICTIONS
from lit_medgen.evaluation.control import Control, panels
from lit_medgen.evaluation.held import Sets
from lit_medgen.evaluation.markdown import as_markdown, plot_file
from lit_medgen.evaluation.pair_nulls import MEAN, PairNulls
from lit_medgen.evaluation.pictures import Pictures, write_pictures
from lit_medgen.evaluation.strips import Strip, strip_file
from lit_medgen.files import as_csv, write_atomically
from lit_medgen.images.grids import save_figure, save_strip
from lit_medgen.images.plots import save_agreement, save_control, save_map, save_scores
from lit_medgen.metrics.extractors import AllViews, CentreSlice
from lit_medgen.metrics.features import features_of
from lit_medgen.metrics.known import Known, centred, products
from lit_medgen.output import say

NUM_SHOWN = 6
"""Images of each kind in the figure."""
UNSEEN = "data, unseen people"
"""Title of the row of test people's images."""


class Figures(NamedTuple):
    """What the figures of a report show."""

    rows: Mapping[str, Tensor]
    """As `rows_of` gives them."""
    points: Mapping[str, np.ndarray[Any, Any]]
    """As `points_of` gives them."""
    agreed: Mapping[str, Agreement]
    """Attribute -> agreement of the samples with what was asked for."""
    swept: Mapping[str, Strip]
    """Attribute -> images of one seed that differ in it."""
    pictures: Pictures
    """What `compare` shows of this report."""
    controlled: Mapping[str, Control] = MappingProxyType({})
    """Attribute -> what a judge says of images that were asked for it."""
    colour: bool = False
    """Whether the three channels of images are red, green and blue."""


def write_report(
    out: Path, report: Mapping[str, Any], figures: Figures | None, plots: Mapping[str, Callable[[Path], None]]
) -> None:
    """report.json, report.md, what the method plots and, where there are images, the figures."""
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    write_atomically(out / "report.md", as_markdown(report))
    names = f"; plots: {', '.join(plots)}" if plots else ""
    for name, write in plots.items():
        (out / plot_file(name)).parent.mkdir(exist_ok=True)
        write(out / plot_file(name))
    if figures:
        write_pictures(out, figures.pictures)
        save_scores(out / "scores.png", report)
        save_figure(out / "samples.png", figures.rows, NUM_SHOWN, figures.colour)
        save_map(out / "map.png", figures.points)
        names += f"; figures: {out / 'samples.png'}, scores.png, map.png"
        if figures.agreed:
            save_agreement(out / "agreement.png", [_panel(name, of) for name, of in figures.agreed.items()])
            names += ", agreement.png"
        if figures.controlled:
            save_control(out / "control.png", list(panels(figures.controlled)))
            names += ", control.png"
        for name, strip in figures.swept.items():
            (out / strip_file(name)).parent.mkdir(exist_ok=True)
            save_strip(out / strip_file(name), strip.rows, name, strip.values, figures.colour)
        names += f", {len(figures.swept)} in attributes" if figures.swept else ""
    say(f"report: {out / 'report.md'}{names}\n{report['verdict']}")


def write_predictions(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """predictions.csv, a row for each test image of which the method predicted something."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_atomically(out / PREDICTIONS, as_csv(rows, columns))
    say(f"predictions of {len(rows)} images: {out / PREDICTIONS}")


def _panel(name: str, agreement: Agreement) -> dict[str, Any]:
    """What `save_agreement` shows of an attribute."""
    asked, shown = (f" ({unit})" if unit else "" for unit in agreement.unit)
    sets = {}
    for title, points, value, interval in (
        ("samples", agreement.samples, "value", "ci95"),
        ("real people", agreement.real, "real", "real_ci95"),
    ):
        row = agreement.rows[f"{name}_r"]
        low, high = row[interval]
        label = f"{title}: r {row[value]:.2f} ({low:.2f} to {high:.2f})"
        lines = tuple(part.numpy() for part in line_through(points))
        sets[label] = (points.requested.numpy(), points.measured.numpy(), lines)
    title = name.removesuffix(f"_{agreement.unit[0].lower()}")
    diagonal = agreement.unit[0] == agreement.unit[1]
    return {"x": f"{title} asked for{asked}", "y": f"{title} measured{shown}", "sets": sets, "diagonal": diagonal}


def rows_of(
    sets: Sets,
    nearest: Sequence[int],
    targets: Sequence[int | None] | None,
    nulls: Mapping[str, Tensor],
    pair_nulls: PairNulls,
) -> dict[str, Tensor]:
    """Title -> images: the first samples, what they should be, who is most like them, others, and nulls.

    Args:
        sets: the images.
        nearest: for each sample the index of the training image most like it.
        targets: as `evaluate` takes them.
        nulls: name -> its first images.
        pair_nulls: what stands in the place of samples of pairs without a model.
    """
    some = range(min(NUM_SHOWN, len(sets.samples)))
    rows = {"samples": sets.samples.read(some)}
    aims = [target for target in (targets or [])[:NUM_SHOWN] if target is not None]
    if len(aims) == len(some):
        rows["what they should be"] = sets.real.read(aims)
        of_pairs = pair_nulls(rows["what they should be"], aims)
        rows |= {name: images for name, (there, images) in of_pairs.items() if name != MEAN and len(there) == len(aims)}
    rows["training people most like them"] = sets.train.read([nearest[i] for i in some])
    rows[UNSEEN] = sets.real.read(range(min(NUM_SHOWN, len(sets.real))))
    return rows | {f"null: {name}": images for name, images in nulls.items()}


def points_of(
    sets: Sets, nearest: Sequence[int], views: Mapping[str, CentreSlice], known: Known
) -> dict[str, np.ndarray[Any, Any]]:
    """Samples, who is nearest to each, and real images as points, n d each.

    Points are features, or as far apart as the images' voxels are.
    """
    images = {"samples": sets.samples, "train": sets.train, "unseen": sets.real}
    if views:
        together = AllViews(tuple(views.values()))
        points = {name: known(features_of, together, some).numpy() for name, some in images.items()}
    else:
        points = dict(zip(images, _embedded(list(images.values()), known), strict=True))
    return {"samples": points["samples"], "nearest": points["train"][list(nearest)], "unseen": points["unseen"]}


def _embedded(sets: list[Images], known: Known) -> list[np.ndarray[Any, Any]]:
    """n d each: points whose scalar products are those of the images, less the mean (classical scaling)."""
    blocks = [[known(products, a, b, known.device) for b in sets[i:]] for i, a in enumerate(sets)]
    num = len(sets)
    gram = torch.cat([torch.cat([*(blocks[k][i - k].T for k in range(i)), *blocks[i]], dim=1) for i in range(num)])
    values, directions = torch.linalg.eigh(centred(gram))
    points = (directions * values.clamp(min=0).sqrt()).flip(1).float()
    return [some.numpy() for some in points.split([*map(len, sets)])]
