"""`Conditional`: a method whose network is told covariates, any subset of them.

Numbers reach the network scaled to [0, 1] over the training people. In training each covariate is dropped at random by
itself, so that any subset can be asked for, and all of a condition together, for classifier-free guidance (Ho &
Salimans 2022, algorithm 1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec, Part, Request, Score, TrainingData
from lit_medgen.diffusion import ClassifierFree, Denoises
from lit_medgen.errors import InputError
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates
from lit_medgen.training.condition_effect import Swaps, differing, relative_change, scores_of, swapped
from lit_medgen.training.generator import Generator
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

KEY = "model.init_args.conditioning"
MAX_MEASURED = 128
"""Images whose conditions are swapped in a validation, by each process, and for a report."""
MEASURED_AT_ONCE = 16
"""Images of a batch within which they are swapped for a report."""
NUM_REPEATS = 2
"""Times and noises of each image for a report."""


@dataclass(frozen=True)
class Conditioning:
    """How a network learns what it is told, and how strongly that guides sampling.

    Attributes:
        drop_probability: probability that the whole condition of a training image is dropped.
        drop_each_probability: probability that one covariate of a training image is dropped, independently for each of
            several, so that images can be asked for by any of them alone.
        guidance_scale: scale of classifier-free guidance; 1 is the conditional model, 0 ignores the condition.
        guidance_interval: two times in [0, 1]: there is guidance after the first, up to and with the second; at others
            the scale is 1.
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

    def scale_at(self, t: float) -> float:
        """The scale of guidance at a time in [0, 1]: 1 outside the interval, which holds its end, not its start."""
        low, high = self.guidance_interval
        return self.guidance_scale if low < t <= high else 1.0


