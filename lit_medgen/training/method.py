"""`Method`: what every paper's model shares. A subclass gives a loss; a `Generator` also gives samples.

Steps, optimizer, logging, seeding and the checkpoint's facts stand here once; a method file reads as its paper.
"""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_medgen.batch import Batch, DataSpec, Request, Score, TrainingData, sent
from lit_medgen.diffusion.noise_levels import TrainingTimes, dense_near_data, evaluation_times, stratified_times
from lit_medgen.errors import InputError, NonFiniteError, describe
from lit_medgen.seeds import mix
from lit_medgen.training.frozen import refuse_other_people
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.recorded import Recorded

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
"""With weights in half precision, small updates are lost and the losses' mathematics would be as coarse."""

MIN_TIMES = 32
"""Times that a validation or test loss is a mean over, at least: it differs by orders of magnitude between times."""


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW at 1e-4, fused."""
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


@dataclass
class Evaluation:
    """The batch that is being evaluated.

    Attributes:
        stage: "val" or "test".
        first_image: number of its first image among all of this process.
        num_repeats: losses that are taken of it, each at other times.
        repeat: which of them this is.
        timed: whether the loss depends on times at all.
    """

    stage: str
    first_image: int
    num_repeats: int
    repeat: int = 0
    timed: bool = False


class Method(Recorded, ABC):
    """A paper's model: its loss, and how it is trained.

    Args:
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's rate at each step; None: constant.
    """

    reads_images: bool = True
    """Whether training batches hold images; False where they hold latents alone, which are small."""

    def __init__(
        self, optimizer: OptimizerCallable = default_optimizer, learning_rate_schedule: Constant | None = None
    ) -> None:
        super().__init__()
        self._suspects: list[tuple[list[str], dict[str, Tensor]]] = []
        self._evaluation: Evaluation | None = None
        self._step_without_trainer = 0
        self.make_optimizer, self.learning_rate_schedule = optimizer, learning_rate_schedule or Constant()

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor] | Tensor:
        """Scalars; "loss" is minimised, the others are logged. A tensor alone is the loss."""

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if images of this kind do not fit the network; called before they are prepared."""

    def check(self, spec: DataSpec) -> None:
        """InputError if the prepared data does not fit, its shape included; called before the first batch."""
        self.check_shape(spec)

    def before_data(self, shape: DataSpec, resumed_from: Path | None) -> None:
        """Called by `fit` before data is prepared, which may take hours, to refuse what cannot be trained."""
        self.bring_parts(resumed_from)
        self.refuse_other_images(shape, "size", "channels")
        self.check_shape(shape)
        for key in self.optimizer_factories():
            self.optimizer_of(key, [nn.Parameter(torch.zeros(1, 1))])

    def scores(self, data: TrainingData) -> dict[str, Score]:
        """Scores of its own on the data (bits per dimension, an area under a curve), which join a report."""
        return {}

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """Name -> function that writes a PNG to a path: of the last validation (callback `Plots`), or last `scores`."""
        return {}

    def surprise(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """How unlike those of training images are, by the name of each measure; b each, higher is less alike.

        A pure function of each image and its seed, whatever the batch.

        Args:
            images: b c *s in [-1, 1], of which nothing else is known.
            seeds: b, of the noise that is added to each.
        """
        raise NotImplementedError

    def why_no_surprise(self) -> str:
        """Why `surprise` cannot be asked for, in words that follow the method's name; "" where it can."""
        if type(self).surprise is not Method.surprise:
            return ""
        return (
            "has no measure of how unlike its training images others are; take a VDM or an Autoregressive (likelihood),"
            " a DDPM or an LDM (reconstruction), or an autoencoder"
        )

    def predictions(self) -> Sequence[Mapping[str, Any]]:
        """Rows of a table of what the last `scores` predicted of each image, for a report; never names of people."""
        return []

    def networks_for_speed(self) -> list[nn.Module]:
        """Networks that are called as functions, for `trainer.speed`; `network` unless a method says otherwise."""
        network = getattr(self, "network", None)
        return [network] if isinstance(network, nn.Module) else []

    # What `estimate` asks of a method that has no data.

    def rehearsed(self, batch: Batch) -> Batch:
        """Makes what `fit` takes from its data before the first step, of the right shape and of no meaning.

        Returns a batch as `fit` would give it: of latents, say, in place of images.

        Args:
            batch: of images, as the data module gives them.
        """
        return batch

    @contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """Losses within are those of that batch of a run, of a method that has no trainer."""
        self._step_without_trainer = step
        try:
            yield
        finally:
            self._step_without_trainer = 0

    # What surrounds it.

    @property
    def data(self) -> TrainingData:
        """The data that it is trained or tested on; InputError without any."""
        if not self.has_data:
            raise InputError(
                f"{type(self).__name__} needs a data module, not loaders alone; give the trainer one (datamodule=...)."
            )
        return cast(TrainingData, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def has_data(self) -> bool:
        """Whether the trainer has a data module; one that trains with loaders alone has none."""
        return getattr(self._trainer, "datamodule", None) is not None

    @property
    def resumed_from(self) -> Path | None:
        """The checkpoint that training goes on from; None where it begins anew."""
        return getattr(self._trainer, "resumed_from", None)

    # Lightning's hooks.

    def setup(self, stage: str) -> None:
        """Brings the frozen parts; checks the precision, and the spec of the data if there is any, which it takes."""
        if stage == "fit":
            self.bring_parts(self.resumed_from)
        if self.trainer.precision not in PRECISIONS:
            raise InputError(f"trainer.precision is {self.trainer.precision}; give one of {', '.join(PRECISIONS)}.")
        if speed := getattr(self.trainer, "speed", None):
            speed.prepare(self.networks_for_speed())
        if self.has_data and (spec := getattr(self.data, "spec", None)) is not None:
            self._check_data(spec)
            if stage != "fit":  # a model made in Python may be trained on with other people
                refuse_other_people(self.spec, spec, "this model")
            self.spec = spec
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Buffers are identical on all ranks. Broadcasting them would deadlock in validation, where ranks may have
            # different numbers of batches.
            self.trainer.strategy._ddp_kwargs["broadcast_buffers"] = False

    def _check_data(self, spec: DataSpec) -> None:
        """InputError if data does not fit; of a method whose parts come with its checkpoint once they are there."""
        if self.built:
            self.refuse_other_data(spec)
            self.check(spec)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the record; the data that `validate` and `test` meet is checked against parts that come with it."""
        built = self.built
        super().on_load_checkpoint(checkpoint)
        if not built and self.has_data and (spec := getattr(self.data, "spec", None)) is not None:
            self._check_data(spec)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One loss; all randomness of the step comes from (seed, step, rank)."""
        self._seed("train", self._step)
        losses = self.losses(batch)
        self._suspects.append((batch.key, losses))
        self._log_losses("train", losses, batch, on_step=True)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on unseen people, with the same noise every time."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on the test people."""
        self._evaluate("test", batch, batch_idx)

    def optimizer_factories(self) -> dict[str, OptimizerCallable]:
        """Name of the argument -> what it makes optimizers with, in the order of `configure_optimizers`."""
        return {"optimizer": self.make_optimizer}

    def learning_rate_schedules(self) -> dict[str, Constant]:
        """Name of the argument -> the schedule of each optimizer, in the same order."""
        return {"learning_rate_schedule": self.learning_rate_schedule}

    def not_averaged(self) -> Collection[str]:
        """Names of parameters that are trained, but that `EMA` does not average."""
        return ()

    @property
    def num_parameters(self) -> int:
        """Parameters that the method is used with, those of frozen parts included; discriminators are not averaged."""
        left_out = self.not_averaged()
        return sum(each.numel() for name, each in self.named_parameters() if name not in left_out)

    def configure_optimizers(self) -> Any:
        """The optimizer and the learning rate, counted in steps."""
        optimizer = self.optimizer_of("optimizer", [each for each in self.parameters() if each.requires_grad])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_of(self, key: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """What the argument of that name makes; InputError for values that the optimizer's class refuses."""
        try:
            return self.optimizer_factories()[key](parameters)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"model.init_args.{key}: {describe(error)}; look at its init_args.") from error

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """The finite guard, then clipping; called before every optimizer step.

        We clip ourselves: Lightning refuses to with a fused optimizer, whose gradients fp16's scaler leaves scaled.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and _optimizer_handles_unscaling(optimizer):
            scaler.unscale_(optimizer)  # finds infinite gradients too, for which the scaler skips the step
        by_value = gradient_clip_val if gradient_clip_algorithm == "value" else None
        self.guard_and_clip(optimizer, None if by_value else gradient_clip_val)
        if by_value:
            nn.utils.clip_grad_value_(parameters_of(optimizer), by_value)

    def guard_and_clip(self, optimizer: Any, max_norm: float | None, name: str = "gradient_norm") -> None:
        """NonFiniteError, or the gradient with a norm of at most `max_norm`; logs the norm it had."""
        parameters = parameters_of(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaled = self._trainer is not None and self.trainer.precision == "16-mixed"
        self.refuse_non_finite(None if scaled else norm)  # infinite gradients are the scaler's daily business
        self.log(f"train/{name}", norm)
        if max_norm:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)

    def refuse_non_finite(self, gradient_norm: Tensor | None = None) -> None:
        """NonFiniteError if a loss since the last optimizer step, or the norm of its gradient, is NaN or infinite."""
        suspects, self._suspects = self._suspects, []
        losses = [(keys, *loss) for keys, of_batch in suspects for loss in of_batch.items()]
        values = [value.detach().float() for *_, value in losses]
        values += [] if gradient_norm is None else [gradient_norm.float()]
        if torch.stack(values).isfinite().all():  # one wait for the device
            return
        bad = [loss for loss in losses if not loss[2].isfinite()]
        what = ", ".join(f"{name} = {value.item()}" for _, name, value in bad) or f"gradient norm = {gradient_norm}"
        keys = " ".join(dict.fromkeys(key for batch_keys, *_ in bad or losses for key in batch_keys))
        raise NonFiniteError(
            f"step {self.trainer.global_step + 1}: {what}; batch: {keys}; the weights were not changed, and the newest "
            "checkpoint is from before. Look at these volumes of the store, or lower the learning rate."
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches and requests know how to move themselves."""
        return batch.to(device) if isinstance(batch, Batch | Request) else batch

    def __getstate__(self) -> dict[str, Any]:
        # An optimizer factory made by the command line cannot be pickled, which copying for DDP needs.
        factory = re.compile(r"make_(\w+_)?optimizer")
        return {name: value for name, value in self.__dict__.items() if not factory.fullmatch(name)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` by name, "loss" among them; InputError if a method of the user's own returns something else."""
        return named_losses(self.loss(batch), "loss", f"{type(self).__name__}.loss")

    # What the losses of subclasses use.

    def times(self, num: int, t_min: float) -> Tensor:
        """Times for `num` images, b, evenly spread over batch and ranks together; in evaluation over all its images."""
        world_size, rank = (self.trainer.world_size, self.global_rank) if self._trainer else (1, 0)
        if (now := self._evaluation) is not None:
            now.timed = True
            image = (now.first_image + torch.arange(num)) * world_size + rank
            offset = mix("times", self._run_seed, now.stage) / 2**63
            return sent(evaluation_times(image, now.repeat, now.num_repeats, offset, t_min), self.device)
        offset = mix("times", self._run_seed, "train" if self.training else "eval", self._step) / 2**63
        return sent(stratified_times(num, num * world_size, rank * num, offset, t_min), self.device)

    def times_and_shares(
        self, num: int, t_min: float, training_times: TrainingTimes | None = None
    ) -> tuple[Tensor, Tensor]:
        """Times in [t_min, 1], b, and the share of each in a mean, b: alike in training, else as `dense_near_data`.

        `training_times` says where training looks, None: everywhere alike; an evaluation is the same mean for all.
        """
        if self.training:
            t = training_times(self.times(num, 0.0), t_min) if training_times else self.times(num, t_min)
            return t, torch.ones(num, device=self.device)
        return dense_near_data(self.times(num, 0.0), t_min)

    @property
    def _step(self) -> int:
        """Batches taken since the start of the run, resumed or not."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx if self._trainer else self._step_without_trainer

    @property
    def _run_seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def _seed(self, stage: str, step: int) -> None:
        torch.manual_seed(mix(stage, self._run_seed, step, self.global_rank))

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        """Logs the losses of a batch; where few images are evaluated, their mean over several times of each."""
        num = len(batch.image)
        if batch_idx == 0:
            num_batches = self.trainer.num_val_batches if stage == "val" else self.trainer.num_test_batches
            self._first_batch = num, math.ceil(MIN_TIMES / (sum(num_batches) * num * self.trainer.world_size))
        size, num_repeats = self._first_batch
        found: list[dict[str, Tensor]] = []
        timed = True
        while not found or (timed and len(found) < num_repeats):
            self._seed(stage, batch_idx * num_repeats + len(found))
            with self.evaluating(stage, batch_idx * size, len(found), num_repeats) as now:
                found.append(self.losses(batch))
            timed = now.timed
        means = {name: torch.stack([losses[name] for losses in found]).mean(0) for name in found[0]}
        self._log_losses(stage, means, batch, on_step=False)

    @contextmanager
    def evaluating(self, stage: str, first_image: int, repeat: int, num_repeats: int) -> Iterator[Evaluation]:
        """Times within are those of the evaluation of a batch, as `Evaluation` describes it."""
        now = self._evaluation = Evaluation(stage, first_image, num_repeats, repeat)
        try:
            yield now
        finally:
            self._evaluation = None

    def _log_losses(self, stage: str, losses: dict[str, Tensor], batch: Batch, on_step: bool) -> None:
        named, size = {f"{stage}/{name}": value for name, value in losses.items()}, len(batch.image)
        self.log_dict(
            named, on_step=on_step, on_epoch=not on_step, prog_bar=True, batch_size=size, sync_dist=not on_step
        )


def named_losses(losses: dict[str, Tensor] | Tensor, key: str, source: str) -> dict[str, Tensor]:
    """What a loss returned, by name; `key` names the one that is minimised, and a tensor alone is that one.

    InputError, naming the source, if it returned something else.
    """
    named = {key: losses} if isinstance(losses, Tensor) else losses
    if not isinstance(named, dict) or key not in named:
        what = f"keys {', '.join(map(str, named))}" if isinstance(named, dict) else type(named).__name__
        raise InputError(f"{source} returned {what}; return a tensor, or a dict with '{key}'.")
    return named


def parameters_of(optimizer: Any) -> list[nn.Parameter]:
    """The parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
