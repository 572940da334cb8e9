"""A Weights & Biases run that keeps secrets."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

from lit_medgen.errors import InputError, describe
from lit_medgen.files import write_atomically


class WandbRun(WandbLogger):
    """A Weights & Biases run that sends losses, scores, pictures and the method's config, and nothing else.

    No code, no git state, no host name, no command line, no console output, no list of packages, no file path. A
    resumed run is the same W&B run: its id stands in the run folder, or in WANDB_RUN_ID.

    Args:
        project: W&B project.
        save_dir: folder of W&B's own files.
        group: group of the run, e.g. a sweep over seeds.
        tags: tags of the run.
    """

    writes = ("wandb_id",)

    def __init__(
        self,
        project: str = "lit_medgen",
        save_dir: str = "runs",
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send its own errors home, with paths
        try:
            import wandb  # an extra, and slow to import
        except ModuleNotFoundError as error:
            raise InputError('trainer.logger: W&B is not installed; pip install "lit_medgen[wandb]".') from error
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            program="",
            root_dir=save_dir,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        super().__init__(
            project=project,
            save_dir=save_dir,
            group=group,
            tags=tags,
            log_model=False,
            resume="allow",
            settings=settings,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun on first use; InputError if W&B refuses it, for want of a key or a network."""
        from wandb.errors import Error

        try:
            return super().experiment
        except Error as error:
            raise InputError(
                f"trainer.logger: W&B says: {describe(error)} Log in with `wandb login` (or set WANDB_API_KEY), keep "
                "its log on this machine with WANDB_MODE=offline, or leave the logger out."
            ) from error

    def continue_in(self, folder: Path) -> None:
        """Takes the id and name of the run that this run folder belongs to, or gives it one."""
        file = folder / "wandb_id"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8))
        self._wandb_init |= {"id": file.read_text().strip(), "name": folder.name}
        self._id = self._wandb_init["id"]


def public(config: Any, inside: str = "") -> Any:
    """What of a config may leave the machine: numbers, switches, class names and the method's words; no other text."""
    if isinstance(config, dict):
        kept = {
            key: public(value, "model" if "model" in (key, inside) else key)
            for key, value in config.items()
            if key != "codes"  # its keys are words of the user's table
        }
        return {key: value for key, value in kept.items() if value is not None}
    if isinstance(config, list):
        return [public(value, inside) for value in config]
    if isinstance(config, str):
        return config if inside in ("model", "class_path", "precision", "axis") and os.sep not in config else None
    return config
