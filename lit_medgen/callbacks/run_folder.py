"""The run folder, and the resolved config that stands there."""

from __future__ import annotations

from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lit_medgen.files import Outputs, write_atomically
from lit_medgen.loggers import WandbRun, public


def claim(trainer: Trainer, known: bool) -> None:
    """Notes that the run folder is this run's; InputError if it holds a file that the run would write over.

    Callbacks and loggers name what they put there as `writes`. A folder that holds the checkpoint that the run goes on
    from is `known` to be the run's own.
    """
    parts = [*trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    names = [name for part in parts for name in getattr(part, "writes", ())]
    if names and trainer.is_global_zero:
        Outputs(run_folder(trainer), "fit", names, "move it, or give another --name").claim(known)


def run_folder(trainer: Trainer) -> Path:
    """`<default_root_dir>/<name>`; `<default_root_dir>` for a trainer made without the command line."""
    return Path(trainer.default_root_dir, getattr(trainer, "run_name", ""))


class RunConfig(SaveConfigCallback):
    """Writes the resolved config of `fit` to `config.yaml` of the run folder; no other verb touches it."""

    writes = ("config.yaml",)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes nothing yet: a run that is refused leaves the config of the one before."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning when everything is restored, before the first step."""
        if not trainer.is_global_zero:
            return
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.parser.dump(self.config, skip_unset=False, skip_validation=True)  # it was when it was parsed
        write_atomically(folder / "config.yaml", config)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.log_hyperparams(public(yaml.safe_load(config)))