class Conditional(Generator):
    """A method that makes images from covariates.

    Parts named in `kept`, and attributes, are no covariates, such as a label map: training never drops them, and
    guidance keeps them. The condition alarm measures them together, by the name of the first.

    Args:
        covariates: those of its network.
        conditioning: how they are learned, and guide; None: dropped as often as its defaults say, without guidance.
        optimizer: makes the optimizer.
        learning_rate_schedule: factor of the optimizer's rate at each step.
    """

    kept: tuple[str, ...] = ()

    def __init__(
        self,
        covariates: Covariates | None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        self.conditioning = conditioning or Conditioning()
        self.take_covariates(covariates or Covariates())

    def take_covariates(self, covariates: Covariates) -> None:
        """Takes those of its network; ValueError for guidance where there are none."""
        self.covariates = covariates
        if self.conditioning.guidance_scale != 1 and not self.covariates:
            raise ValueError(
                f"{KEY}.guidance_scale is {self.conditioning.guidance_scale}, but the network has no covariates "
                "(model.init_args.network, key covariates); there is nothing to guide to."
            )
        self.attributes = self.covariates.names
        labels = [name for names in self.covariates.labels.values() for name in names]
        self.categories = {**self.covariates.categories, **dict.fromkeys(labels, 2)}
        parts: list[Part] = ["attributes"] if self.attributes else []
        parts += ["text"] if self.covariates.text_channels else []
        parts += ["image"] if self.completes_regions and "source" not in self.required else []
        self.optional = tuple(parts)

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
        key = "model.init_args.network, key covariates"
        for name, num in self.categories.items():
            low, high = spec.attributes[name]
            if low < 0 or high > num - 1 or name in spec.fractional:
                found = f"goes from {low:g} to {high:g}" + (", not all whole" if name in spec.fractional else "")
                raise InputError(
                    f"{key}: {name} is 0 to {num - 1}, in whole numbers, but in the data it {found}; give the number "
                    "of its values in covariates.categories, or name it in covariates.numbers."
                )
        if spec.text_size and self.covariates.text_channels:
            tokens, channels = spec.text_size
            if channels != self.covariates.text_channels or tokens > self.covariates.text_tokens:
                raise InputError(
                    f"{key}: texts of {self.covariates.text_tokens} tokens with {self.covariates.text_channels} "
                    f"channels, but data.init_args.text has {tokens} with {channels}; give text_tokens {tokens} and "
                    f"text_channels {channels}."
                )

    def setup(self, stage: str) -> None:
        """Gives the network the embedded empty text of the data too."""
        super().setup(stage)
        reads_texts = stage == "fit" and self.has_data and self.covariates.text_channels > 0
        null = self.data.text_null() if reads_texts else None
        for network in self.networks_for_speed() if null is not None else ():
            for part in network.modules():
                if isinstance(part, ConditionEncoder) and null is not None:
                    part.set_null_text(null)

    def scaled(self, condition: Condition) -> Condition:
        """What of a condition the network reads; numbers with the range of the training people brought to [0, 1].

        A given region is no part of it: sampling keeps that, whatever the network.
        """
        condition = condition.only({*self.required, *self.optional} - {"image"}, self.covariates.names)
        attributes = dict(condition.attributes)
        for name in self.covariates.numbers:
            if name in attributes:
                low, high = self.needed_spec().attributes[name]
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
        return condition.drop(chance[-1] < self.conditioning.drop_probability, self.kept)

    def classifier_free(self, denoiser: Denoises) -> Denoises:
        """The denoiser with classifier-free guidance, where there is any."""
        how = self.conditioning
        if how.guidance_scale == 1:
            return denoiser
        return ClassifierFree(denoiser, how.guidance_scale, how.guidance_interval, how.guidance_rescale, self.kept)

    @property
    def guidance_scales(self) -> dict[str, float]:
        """That of classifier-free guidance, where there are covariates, with those of the parent."""
        own = {"guidance_scale": self.conditioning.guidance_scale} if self.covariates else {}
        return super().guidance_scales | own

    @contextmanager
    def guided_by(self, scales: Mapping[str, float]) -> Iterator[None]:
        """Samples within take these scales too."""
        before = self.conditioning
        with super().guided_by(scales):
            try:
                self.conditioning = replace(before, guidance_scale=scales.get("guidance_scale", before.guidance_scale))
                yield
            finally:
                self.conditioning = before

    @contextmanager
    def as_in_evaluation(self) -> Iterator[None]:
        """Evaluation mode and no gradients within; torch's generator is afterwards as it was."""
        was_training = self.training
        self.eval()
        with torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield
        self.train(was_training)

    # The condition alarm.

    def measured(self, batch: Batch) -> tuple[Batch, Condition]:
        """What the condition alarm predicts for, and its condition as the network reads it."""
        return batch, self.scaled(batch.condition)

    @property
    def swapped_groups(self) -> dict[str, tuple[str, ...]]:
        """What the condition alarm measures: name -> attributes and parts of a condition that are swapped together.

        These are the groups of covariates, the text, and what an image is made from, such as its label map.
        """
        found: dict[str, tuple[str, ...]] = {name: tuple(names) for name, names in self.covariates.groups.items()}
        if self.covariates.text_channels:
            found["text"] = ("text",)
        return found | ({self.kept[0]: self.kept} if self.kept else {})

    def on_validation_epoch_start(self) -> None:
        """Forgets the effect of conditions in the last validation."""
        super().on_validation_epoch_start()
        self._effect = torch.zeros(2, device=self.device)  # sum over images, and how many these are
        self._num_measured = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss too, and on the first images the effect of swapping their conditions."""
        super().validation_step(batch, batch_idx)
        if self.swapped_groups and self._num_measured < MAX_MEASURED:
            self._num_measured += len(batch.image)
            (found,) = self._swaps(batch, [None], "val", batch_idx * self._first_batch[0])
            change = found.change.masked_fill(~found.differs, 0)
            self._effect += torch.stack([change.sum(), found.differs.sum()])

    def on_validation_epoch_end(self) -> None:
        """Logs the effect of conditions, over the images of all processes, as `val/condition_effect`."""
        super().on_validation_epoch_end()
        if not self.swapped_groups:
            return
        if self.trainer.world_size > 1:
            dist.all_reduce(self._effect)
        total, num = self._effect.tolist()
        if num:  # else no two images had different conditions
            self.log_dict({"val/condition_effect": torch.tensor(total / num)})

    @torch.no_grad()
    def _swaps(
        self, batch: Batch, choices: Sequence[Collection[str] | None], stage: str, first_image: int, repeat: int = 0
    ) -> list[Swaps]:
        """What swaps of the named attributes and parts (None: of all) do to the images of a batch, at equal noise."""
        num = len(batch.image)
        self._seed(stage, first_image * NUM_REPEATS + repeat)
        batch, condition = self.measured(batch)

        def predicted(given: Condition) -> tuple[Tensor, Tensor]:
            self._seed(stage, first_image * NUM_REPEATS + repeat)
            with self.evaluating(stage, first_image, repeat, NUM_REPEATS):
                return self.prediction(batch, given)

        (own, error), found = predicted(condition), []
        for names in choices:
            given = swapped(condition, names)
            other, their_error = predicted(given)
            differs = differing(condition, given, num, own.device)
            found.append(Swaps(relative_change(own, other), (their_error - error).float(), differs))
        return found

    def scores(self, data: TrainingData) -> dict[str, Score]:
        """The effect of conditions on the predictions of test images too, and the gain in their error."""
        if not (groups := self.swapped_groups):
            return super().scores(data)
        requests, everybody = data.requests("test"), data.people("test")
        order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(0))[:MAX_MEASURED].tolist()
        choices: list[Collection[str] | None] = [None, *(groups.values() if len(groups) > 1 else ())]
        found: list[list[Swaps]] = []
        people: list[str] = []
        with self.as_in_evaluation():
            for start in range(0, len(order), MEASURED_AT_ONCE):
                batch = _batch_of(requests.joined(order[start : start + MEASURED_AT_ONCE])).to(self.device)
                for repeat in range(NUM_REPEATS):
                    found.append(self._swaps(batch, choices, "test", start, repeat))
                    people += [everybody.get(key, "") for key in batch.key]
        names = ["", *(groups if len(groups) > 1 else ())]
        swaps = {name: Swaps.join(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}
        return super().scores(data) | scores_of(swaps, people)


def _batch_of(request: Request) -> Batch:
    """The true images of a request, as a batch."""
    assert request.target is not None
    affine = torch.eye(4).expand(len(request.seeds), 4, 4) if request.affine is None else request.affine
    return Batch(request.target, request.key, affine, request.condition)
