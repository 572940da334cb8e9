"""An evaluation at the end of training, so that a sweep can compare runs by any score."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lit_medgen.batch import Images, Requests, TrainingData
from lit_medgen.callbacks.ema import averaged
from lit_medgen.callbacks.run_folder import run_folder
from lit_medgen.checkpoints import checkpoint_file
from lit_medgen.errors import MissingDataError
from lit_medgen.evaluation import checks
from lit_medgen.evaluation.judges import Judging, refuse_unfit_judge
from lit_medgen.evaluation.report import CPU, Maker, evaluate
from lit_medgen.loading import load
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.sample_reading import Samples
from lit_medgen.sampling import like_people, paired
from lit_medgen.sampling import samples as samples_of
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method


class Report(Callback):
    """After the last step: samples against the test people, to `<run folder>/report/` and the loggers.

    The same as `evaluate` with as many samples, but without their files; of a method that makes no images its own
    scores, where it has some. Scores are logged as `metrics.<name>.value`.

    Args:
        num: how many samples, seeds 0, 1, ...; None: as many as there are images of test people.
        batch_size: images made at once.
        features: as `evaluate --features`.
        strips: as `evaluate --strips`.
        judge: as `evaluate --judge`.
    """

    def __init__(
        self,
        num: int | None = None,
        batch_size: int = 16,
        features: str = "learned",
        strips: bool = True,
        judge: str | None = None,
    ) -> None:
        self.num, self.batch_size, self.features, self.strips = num, batch_size, features, strips
        self.judge = judge

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """InputError before the first step for what the report would refuse after the last."""
        if isinstance(pl_module, Generator) and pl_module.has_data:
            data = pl_module.data
            refuse_unfit(pl_module, data, like_people(pl_module, data, "test", self.num), self.features)
            if self.judge:
                judge_of(self.judge, pl_module, data)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """InputError before the first step if the report's folder holds what is not of a report."""
        if stage == "fit" and trainer.is_global_zero:
            check_report(run_folder(trainer) / "report")

    def write(self, trainer: Trainer, model: LightningModule) -> None:
        """Called by our trainer when a run has done its steps, now or before it was started again.

        On the first process; the others go on to the end.
        """
        folder = run_folder(trainer) / "report"
        if not trainer.global_step >= trainer.max_steps > 0 or not trainer.is_global_zero:
            return
        if (written := _written(folder)).get("source") == source(trainer):
            # Logs in the run folder went back to the last step, before the scores; W&B keeps what it was told.
            loggers = [logger for logger in trainer.loggers if hasattr(logger, "rewind")]
            _log(written, loggers, trainer.global_step)
            return
        with averaged(trainer, model):
            if isinstance(model, Generator):
                report = self._of_samples(trainer, model, folder)
            elif isinstance(model, Method) and type(model).scores is not Method.scores:
                report = score_alone(model, model.data, folder, source(trainer), run_folder(trainer).name)
            else:
                return
        _log(report, trainer.loggers, trainer.global_step)

    def _of_samples(self, trainer: Trainer, model: Generator, folder: Path) -> dict[str, Any]:
        requests = like_people(model, model.data, "test", self.num)
        images = torch.cat(list(samples_of(model, requests, self.batch_size)))
        made, device = Samples(Images.of(images), requests.made_from), trainer.strategy.root_device
        num_at_once = self.batch_size if self.strips else None
        said = source(trainer), self.features
        judging = judge_of(self.judge, model, model.data, self.batch_size, device) if self.judge else None
        where = model, model.data, folder, *said
        name = run_folder(trainer).name
        return score(made, *where, device=device, num_at_once=num_at_once, judging=judging, name=name)


def _written(folder: Path) -> dict[str, Any]:
    """The report in a folder; empty where there is none."""
    file = folder / "report.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _log(report: Mapping[str, Any], loggers: Sequence[Logger], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(logged(report), step=step)


def check_report(folder: Path) -> None:
    """InputError if a report's folder holds files that `evaluate` did not write."""
    checks.report_files(folder).check()


def source(trainer: Trainer) -> str:
    """What the report says of where samples came from."""
    return f"step {trainer.global_step} of {run_folder(trainer).name}"


