"""What a run shows while it works: a bar that counts steps, and one line about the model."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, RichProgressBar

from lit_medgen.output import say


class Progress(RichProgressBar):
    """Lightning's bar, counting the run's steps, resumed or not, to its last one: a run is one endless epoch."""

    predict_description = "sample"

    @property
    def total_train_batches(self) -> int | float:
        """Steps of the whole run; infinite where time ends it."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the step and the losses."""
        if not self.is_disabled and self.train_progress_bar_id is None:  # resumed: no epoch began
            self._initialize_train_progress_bar_id()
        self._update(self.train_progress_bar_id, trainer.global_step)
        self._update_metrics(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        return "fit"


class ModelSize(Callback):
    """Says before the first step how many parameters are trained."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning when the model is complete and on its device."""
        num = {True: 0, False: 0}
        for parameter in pl_module.parameters():
            num[parameter.requires_grad] += parameter.numel()
        frozen = f", {num[False]:,} frozen" if num[False] else ""
        say(f"{type(pl_module).__name__}: {num[True]:,} parameters are trained{frozen}")


def show_ours(options: dict[str, Any]) -> None:
    """Puts our bar and summary where a trainer would have Lightning's, which count epochs, and no FLOPs."""
    if options.get("barebones") or options.get("fast_dev_run"):
        return
    given = options.get("callbacks") or []
    callbacks = list(given) if isinstance(given, list) else [given]
    if options.get("enable_progress_bar") in (None, True) and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(Progress())
    if options.get("enable_model_summary") in (None, True) and not any(isinstance(c, ModelSummary) for c in callbacks):
        callbacks.append(ModelSize())
        options["enable_model_summary"] = False
    options["callbacks"] = callbacks
