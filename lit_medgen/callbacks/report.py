"""An evaluation at the end of training, so that a sweep can compare runs by any score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.callbacks.ema import averaged
from lit_medgen.callbacks.run_folder import run_folder
from lit_medgen.errors import InputError
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.method import Generator, Requests


class Report(Callback):
    """After the last step: samples against the test people, to `<run folder>/report/` and the loggers.

    The same as `evaluate` with as many samples, but without their files. Scores are logged as `metrics.<name>.value`.

    Args:
        num: how many samples, seeds 0, 1, ...; None: as many as there are images of test people.
        batch_size: images made at once.
        features: as `evaluate --features`.
    """

    def __init__(self, num: int | None = None, batch_size: int = 16, features: str = "learned") -> None:
        self.num, self.batch_size, self.features = num, batch_size, features

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """InputError before the first step for what the report would refuse after the last."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(pl_module, Generator) and data is not None:
            refuse_unfit(pl_module, data, len(requests(pl_module, data, self.num).seeds), self.features)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """InputError before the first step if the report's folder holds what is not of a report."""
        if stage == "fit" and trainer.is_global_zero:
            check_report(run_folder(trainer) / "report")

    def write(self, trainer: Trainer, model: LightningModule) -> None:
        """Called by our trainer when a run has done its steps, now or before it was started again.

        On the first process; the others go on to the end.
        """
        folder = run_folder(trainer) / "report"
        file = folder / "report.json"
        there = file.is_file() and json.loads(file.read_text())["source"] == source(trainer)
        due = trainer.global_step >= trainer.max_steps > 0 and not there
        if due and trainer.is_global_zero and isinstance(model, Generator):
            with averaged(trainer, model):
                self._report(trainer, model, folder)

    def _report(self, trainer: Trainer, model: Generator, folder: Path) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        give_originals(model, data)
        asked = requests(model, data, self.num)
        parts = [asked.some(places.tolist()) for places in torch.arange(len(asked.seeds)).split(self.batch_size)]
        samples = torch.cat([model.predict_step(part) for part in parts])
        report = score(
            samples, model, data, folder, source(trainer), self.features, device=trainer.strategy.root_device
        )
        for logger in trainer.loggers:
            logger.log_metrics(logged(report), step=trainer.global_step)


def check_report(folder: Path) -> None:
    """InputError if a report's folder holds files that `evaluate` did not write."""
    from lit_medgen.evaluation.checks import report_files  # heavy

    report_files(folder).check()


def source(trainer: Trainer) -> str:
    """What the report says of where samples came from."""
    return f"step {trainer.global_step} of {run_folder(trainer).name}"


def score(
    samples: Tensor,
    model: Generator,
    data: Any,
    folder: Path,
    source: str,
    features: str,
    seconds_per_image: float | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """The report of a model's samples, as `evaluation.report` writes it, computed on the device (None: the CPU)."""
    from lit_medgen.evaluation.report import CPU, Maker, evaluate  # heavy

    maker = Maker(
        type(model).__name__,
        seconds_per_image=seconds_per_image,
        seams=model.seams(),
        prior=model.prior_samples,
        scores=model.scores,
    )
    people = data.images("test", one_per_person=True).people if isinstance(model, FirstStage) else None
    images = Images.of(samples, people and people[: len(samples)])
    targets = None if people is None else range(len(samples))
    return evaluate(images, data, folder, maker, source, features, targets, device or CPU)


def refuse_unfit(model: Generator, data: Any, num_samples: int, features: str) -> None:
    """InputError for whatever `score` would refuse, before hours are spent on samples.

    Args:
        model: what will make them.
        data: set up, with people in parts.
        num_samples: how many there will be.
        features: as `evaluate --features`.
    """
    from lit_medgen.evaluation import checks  # heavy

    num_made = num_samples // data.images_per_person if isinstance(model, FirstStage) else num_samples
    checks.refuse_unfit(data, num_made, features)


def give_originals(model: Generator, data: Any) -> None:
    """Gives a first stage the images of the test people to reconstruct."""
    if isinstance(model, FirstStage):
        model.originals = data.images("test", one_per_person=True).all()


def requests(model: Generator, data: Any, num: int | None) -> Requests:
    """So many images, seeds 0, 1, ..., asked to show what the test people are, one after the other.

    None: as many as there are images of test people.
    """
    num = num or len(set(data.people("test").values())) * data.images_per_person
    people = data.attributes_of("test") if model.asked else {}
    for name in model.asked:
        if not people.get(name):
            raise InputError(f"data.init_args: no {name!r} of the test people, which this model is made from.")
    shown = {name: (people[name] * (num // len(people[name]) + 1))[:num] for name in model.asked}
    return Requests(list(range(num)), shown)


def logged(report: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """What loggers get of a report: every score, also those of pairs and the method's own."""
    parts = {part: report.get(part, {}) for part in ("metrics", "pairs", "own")}
    return {f"{part}.{name}.value": row["value"] for part, rows in parts.items() for name, row in rows.items()}
