"""`Adversarial`: a method with a critic, trained in turns with it.

The generator's optimizer alone is Lightning's, so a step counts once; the critic's is used as it is. Both are in the
checkpoint, so a resumed run goes on exactly.
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
from lit_medgen.methods.base import Method, default_optimizer
from lit_medgen.methods.learning_rate import Constant


class Adversarial(Method):
    """Every step: one update of the generator with the critic held still, then one of the critic.

    Args:
        critic: the discriminator; all other trained parameters are the generator's.
        optimizer: makes the generator's optimizer.
        critic_optimizer: makes the critic's.
        learning_rate: factor of the generator's rate at each step.
        critic_learning_rate: factor of the critic's rate at each of its own steps, the first of which may come late;
            None: constant from the first one on.
        gradient_clip: greatest norm of either gradient; `trainer.gradient_clip_val` cannot serve two optimizers.
    """

    not_averaged = ("critic.",)
    """The critic is no part of what samples are made with."""

    optimizer_keys = ("optimizer", "critic_optimizer")
    schedule_keys = ("learning_rate", "critic_learning_rate")

    def __init__(
        self,
        critic: nn.Module,
        optimizer: OptimizerCallable = default_optimizer,
        critic_optimizer: OptimizerCallable = default_optimizer,
        learning_rate: Constant | None = None,
        critic_learning_rate: Constant | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(optimizer, learning_rate)
        self.critic_learning_rate = critic_learning_rate or Constant()
        self.automatic_optimization = False
        self.gradient_clip = gradient_clip
        self.critic, self.make_critic_optimizer = critic, critic_optimizer

    @property
    def critic_active(self) -> bool:
        """Whether the critic is trained in this step; some wait until the generator has learned by itself."""
        return True

    @abstractmethod
    def critic_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars; "critic_loss" is minimised by the critic. Called after `loss`, with the updated generator."""

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
        generator, active = self.optimizers()[0], self.critic_active  # type: ignore[index]
        critic = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
        self.critic.requires_grad_(False)
        losses = self.losses(batch)
        self._update(generator, losses["loss"], batch, losses)
        self.critic.requires_grad_(True)
        critic_losses = self.critic_loss(batch) if active else {}
        if active:
            self._update(critic, critic_losses["critic_loss"], batch, critic_losses)
        ours, theirs = self.lr_schedulers()  # type: ignore[misc]
        ours.step()
        if active:
            theirs.step()
        self._log_losses("train", losses | critic_losses, batch, on_step=True)

    def _update(self, optimizer: Any, loss: Tensor, batch: Batch, losses: dict[str, Tensor]) -> None:
        self._suspects.append((batch.key, losses))
        self.manual_backward(loss)
        self.guard_and_clip(
            optimizer, self.gradient_clip, "gradient_norm" if "loss" in losses else "critic_gradient_norm"
        )
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        """The generator's and the critic's, each with its learning rate, counted in its own steps."""
        critic = list(self.critic.parameters())
        theirs = set(critic)
        ours = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in theirs]
        optimizers = [self.optimizer_of("optimizer", ours), self.optimizer_of("critic_optimizer", critic)]
        factors = (self.learning_rate, self.critic_learning_rate)
        return optimizers, [
            torch.optim.lr_scheduler.LambdaLR(each, factor) for each, factor in zip(optimizers, factors, strict=True)
        ]
