"""The processes that torchrun or srun has started, and what the options of the trainer say of them."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer

from lit_medgen.errors import InputError, describe


def take_all_processes(options: dict[str, Any]) -> None:
    """Under torchrun, `devices: auto` is the processes that it started, also on CPUs (Lightning takes one of those)."""
    if TorchElasticEnvironment.detect() and options.get("devices") in (None, "auto"):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        options["devices"] = here
        if options.get("num_nodes") in (None, 1):
            options["num_nodes"] = int(os.environ["WORLD_SIZE"]) // here


def refuse_other_processes(trainer: Trainer) -> None:
    """InputError if a launcher has started other processes than the options of the trainer say."""
    if trainer.strategy.launcher is None:
        return
    try:
        trainer._accelerator_connector.cluster_environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    except ValueError as error:
        raise InputError(
            f"trainer.devices and trainer.num_nodes are not what the launcher started: {describe(error)} Under "
            "torchrun, devices: auto takes all (--config configs/with/ddp.yaml)."
        ) from error
