"""A plot of how a VQGAN uses its codebook on unseen people."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_medgen.callbacks.run_folder import run_folder
from lit_medgen.images.plots import save_usage
from lit_medgen.methods.vqgan import VQGAN


class CodeUsage(Callback):
    """After each validation: `<run folder>/codebook/step_<n>.png`."""

    writes = ("codebook/*.png",)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws on the first process what the method counted."""
        if trainer.is_global_zero and isinstance(pl_module, VQGAN) and pl_module.code_counts.any():
            folder = run_folder(trainer) / "codebook"
            folder.mkdir(parents=True, exist_ok=True)
            save_usage(folder / f"step_{trainer.global_step:07d}.png", pl_module.code_counts.numpy())
