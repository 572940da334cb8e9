"""Whether images show the labels that they are asked for, by a judge, over scales of classifier-free guidance.

The same seeds are asked for nothing, and for the lowest and the highest value of every label that the judge tells, all
others unknown. The judge is a `CropClassifier` of clean images, trained on other people than the generator; with
`--fold` it is tested on people whom it has not seen either. Intervals leave out a person at a time, whose seed it is.

    python -m benchmarks.label_control --ckpt_path runs/vdm_linear_xrays/checkpoints/last.ckpt
        --judge runs/crop_judge_xrays/checkpoints/last.ckpt --fold "1 of 2"
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.data import data_of
from lit_medgen.callbacks.report import judge_of
from lit_medgen.evaluation.control import controls
from lit_medgen.evaluation.judges import Judging
from lit_medgen.loading import build_method, config_of, restore
from lit_medgen.metrics.base import mean_over_people
from lit_medgen.training.conditional import Conditional


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="of a model that is told labels")
    parser.add_argument("--judge", required=True, help="checkpoint of a CropClassifier of clean images")
    parser.add_argument("--fold", help="data.init_args.fold of the people on whom the judge is tested")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="of the guidance")
    parser.add_argument("--num", type=int, default=32, help="seeds")
    parser.add_argument("--num_steps", type=int, help="of the sampler; its own unless given")
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    config = config_of(Path(options.ckpt_path))
    data = data_of(config["data"], **({"fold": options.fold} if options.fold else {}))
    if options.num_steps:
        config["model"]["init_args"]["sampler"]["init_args"]["num_steps"] = options.num_steps
    model = build_method(config)
    assert isinstance(model, Conditional)
    restore(model.eval(), Path(options.ckpt_path))
    judging = judge_of(options.judge, model, data, options.batch_size, torch.device("cpu"))
    table = Table("label", "scale", "asked for nothing", "for the lowest", "for the highest", "difference", "judge")
    unasked = not_asked(judging, options.num)
    for scale in options.scales:
        model.conditioning = replace(model.conditioning, guidance_scale=scale)
        for name, control in controls(judging, data, options.num).items():
            plain = mean_over_people(unasked[name], [str(i) for i in range(len(unasked[name]))])
            cells = [in_words({"value": plain.value, "ci95": plain.interval})]
            cells += [in_words(control.rows[f"{name}_{end}"]) for end in ("low", "high", "difference", "judge")]
            table.add_row(name, f"{scale:g}", *cells)
            print(name, scale, *cells, flush=True)  # the others take minutes
    Console(width=160).print(table)


def not_asked(judging: Judging, num: int) -> dict[str, Tensor]:
    """What the judge says of images that were asked for nothing: label -> n, float64."""
    like = judging.like.chosen(range(num), judging.like.seeds[:num])
    found: dict[str, list[Tensor]] = {name: [] for name in judging.names}
    for images in judging.show(like):
        for name, said in judging.judge.judged(images.to(judging.device)).items():
            if name in found:
                found[name].append(said.double().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def in_words(row: Mapping[str, Any]) -> str:
    """A score with its interval."""
    low, high = row["ci95"] or (float("nan"), float("nan"))
    return f"{row['value']:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
