"""The utility of samples: what small networks that were trained on them predict of real, unseen people.

    real       trained on training people, tested on test people: the ceiling
    synthetic  trained on as many samples, tested on test people (TSTR; Esteban et al. 2017, "Real-valued (Medical) Time
               Series Generation with Recurrent Conditional GANs"), and the reverse (TRTS)
    exchanged  trained on training people whose targets were exchanged: the floor; beside it, one value for all
    curve      trained on a share of the training people, alone and with samples added

All take equally many updates. The model that made the samples was trained on all training people: a curve says what
its samples add for somebody who has a share of these people, not what a model trained on that share would add.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lit_medgen import __version__
from lit_medgen.batch import TrainingData
from lit_medgen.evaluation.held import Scratch
from lit_medgen.evaluation.utility_page import as_markdown, verdict
from lit_medgen.evaluation.utility_scores import Values, differences, rows_of, values_of_outcomes
from lit_medgen.evaluation.utility_sets import Made, Sets, sets_of
from lit_medgen.evaluation.utility_tasks import MAX_VOXELS, Task, UnfitTaskError
from lit_medgen.evaluation.utility_training import Chosen, Labelled, Training
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.images.utility_plots import save_curves
from lit_medgen.output import say

FILES = ("report.json", "report.md", "curves.png")
SHARES, ADDED = (0.1, 0.25, 0.5, 1.0), (1.0,)
"""Shares of the training people, and of the samples that are added to them."""
MAX_CONSTANT = 256
"""Training images, evenly spread, from which the best constant is taken."""


class Plan(NamedTuple):
    """What is trained on."""

    shares: Sequence[float]
    """Of the training people."""
    added: Sequence[float]
    """Of the samples."""
    num_seeds: int
    """Networks of each kind, each of other people, samples and weights."""


class Arm(NamedTuple):
    """What a network is trained on."""

    people: int
    """Training people."""
    images: int | None
    """Of their images, at most; None: all."""
    samples: int
    """Samples besides."""
    exchanged: bool = False
    """Whether targets of training people are exchanged, see `Labelled.exchanged`."""


def output_files(out: Path) -> Outputs:
    """The files of the verb in its folder."""
    return Outputs(out, "utility", FILES)


def utility(
    samples: Made,
    data: TrainingData,
    names: Sequence[str],
    plan: Plan,
    training: Training,
    facts: Mapping[str, Any],
    skip: bool = False,
) -> dict[str, Any]:
    """The report on samples; UnfitTaskError for a task that has too few people or one value alone.

    Args:
        samples: each of the training person that it was made like, as `utility_sets.owned` gives them.
        data: that their model was trained on, set up.
        names: of the tasks.
        plan: what is trained on.
        training: how it is trained.
        facts: what the report says of where samples came from.
        skip: whether unfit tasks are passed over, with a line, where another is fit.
    """
    tasks, passed = dict[str, Any](), dict[str, UnfitTaskError]()
    for name in names:
        with Scratch(data.cache) as scratch:
            try:
                task, sets = sets_of(name, samples, data, scratch)
            except UnfitTaskError as error:
                if not skip:
                    raise
                passed[name] = error
                say(f"passed over {name}: {_why(error)}")
                continue
            tasks[name] = _Trial(task, sets, plan, training).report()
    if not tasks:
        raise next(iter(passed.values()))
    report: dict[str, Any] = {
        "lit_medgen": __version__,
        **facts,
        "data": data.digest,
        "num_samples": len(samples.images),
        "num_seeds": plan.num_seeds,
        "num_steps": training.num_steps,
        "batch_size": training.batch_size,
        "max_voxels": MAX_VOXELS,
        "passed_over": {name: _why(error) for name, error in passed.items()},
        "tasks": tasks,
    }
    return report | {"verdict": verdict(report)}


def _why(error: UnfitTaskError) -> str:
    return str(error).removeprefix("utility: ")


@dataclass
class _Trial:
    """Trains and tests the networks of one task."""

    task: Task
    sets: Sets
    plan: Plan
    training: Training
    known: dict[Arm, list[nn.Module]] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """All that is reported of the task."""
        train, test, samples = self.sets
        equal = min(len(train), len(samples))
        return {
            "kind": self.task.kind,
            "scores": {score.name: {"higher": score.higher} for score in self.task.scores},
            "size": list(self.task.size),
            "people": {"train": train.num_people, "test": test.num_people},
            "images": {"train": len(train), "test": len(test), "samples": len(samples)},
            "equal": equal,
            "heads": self._heads(equal),
            "curve": [self._point(share) for share in self.plan.shares],
        }

    def _heads(self, equal: int) -> dict[str, Any]:
        """Trained on equally many images of each kind; what is predicted without learning."""
        whole = self.sets.train.num_people
        images = None if equal == len(self.sets.train) else equal
        real, synthetic = Arm(whole, images, 0), Arm(0, None, equal)
        of_real, of_synthetic = self._values(real), self._values(synthetic)
        return {
            "real": rows_of(self.task, of_real),
            "synthetic": rows_of(self.task, of_synthetic),
            "difference": differences(self.task, of_synthetic, of_real),
            "reverse": rows_of(self.task, self._tested(self.known[real], self.sets.samples)),
            "exchanged": rows_of(self.task, self._values(Arm(whole, images, 0, exchanged=True))),
            "constant": self._constant(),
        }

    def _point(self, share: float) -> dict[str, Any]:
        """A share of the training people, alone and with samples."""
        people = max(1, round(share * self.sets.train.num_people))
        alone = self._values(Arm(people, None, 0))
        added = []
        for part in self.plan.added:
            num = max(1, round(part * len(self.sets.samples)))
            values = self._values(Arm(people, None, num))
            added.append(
                {
                    "share": part,
                    "samples": num,
                    "scores": rows_of(self.task, values),
                    "difference": differences(self.task, values, alone),
                }
            )
        return {"share": share, "people": people, "real": rows_of(self.task, alone), "added": added}

    def _values(self, arm: Arm) -> Values:
        """The scores, on the test people, of networks that are trained in this way."""
        new = arm not in self.known
        if new:
            seeds = range(self.plan.num_seeds)
            self.known[arm] = [self.training(self.task, self._chosen(arm, seed), seed) for seed in seeds]
        values = self._tested(self.known[arm], self.sets.test)
        if new:
            score = self.task.scores[0].name
            say(f"{self.task.name}: {_words(arm)}: {score} {float(values[score][:, 0].mean()):.3f}")
        return values

    def _tested(self, networks: Sequence[nn.Module], tested: Labelled) -> Values:
        outcomes = [self.training.outcomes(self.task, network, tested) for network in networks]
        return values_of_outcomes(self.task, outcomes, tested.images.people)

    def _chosen(self, arm: Arm, seed: int) -> Chosen:
        """The images of an arm; those of a smaller one are among those of a larger."""
        train = self.sets.train.exchanged(seed) if arm.exchanged else self.sets.train
        real = [i for some in train.in_order(seed)[: arm.people] for i in some.tolist()][: arm.images]
        made = [i for some in self.sets.samples.in_order(seed) for i in some.tolist()][: arm.samples]
        return [*((train, i) for i in real), *((self.sets.samples, i) for i in made)]

    def _constant(self) -> dict[str, Any]:
        """The scores of predicting the same of all test people."""
        train, test, _ = self.sets
        num = min(len(train), MAX_CONSTANT)
        targets = train.targets([i * len(train) // num for i in range(num)])
        outcomes = self.task.constant(targets, test.all_targets())
        return rows_of(self.task, values_of_outcomes(self.task, [outcomes], test.images.people))


def _words(arm: Arm) -> str:
    """What is trained on, for the terminal."""
    real = f"{arm.images} real images" if arm.images else f"{arm.people} people"
    parts = [real] * bool(arm.people) + [f"{arm.samples} samples"] * bool(arm.samples)
    return f"trained on {' and '.join(parts)}{', targets exchanged' if arm.exchanged else ''}"


def write_utility(out: Path, report: Mapping[str, Any]) -> None:
    """Writes report.json, report.md and curves.png into a folder; earlier ones go."""
    outputs = output_files(out)
    outputs.check()
    outputs.clear()
    outputs.claim()
    write_atomically(out / "report.json", json.dumps(report, indent=2))
    write_atomically(out / "report.md", as_markdown(report))
    save_curves(out / "curves.png", report["tasks"])
    outputs.end()
