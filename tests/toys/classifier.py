"""A method that makes no image: its own score is all that is reported of it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lit_medgen.batch import Batch, DataSpec, Score, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.training.method import Method


class SexClassifier(Method):
    """Tells the sex of a person from an image."""

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-2))
        self.network = nn.Sequential(
            nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 1)
        )

    def check(self, spec: DataSpec) -> None:
        """InputError for data that does not tell the sex."""
        if "sex" not in spec.codes:
            raise InputError("data.init_args: 'sex' is no attribute of the images, which this classifier learns.")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, and how often it is right."""
        logits, sex = self.network(batch.image)[:, 0], batch.condition.attributes["sex"]
        accuracy = ((logits > 0) == (sex > 0.5)).float().mean()
        return {"loss": binary_cross_entropy_with_logits(logits, sex), "accuracy": accuracy}

    @torch.no_grad()
    def scores(self, data: TrainingData) -> dict[str, Score]:
        """Area under the ROC curve: how often a man has a higher logit than a woman."""
        logits: dict[bool, list[Tensor]] = {True: [], False: []}
        for batch in data.stored("test"):
            sex = bool(batch.condition.attributes["sex"][0] > 0.5)
            logits[sex].append(self.network(batch.image.to(self.device))[:, 0].cpu())
        men, women = torch.cat(logits[True]), torch.cat(logits[False])
        higher = (men[:, None] > women).float().mean().item()
        return {"auc_sex": Score(higher, "area under the ROC curve of sex, test people", num=len(men) + len(women))}
