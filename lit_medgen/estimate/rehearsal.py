"""Training steps and samples of a method without a trainer, as `fit` and `sample` take them, to be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Batch, Condition
from lit_medgen.estimate.counting import PRECISIONS
from lit_medgen.training.adversarial import Player, held_constant
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method, named_losses, parameters_of


@dataclass(frozen=True)
class Training:
    """How a trainer takes a step.

    Attributes:
        precision: "32-true" computes in float32, "bf16-mixed" and "16-mixed" under autocast.
        accumulate: batches of a step.
        averaged: whether weights are averaged.
    """

    precision: str = "32-true"
    accumulate: int = 1
    averaged: bool = True


@dataclass(frozen=True)
class Rehearsal:
    """A method with its optimizers, ready to take steps.

    Attributes:
        model: the method, with its frozen parts and what it takes from data.
        training: how a step is taken.
        players: of an adversarial method; else one, which trains all.
        optimizers: one for each player.
        averages: the averaged weights.
    """

    model: Method
    training: Training
    players: Sequence[Player]
    optimizers: Sequence[torch.optim.Optimizer]
    averages: Sequence[Tensor]

    @classmethod
    def of(cls, model: Method, training: Training) -> Rehearsal:
        """The method as it is before the first step, in training mode."""
        model.train()
        made = model.configure_optimizers()
        optimizers = [made["optimizer"]] if isinstance(made, dict) else made[0]
        own: Callable[[], Sequence[Player]] | None = getattr(model, "players", None)
        players = own() if own else [Player("generator", model.losses)]
        left_out = model.not_averaged()
        averages = [
            parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if training.averaged and parameter.requires_grad and name not in left_out
        ]
        return cls(model, training, players, optimizers, averages)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """What is there between two steps; gradients too, where they stay until the next."""
        yield from self.model.parameters()
        yield from (each.grad for each in self.model.parameters() if each.grad is not None)
        yield from self.model.buffers()
        yield from self.averages
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))

    def warm_up(self) -> None:
        """Brings the optimizers to where they are after a step; gradients stay where they do in `fit`."""
        for optimizer in self.optimizers:
            torch.stack([0 * parameter.sum() for parameter in parameters_of(optimizer)]).sum().backward()
            optimizer.step()
            if self.take_turns:
                optimizer.zero_grad()

    @property
    def take_turns(self) -> bool:
        """Whether the method is adversarial, and updates its players by itself."""
        return hasattr(self.model, "players")

    def share(self, number: int) -> float:
        """Updates of a player in a step, which is one of the first player: of all batches that are accumulated."""
        return self.training.accumulate * self.players[0].every_n_batches / self.players[number].every_n_batches

    def updates(self, batch: Batch) -> Iterator[int]:
        """Takes a batch in which all players move; gives the number of each player after its update."""
        with self.model.at_step(1 + max(player.start for player in self.players)):
            if not self.take_turns:
                self._alone(batch)
                yield 0
                return
            with self.autocast():
                for number in range(len(self.players)):
                    self._move(number, batch)
                    yield number

    def _move(self, number: int, batch: Batch) -> None:
        """One update of a player, the others held constant; as `Adversarial` does it."""
        optimizer = self.optimizers[number]
        others = [each for i, theirs in enumerate(self.optimizers) if i != number for each in parameters_of(theirs)]
        with held_constant(others):
            self._loss(number, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def _alone(self, batch: Batch) -> None:
        """A step as Lightning takes it: gradients of the step before go after the loss, or are added to."""
        with self.autocast():
            loss = self._loss(0, batch)
        if self.training.accumulate == 1:
            self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()

    def _loss(self, number: int, batch: Batch) -> Tensor:
        player = self.players[number]
        key = f"{player.name}_loss" if number else "loss"
        return named_losses(player.loss(batch), key, f"the loss of {player.name}")[key]

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a trainer's precision plugin."""
        if self.training.precision not in PRECISIONS:
            return nullcontext()
        return torch.autocast("cpu", dtype=PRECISIONS[self.training.precision], cache_enabled=False)

    def sample(self, model: Generator, condition: Condition, num_steps: int | None) -> None:
        """Makes one image, in so many steps; None: as many as always."""
        with torch.no_grad(), self.autocast(), model.in_steps(num_steps) if num_steps else nullcontext():
            model.eval().sample(condition, [0])
