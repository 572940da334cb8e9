"""`Conditional`: a method whose network is told covariates, any subset of them.

Numbers reach the network scaled to [0, 1] over the training people. In training each covariate is dropped at random by
itself, so that any subset can be asked for, and all of a condition together, for classifier-free guidance (Ho &
Salimans 2022, algorithm 1).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec, Part
from lit_medgen.errors import InputError
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.training.generator import Generator
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

KEY = "model.init_args.conditioning"


@dataclass(frozen=True)
class Conditioning:
    """How a network learns what it is told, and how strongly that guides sampling.

    Attributes:
        drop_probability: probability that the whole condition of a training image is dropped.
        drop_each_probability: probability that one covariate of a training image is dropped, independently for each of
            several, so that images can be asked for by any of them alone.
        guidance_scale: scale of classifier-free guidance; 1 is the conditional model, 0 ignores the condition.
        guidance_interval: times in [0, 1] between which there is guidance; outside it the scale is 1.
        guidance_rescale: share in [0, 1] by which the guided prediction is brought back to the standard deviation of
            the conditional one.
    """

    drop_probability: float = 0.1
    drop_each_probability: float = 0.1
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        """ValueError for what is no probability below 1, no interval of times, no share."""
        for name in ("drop_probability", "drop_each_probability"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ValueError(f"{KEY}.{name} is {share}; give a number from 0 to below 1.")
        if not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            raise ValueError(
                f"{KEY}.guidance_interval is {list(self.guidance_interval)}; give two times in [0, 1], the smaller "
                "first."
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"{KEY}.guidance_rescale is {self.guidance_rescale}; give a number from 0 to 1.")


class Conditional(Generator):
    """A method that makes images from covariates.

    Args:
        covariates: those of its network.
        conditioning: how they are learned, and guide; None: dropped as often as its defaults say, without guidance.
        optimizer: makes the optimizer.
        learning_rate_schedule: factor of the optimizer's rate at each step.
    """

    def __init__(
        self,
        covariates: Covariates | None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        self.covariates, self.conditioning = covariates or Covariates(), conditioning or Conditioning()
        if self.conditioning.guidance_scale != 1 and not self.covariates:
            raise ValueError(
                f"{KEY}.guidance_scale is {self.conditioning.guidance_scale}, but the network has no covariates "
                "(model.init_args.network, key covariates); there is nothing to guide to."
            )
        self.attributes = self.covariates.names
        parts: list[Part] = ["attributes"] if self.attributes else []
        self.optional = (*parts, "text") if self.covariates.text_channels else tuple(parts)

    @abstractmethod
    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """What the network predicts for a batch, b ..., without guidance, and the error of each image's prediction, b.

        Noise and times are those of the loss, from torch's generator and `times`; called again with the generator as it
        was, all but the condition is the same.

        Args:
            batch: images or latents, on the device.
            condition: as `scaled` gives it.
        """

    def check(self, spec: DataSpec) -> None:
        """InputError too for attributes whose values are no categories or labels."""
        super().check(spec)
        for name, num in self.covariates.categories.items():
            low, high = spec.attributes[name]
            if low < 0 or high > num - 1 or low % 1 or high % 1:
                raise InputError(
                    f"model.init_args.network, key covariates.categories: {name} has {num} values, so 0 to {num - 1}, "
                    f"but in the data it goes from {low:g} to {high:g}; give the number of its values, or name it "
                    "among covariates.numbers."
                )
        for labels in self.covariates.labels.values():
            for name in labels:
                low, high = spec.attributes[name]
                if not {low, high} <= {0, 1}:
                    raise InputError(
                        f"model.init_args.network, key covariates.labels: {name} should be 0 or 1, but in the data it "
                        f"goes from {low:g} to {high:g}; name it among covariates.numbers or categories."
                    )

    def scaled(self, condition: Condition) -> Condition:
        """What of a condition the network reads; numbers with the range of the training people brought to [0, 1]."""
        condition = condition.only({*self.required, *self.optional}, self.attributes)
        ranges, attributes = self.needed_spec().attributes, dict(condition.attributes)
        for name in self.covariates.numbers:
            if name in attributes:
                low, high = ranges[name]
                attributes[name] = (attributes[name] - low) / (high - low or 1.0)  # one value alone: 0
        return replace(condition, attributes=attributes)

    def training_condition(self, condition: Condition, num: int) -> Condition:
        """The condition of `num` images for a loss: scaled; in training, some covariates or all dropped at random."""
        condition = self.scaled(condition)
        if not (self.training and self.covariates):
            return condition
        groups, has_text = self.covariates.groups, self.covariates.text_channels > 0
        chance = torch.rand(len(groups) + has_text + 1, num, device=self.device)
        if len(groups) + has_text > 1:
            each = chance < self.conditioning.drop_each_probability
            rows = {name: each[i] for i, names in enumerate(groups.values()) for name in names}
            condition = condition.drop_attributes({name: rows[name] for name in condition.attributes})
            condition = condition.drop_text(each[len(groups)]) if has_text else condition
        return condition.drop(chance[-1] < self.conditioning.drop_probability)
