"""Exponential moving average of the trained weights, the weights that samples are made with.

Lightning's own callback copies the whole module (a discriminator and a frozen first stage too), corrupts integer
buffers by default and has no warm-up, so this one keeps the average of the trained parameters alone. In a
checkpoint `state_dict` holds the averaged weights, so that any loader gets the good ones; this callback's state
holds the raw ones, and a resumed run continues from those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_medgen.training.method import Method


class EMA(Callback):
    """Averages parameters after every optimizer step: average <- decay average + (1 - decay) raw.

    Args:
        decay: weight of the past; 0.9999 in the papers.
        warmup: lets the average follow early training: decay_k = min(decay, (1 + k) / (10 + k)) after k steps.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA.decay is {decay}; give a number from 0 to 1.")
        self.decay, self.warmup = decay, warmup
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None  # set while the averaged weights are in the module

    @property
    def state_key(self) -> str:
        """The checkpoint's key for this callback's state."""
        return "EMA"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the module's weights, unless a checkpoint brought an average; the module is on its device now."""
        average = self.average or {name: parameter.detach().clone() for name, parameter in _trained(pl_module).items()}
        # In bfloat16 an average would not move: (1 - decay) of a change is less than its last digit.
        self.average = {
            name: value.to(pl_module.device, torch.promote_types(value.dtype, torch.float32))
            for name, value in average.items()
        }

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """One update for every optimizer step (several batches when gradients are accumulated)."""
        if trainer.global_step == self.num_updates:
            return
        self.num_updates = trainer.global_step
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        raw = _trained(pl_module)
        new = [raw[name].detach().to(value.dtype) for name, value in self.average.items()]
        torch._foreach_lerp_(list(self.average.values()), new, 1 - decay)

    @torch.no_grad()
    def swap_in(self, pl_module: LightningModule) -> None:
        """Puts the averaged weights into the module until `swap_out`."""
        if self._raw is None and self.average:
            parameters = _trained(pl_module)
            self._raw = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, value in self.average.items():
                parameters[name].copy_(value)

    @torch.no_grad()
    def swap_out(self, pl_module: LightningModule) -> None:
        """Puts the raw weights back."""
        if self._raw is not None:
            parameters = _trained(pl_module)
            for name, value in self._raw.items():
                parameters[name].copy_(value)
            self._raw = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is of the averaged weights."""
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on with the raw ones."""
        self.swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Whatever is saved after an exception starts from the raw weights."""
        self.swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Averaged weights in `state_dict`, raw ones in this callback's state."""
        raw = self._raw if self._raw is not None else _trained(pl_module)
        checkpoint["callbacks"][self.state_key] = {
            "num_updates": self.num_updates,
            "raw": {name: raw[name].detach().clone() for name in self.average},
        }
        checkpoint["state_dict"].update({name: value.clone() for name, value in self.average.items()})

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resuming: the module has just loaded the averaged weights; take them, give it the raw ones."""
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != "fit" or state is None:
            return
        self.num_updates = state["num_updates"]
        parameters = _trained(pl_module)
        self.average = {
            name: checkpoint["state_dict"][name].clone().to(parameters[name].device) for name in state["raw"]
        }
        for name, value in state["raw"].items():
            parameters[name].copy_(value)


@contextmanager
def averaged(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """The model as it samples: averaged weights, if they are averaged, evaluation mode, the run's precision.

    Afterwards it goes on to train.
    """
    ema = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), EMA())  # type: ignore[attr-defined]
    model.eval()
    ema.swap_in(model)
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        ema.swap_out(model)
        model.train()


def _trained(module: LightningModule) -> dict[str, Tensor]:
    """Name -> parameter that is trained, of a floating type, and not left out by its method."""
    left_out = module.not_averaged() if isinstance(module, Method) else ()
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point() and name not in left_out
    }
