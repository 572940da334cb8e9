"""`Adversarial`: a method whose parts are trained against each other, by players that take turns.

A GAN has two players, its generator and its discriminator; alpha-WGAN has four. In each batch the players whose turn it
is are updated one after the other, each with the parameters of all others held constant, and each sees the updates of
those before it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_medgen.batch import Batch, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import Method, default_optimizer, named_losses, parameters_of


@dataclass(frozen=True)
class Player:
    """Parameters that are trained together, by a loss and an optimizer of their own.

    Attributes:
        name: an identifier, e.g. "discriminator"; the losses, arguments and logged values of all players but the first
            begin with it.
        loss: gives scalars by name. The first player minimises "loss", any other "<name>_loss"; the rest is logged.
        modules: submodules of the method that this player trains; None: all trained parameters that no other player
            has. What is frozen (`requires_grad_(False)`) when training begins stays so.
        optimizer: makes the optimizer.
        learning_rate_schedule: factor of the optimizer's rate, counted in this player's own updates.
        every_n_batches: n: this player is updated in the n-th batch of the run, the 2n-th, and so on.
        start: number of batches at the beginning of the run in which this player rests.
        gradient_clip: largest norm of the gradient; None: any.
        averaged: whether `EMA` averages the parameters; what samples are not made with need not be.
    """

    name: str
    loss: Callable[[Batch], dict[str, Tensor] | Tensor]
    modules: Sequence[nn.Module] | None = None
    optimizer: OptimizerCallable = default_optimizer
    learning_rate_schedule: Constant = Constant()  # noqa: RUF009 (it has no state)
    every_n_batches: int = 1
    start: int = 0
    gradient_clip: float | None = None
    averaged: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(f"Player.name is {self.name!r}; give letters, digits and underscores.")
        for key, value, least in (("every_n_batches", self.every_n_batches, 1), ("start", self.start, 0)):
            if not isinstance(value, int) or value < least:
                raise InputError(f"player {self.name}: {key} is {value}; give a whole number of at least {least}.")

    def moves(self, batch_index: int) -> bool:
        """Whether this player is updated in a batch of the run, counted from 0."""
        return batch_index >= self.start and (batch_index + 1) % self.every_n_batches == 0


class Adversarial(Method):
    """A method whose `players` take turns.

    The first player counts the steps: `trainer.max_steps`, the step in the name of a checkpoint or of a grid, and the
    steps of `EMA` are its updates. If it moves in every n-th batch only, a run reads n x max_steps batches. What counts
    batches is `Player.start`, `trainer.val_check_interval`, `trainer.log_every_n_steps` and the step of loggers.

    `loss` is also what validation measures. It may keep on the method what losses of later players use, such as the
    images that it generated, if its player moves in every batch in which they do.

    Only the first player's optimizer is wrapped by Lightning, so that a batch counts as one step at most. All are in
    the checkpoint with their schedules, and turns depend on the number of batches alone: a resumed run goes on exactly.
    """

    automatic_optimization = False

    @abstractmethod
    def players(self) -> Sequence[Player]:
        """The players in the order of their updates; called often, so it only lists what the method has."""

    # What follows from the players.

    def optimizer_factories(self) -> dict[str, OptimizerCallable]:
        """`optimizer` of the first player, `<name>_optimizer` of any other."""
        return {_key(player, n, "optimizer"): player.optimizer for n, player in enumerate(self.players())}

    def learning_rate_schedules(self) -> dict[str, Constant]:
        """`learning_rate_schedule` of the first player, `<name>_learning_rate_schedule` of any other."""
        key = "learning_rate_schedule"
        return {_key(player, n, key): player.learning_rate_schedule for n, player in enumerate(self.players())}

    def not_averaged(self) -> set[str]:
        """Names of the parameters of players that are not averaged."""
        hands = zip(self.players(), self._hands(), strict=True)
        return {name for player, hand in hands if not player.averaged for name in hand}

    def _hands(self) -> list[dict[str, nn.Parameter]]:
        """Names and parameters that each player trains, in the order of `named_parameters`.

        InputError if a parameter has no player or several, or a player no parameter or another one's name.
        """
        players, what = self.players(), f"{type(self).__name__}.players"
        names = [player.name for player in players]
        rest = [number for number, player in enumerate(players) if player.modules is None]
        if not names or len(set(names)) < len(names) or len(rest) > 1:
            raise InputError(
                f"{what}: the names are {', '.join(names) or 'none'}, and {len(rest)} of them have no modules of "
                "their own; give at least one player, each with another name, and at most one of them the rest."
            )
        own = [{each for module in player.modules or () for each in module.parameters()} for player in players]
        hands: list[dict[str, nn.Parameter]] = [{} for _ in players]
        for name, parameter in self.named_parameters():
            owners = [number for number, parameters in enumerate(own) if parameter in parameters] or rest
            if len(owners) > 1:
                raise InputError(f"{what}: {names[owners[0]]} and {names[owners[1]]} both train {name}; choose one.")
            if parameter.requires_grad:
                if not owners:
                    raise InputError(f"{what}: none trains {name}; freeze it, or give it to a player.")
                hands[owners[0]][name] = parameter
        for name, hand in zip(names, hands, strict=True):
            if not hand:
                raise InputError(f"{what}: {name} has no parameter of this method to train.")
        return hands

    def configure_optimizers(self) -> Any:
        """An optimizer and a learning rate for each player, counted in the player's own updates."""
        hands = zip(self.optimizer_factories(), self._hands(), strict=True)
        optimizers = [self.optimizer_of(key, list(hand.values())) for key, hand in hands]
        factors = self.learning_rate_schedules().values()
        return optimizers, [LambdaLR(each, factor) for each, factor in zip(optimizers, factors, strict=True)]

    # Training.

    def before_data(self, shape: DataSpec, resumed_from: Path | None) -> None:
        """InputError too for players that cannot take turns."""
        super().before_data(shape, resumed_from)
        self._hands()

    def setup(self, stage: str) -> None:
        """InputError for fp16; lets DDP know that each update leaves the parameters of the others out."""
        super().setup(stage)
        if self.trainer.precision == "16-mixed":
            raise InputError("trainer.precision is 16-mixed, whose loss scale suits one optimizer; use bf16-mixed.")
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """The updates whose turn it is; all randomness of the batch comes from (seed, number of the batch, rank)."""
        self._seed("train", self._step)
        # Else Lightning would log the last values of players that rest, and a resumed run does not know them.
        self.trainer._results.reset(fx="training_step")  # type: ignore[union-attr]
        logged: dict[str, Tensor] = {}
        for number, player in enumerate(self.players()):
            if player.moves(self._step):
                losses = self._update(number, player, batch)
                if again := losses.keys() & logged.keys():
                    raise InputError(
                        f"the loss of {player.name} returned {min(again)}, as one before it did; rename it."
                    )
                logged |= losses
        self._log_losses("train", logged, batch, on_step=True)

    def _update(self, number: int, player: Player, batch: Batch) -> dict[str, Tensor]:
        """One update of a player; returns its losses."""
        optimizer, key = self._optimizer(number), _key(player, number, "loss")
        with self._others_held(number):
            losses = named_losses(player.loss(batch), key, f"the loss of {player.name}")
            self._suspects.append((batch.key, losses))
            self.manual_backward(losses[key])
        self.guard_and_clip(optimizer, player.gradient_clip, _key(player, number, "gradient_norm"))
        optimizer.step()
        optimizer.zero_grad()
        self.trainer.lr_scheduler_configs[number].scheduler.step()  # type: ignore[call-arg]
        return losses

    def _optimizer(self, number: int) -> Any:
        """The optimizer of a player; the first as Lightning wraps it, which counts a step."""
        if number:
            return self.trainer.optimizers[number]
        first = self.optimizers()
        return first[0] if isinstance(first, list) else first

    @contextmanager
    def _others_held(self, number: int) -> Iterator[None]:
        """The parameters of all players but one are constants within."""
        optimizers = self.trainer.optimizers
        others = [each for i, theirs in enumerate(optimizers) if i != number for each in parameters_of(theirs)]
        with held_constant(others):
            yield


@contextmanager
def held_constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Trained parameters that are constants within."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _key(player: Player, number: int, what: str) -> str:
    """What is called after the first player bears no name, as in a method that has no others."""
    return f"{player.name}_{what}" if number else what
