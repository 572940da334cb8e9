"""`Adversarial`: a method with a discriminator, trained in turns with it.

The generator's optimizer alone is Lightning's, so a step counts once; the discriminator's is used as it is. Both are
in the checkpoint, so a resumed run goes on exactly.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_medgen.batch import Batch
from lit_medgen.errors import InputError
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import Method, default_optimizer


class Adversarial(Method):
    """Every step: one update of the generator with the discriminator held still, then one of the discriminator.

    Args:
        discriminator: the discriminator; all other trained parameters are the generator's.
        optimizer: makes the generator's optimizer.
        discriminator_optimizer: makes the discriminator's.
        learning_rate_schedule: factor of the generator's rate at each step.
        discriminator_learning_rate_schedule: factor of the discriminator's rate at each of its own steps, the first of
            which may come late; None: constant from the first one on.
        gradient_clip: greatest norm of either gradient; `trainer.gradient_clip_val` cannot serve two optimizers.
    """

    not_averaged = ("discriminator.",)
    """The discriminator is no part of what samples are made with."""

    optimizer_keys = ("optimizer", "discriminator_optimizer")
    schedule_keys = ("learning_rate_schedule", "discriminator_learning_rate_schedule")

    def __init__(
        self,
        discriminator: nn.Module,
        optimizer: OptimizerCallable = default_optimizer,
        discriminator_optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
        discriminator_learning_rate_schedule: Constant | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        self.discriminator_learning_rate_schedule = discriminator_learning_rate_schedule or Constant()
        self.automatic_optimization = False
        self.gradient_clip = gradient_clip
        self.discriminator, self.make_discriminator_optimizer = discriminator, discriminator_optimizer

    @property
    def discriminator_active(self) -> bool:
        """Whether the discriminator is trained in this step; some wait until the generator has learned by itself."""
        return True

    @abstractmethod
    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars; "discriminator_loss" is what it minimises. Called after `loss`, the generator updated."""

    def setup(self, stage: str) -> None:
        """InputError for fp16; lets DDP know that each update leaves the other's parameters out."""
        super().setup(stage)
        if self.trainer.precision == "16-mixed":
            raise InputError("trainer.precision is 16-mixed, whose loss scale suits one optimizer; use bf16-mixed.")
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Both updates; all randomness of the step comes from (seed, step, rank)."""
        self._seed("train", self._step)
        generator, active = self.optimizers()[0], self.discriminator_active  # type: ignore[index]
        discriminator = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
        self.discriminator.requires_grad_(False)
        losses = self.losses(batch)
        self._update(generator, losses["loss"], batch, losses)
        self.discriminator.requires_grad_(True)
        discriminator_losses = self.discriminator_loss(batch) if active else {}
        if active:
            self._update(discriminator, discriminator_losses["discriminator_loss"], batch, discriminator_losses)
        ours, theirs = self.lr_schedulers()  # type: ignore[misc]
        ours.step()
        if active:
            theirs.step()
        self._log_losses("train", losses | discriminator_losses, batch, on_step=True)

    def _update(self, optimizer: Any, loss: Tensor, batch: Batch, losses: dict[str, Tensor]) -> None:
        self._suspects.append((batch.key, losses))
        self.manual_backward(loss)
        self.guard_and_clip(
            optimizer, self.gradient_clip, "gradient_norm" if "loss" in losses else "discriminator_gradient_norm"
        )
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        """The generator's and the discriminator's, each with its learning rate, counted in its own steps."""
        discriminator = list(self.discriminator.parameters())
        theirs = set(discriminator)
        ours = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in theirs]
        optimizers = [self.optimizer_of("optimizer", ours), self.optimizer_of("discriminator_optimizer", discriminator)]
        factors = (self.learning_rate_schedule, self.discriminator_learning_rate_schedule)
        return optimizers, [
            torch.optim.lr_scheduler.LambdaLR(each, factor) for each, factor in zip(optimizers, factors, strict=True)
        ]
