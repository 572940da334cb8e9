"""`Budget`: a callback that ends training when its time is used, however often the run was interrupted."""

from __future__ import annotations

import time
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

Clock = Literal["wall", "processor"]
CLOCKS = {"wall": time.monotonic, "processor": time.process_time}


class Budget(Callback):
    """Ends training after so many seconds, counted over all parts of a run that was interrupted and continued.

    Time between the last checkpoint and a kill is not counted, as its steps are repeated.

    Args:
        seconds: that training may take, from its first step on.
        clock: wall: of the clock on the wall; processor: that this process computed on all its threads, whatever else
            the machine did.
    """

    state_key = "Budget"  # type: ignore[assignment]

    def __init__(self, seconds: float, clock: Clock = "wall") -> None:
        self.seconds, self.now = seconds, CLOCKS[clock]
        self.spent = 0.0
        self.after_first = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock where the run that is continued left it."""
        self._since = self.now() - self.spent

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Takes the time, and has the trainer stop when none is left."""
        self.spent = self.now() - self._since
        if trainer.global_step == 1:
            self.after_first = self.spent
        trainer.should_stop = trainer.should_stop or self.spent >= self.seconds

    def state_dict(self) -> dict[str, float]:
        """The seconds that were spent, and those of them until the first step was done."""
        return {"spent": self.spent, "after_first": self.after_first}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Takes back what `state_dict` gave."""
        self.spent, self.after_first = state_dict["spent"], state_dict["after_first"]


def steps_per_second(num_steps: int, state: dict[str, float]) -> float:
    """Of a run that took so many steps, from the state of its `Budget`; without the first step, if there are more."""
    if num_steps < 2:
        return num_steps / state["spent"]
    return (num_steps - 1) / (state["spent"] - state["after_first"])
