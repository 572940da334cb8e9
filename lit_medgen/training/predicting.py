"""`Predicting`: a method that makes no images but tells labels of them; its skill in validation and in a report.

Shapes: b images, k labels, m times.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lit_medgen.batch import Batch, Score, TrainingData
from lit_medgen.images.plots import save_skill
from lit_medgen.training.label_likelihoods import Kind
from lit_medgen.training.label_skill import Predicted, Skill
from lit_medgen.training.method import Method

AT_ONCE = 32
"""Images of test people that are looked at together."""


class Predicting(Method):
    """Tells labels of images, with more or less noise in them."""

    skill_of = ("images of test people", "the same with noise")
    """What scores are of, without noise and with it."""
    _found: tuple[Predicted, ...] = ()
    _skill: Skill | None = None

    @property
    @abstractmethod
    def outputs(self) -> dict[str, Kind]:
        """Label -> `binary` or `number`."""

    @property
    def skill_times(self) -> tuple[float, ...]:
        """The m times of the noise that skill is measured at; the first is 0."""
        return (0.0,)

    @abstractmethod
    def predicted(self, batch: Batch, people: Mapping[str, str]) -> Predicted:
        """What it tells of each image at `skill_times`; of the image and its key alone.

        Args:
            batch: the images.
            people: key -> whose image it is (hashed).
        """

    def on_validation_epoch_start(self) -> None:
        """Forgets the predictions of the last validation."""
        self._found = ()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss, and predictions, which stay on this process until the end."""
        super().validation_step(batch, batch_idx)
        self._found += (self.predicted(batch, self.data.people("val") if self.has_data else {}),)

    def on_validation_epoch_end(self) -> None:
        """Logs AUC and R^2 without noise over the predictions of all processes."""
        found = [Predicted.join(self._found)] if self._found else []
        if self.trainer.world_size > 1:
            shares: list[list[Predicted]] = [found] * self.trainer.world_size
            dist.all_gather_object(shares, found)
            found = [part for share in shares for part in share]
        if not found:
            return
        self._skill, self._found = Skill(Predicted.join(found), self.outputs, self.skill_times), ()
        self.log_dict({f"val/{name}": value for name, value in self._skill.clean().items()})

    @torch.no_grad()
    def scores(self, data: TrainingData) -> dict[str, Score]:
        """AUC of each binary label and R^2 of each number over images of the test people, at each time."""
        people = data.people("test")
        parts = [self.predicted(batch.to(self.device), people) for batch in _test_images(data)]
        if not parts:
            return {}
        self._skill = Skill(Predicted.join(parts), self.outputs, self.skill_times)
        return self._skill.scores(*self.skill_of)

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """AUC and R^2 against time, of the last validation or the last `scores`, where there are several times."""
        if self._skill is None or len(self.skill_times) == 1:
            return {}
        panels = self._skill.panels()
        return {"skill": lambda path: save_skill(path, panels)} if panels else {}

    def predictions(self) -> list[dict[str, Any]]:
        """A row for each image of the last `scores`: its labels, and what is predicted of it without noise."""
        return [] if self._skill is None else self._skill.rows()


def _test_images(data: TrainingData) -> Iterator[Batch]:
    """The images of the test people, some at a time."""
    images = iter(data.stored("test"))
    while parts := list(islice(images, AT_ONCE)):
        yield Batch.join(parts)