def score(
    samples: Samples,
    model: Generator,
    data: TrainingData,
    folder: Path,
    source: str,
    features: str,
    seconds_per_image: float | None = None,
    device: torch.device | None = None,
    has_weights: bool = True,
    num_at_once: int | None = None,
    judging: Judging | None = None,
    name: str = "",
    quartets: int = 0,
) -> dict[str, Any]:
    """The report of a model's samples, as `evaluation.report` writes it into the folder.

    A sample's target is found by the key of the data's image that it was made from. `source` says where the samples
    came from, `name` is that of the run, `features` is that of `evaluate`, `seconds_per_image` are over all processes
    together. Scores are computed on the device (None: the CPU); a trained model (`has_weights`) may have scores of its
    own. With `num_at_once` it also shows what each attribute does, so many images made at once; with `judging` whether
    images show what they are asked to; with `quartets` a reader study of so many is written beside.
    """
    if device and has_weights:
        model.to(device)  # after `predict` it is on the CPU
    maker = Maker(
        type(model).__name__,
        name=name,
        parameters=model.num_parameters if has_weights else None,
        network_evaluations=model.network_evaluations,
        seconds_per_image=seconds_per_image,
        seams=model.seams(),
        prior=model.prior_samples,
        scores=model.scores if has_weights else None,
        plots=model.plots if has_weights else None,
        predictions=model.predictions if has_weights else None,
        trajectory=partial(_trajectory, model, data) if has_weights else None,
        show=partial(samples_of, model, batch_size=num_at_once) if num_at_once else None,
        attributes=model.attributes,
        covariates=getattr(model, "covariates", Covariates()),
        source_of=None if type(model).source_of is Generator.source_of else model.source_of,
        baselines=model.baselines,
        source=sources_of(model, data),
        like=like_people(model, data, "test", None).only(model.required, ())
        if num_at_once and model.required
        else None,
    )
    completed = any({"given", "mask"}.intersection(row) for row in samples.made_from)
    images, targets = samples.images, targets_of(samples.made_from, data) if paired(model) or completed else None
    if targets is not None and not set(targets) - {None}:
        targets = None  # made from files, or from others than the test people: there is nothing to compare pairs with
    if targets is not None:
        people = data.images("test", one_per_person=True).people
        images = replace(images, people=["" if target is None else people[target] for target in targets])
    return evaluate(
        images, data, folder, maker, source, features, targets, device or CPU, samples.made_from, judging, quartets
    )


def judge_of(
    path: str, model: Generator, data: TrainingData, batch_size: int = 1, device: torch.device | None = None
) -> Judging:
    """The judge of a checkpoint, for images of this model; InputError if it cannot judge them."""
    if not Path(checkpoint_file(path)).is_file():
        raise MissingDataError(
            f"--judge: no file '{path}'; make it with `python -m lit_medgen fit --config configs/crop_judge.yaml`, or "
            "give the checkpoint of yours."
        )
    judge = load(path)
    refuse_unfit_judge(judge, path, data.spec, model.attributes)
    device = device or CPU
    return Judging(
        judge.to(device),
        path,
        show=partial(samples_of, model, batch_size=batch_size),
        like=like_people(model, data, "test", None).only(model.required, ()),
        attributes=model.attributes,
        covariates=getattr(model, "covariates", Covariates()),
        device=device,
    )


@torch.no_grad()
def _trajectory(model: Generator, data: TrainingData) -> Tensor | None:
    """k c *s: how the first sample is made, from what the first of the test people's image is made from."""
    if type(model).trajectory is Generator.trajectory:
        return None
    first = like_people(model, data, "test", 1).joined([0])
    return model.trajectory(first.condition.to(model.device), first.seeds[0])


def score_alone(model: Method, data: TrainingData, folder: Path, source: str, name: str = "") -> dict[str, Any]:
    """The report of a method that makes no images: its own scores, plots and predictions; `name` is that of the run."""
    maker = Maker(type(model).__name__, name, scores=model.scores, plots=model.plots, predictions=model.predictions)
    return evaluate(None, data, folder, maker, source)


def sources_of(model: Generator, data: TrainingData) -> Callable[[int], Tensor | None] | None:
    """Index of a test image -> the source that a sample in its place is made from, 1 c *s; None where it has none.

    None for a method without sources, or with others than images of the same size and number of channels.
    """
    spec = data.spec
    if model.reconstructs or "source" not in {*model.required, *model.optional}:
        return None
    if tuple(spec.source_size) != tuple(spec.size) or len(spec.sources) != spec.channels:
        return None
    requests = data.requests("test")
    numbers = {row["key"]: number for number, row in enumerate(requests.made_from)}
    keys = data.images("test", one_per_person=True).keys

    def source(index: int) -> Tensor | None:
        found = requests.read(numbers[keys[index]]).condition.source
        return None if found is None or found.isnan().any() else found

    return source


def targets_of(made_from: Sequence[Mapping[str, Any]], data: TrainingData) -> list[int | None]:
    """For each sample the index of the test image that it should be; None where it was made from something else."""
    index = {key: i for i, key in enumerate(data.images("test", one_per_person=True).keys)}
    return [index.get(row.get("key", "")) for row in made_from]


def refuse_unfit(model: Generator, data: TrainingData, requests: Requests, features: str) -> None:
    """InputError for whatever `score` would refuse of these requests, before hours are spent on samples."""
    num = len(requests)
    if paired(model):
        people = data.images("test", one_per_person=True).people
        num = len({people[target] for target in targets_of(requests.made_from, data) if target is not None})
    checks.refuse_unfit(data, num, features)


def logged(report: Mapping[str, Any]) -> dict[str, float]:
    """What loggers get of a report: every score, also those of pairs, of agreement, of a judge and the method's own."""
    return {name: row["value"] for name, row in _rows(report).items()}


def intervals(report: Mapping[str, Any]) -> dict[str, list[float]]:
    """The 95 % intervals of the scores that have one, by the names that loggers get."""
    return {name: list(row["ci95"]) for name, row in _rows(report).items() if row.get("ci95")}


def _rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The row of every score of a report that could be measured, by the name that loggers get."""
    parts = {part: report.get(part, {}) for part in ("metrics", "pairs", "agreement", "control", "own")}
    named = {f"{part}.{name}.value": row for part, rows in parts.items() for name, row in rows.items()}
    return {name: row for name, row in named.items() if row["value"] is not None}
