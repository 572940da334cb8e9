"""Plots of what a validation found."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_medgen.callbacks.run_folder import run_folder
from lit_medgen.training.method import Method


class Plots(Callback):
    """After each validation, what the method plots of it: `<run folder>/plots/<name>_step_<n>.png`."""

    writes = ("plots/*.png",)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the plots on the first process."""
        if not trainer.is_global_zero or not isinstance(pl_module, Method):
            return
        folder = run_folder(trainer) / "plots"
        for name, write in pl_module.plots().items():
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / f"{name}_step_{trainer.global_step:07d}.png")
