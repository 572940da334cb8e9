"""`Trainer`: Lightning's, with a boundary after every step, exact resume, and our verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from lit_medgen.anomalies import Anomalies
from lit_medgen.auditing import Auditing
from lit_medgen.browsing import Browsing
from lit_medgen.callbacks.checkpoints import Checkpoints
from lit_medgen.callbacks.ema import EMA
from lit_medgen.callbacks.progress import show_ours
from lit_medgen.callbacks.report import Report
from lit_medgen.callbacks.run_folder import claim, run_folder
from lit_medgen.checkpoints import CheckpointFiles, newest, refuse_exported, saved
from lit_medgen.detecting import Detecting
from lit_medgen.errors import InputError
from lit_medgen.launchers import refuse_other_processes, take_all_processes
from lit_medgen.loading import refuse_other_method
from lit_medgen.loggers import LoggerInRunFolder, RunLogger, WandbRun
from lit_medgen.memory import bytes_per_voxel, first_change, free_bytes, optimizer_bytes, step_line, step_needs
from lit_medgen.output import say
from lit_medgen.resuming import Resume, leave_saving_to_callbacks, refuse_two_averages, tell_if_nothing_is_saved
from lit_medgen.speed import Speed
from lit_medgen.stopping import PATIENCE, Peers, Signals, die_with_parent, interrupted
from lit_medgen.training.method import Method
from lit_medgen.utility import Utility
from lit_medgen.verbs import Verbs

MINIMA = {"gradient_clip_val": 0, "accumulate_grad_batches": 1, "val_check_interval": 1e-9}
"""Options that Lightning takes at less, and trains uphill or fails in the middle of a step."""

READ_OF_DATA = ("voxels_per_batch", "spec", "batch_size")
"""What must be known of data if the memory of a step is to be told; a data module of the user's own may lack it."""


class Trainer(Anomalies, Auditing, Browsing, Detecting, Utility, Verbs):
    """Lightning's Trainer with a named run folder, step boundaries between steps and our verbs."""

    resumed_from: Path | None = None
    """The checkpoint that `fit` goes on from."""

    peers: Peers

    def __init__(self, *args: Any, speed: Speed = Speed(), run_name: str = "", **kwargs: Any) -> None:  # noqa: B008 (frozen)
        """Lightning's arguments, `speed`: how the run uses its GPU, `run_name`: of its folder in `default_root_dir`."""
        self.speed, self.run_name = speed, run_name
        for key in ("max_epochs", "min_epochs"):
            if kwargs.get(key) not in (None, -1):
                raise InputError(
                    f"trainer.{key} is {kwargs[key]}, but a run is one endless epoch, counted in steps; give "
                    f"trainer.{key.replace('epochs', 'steps')} (an epoch is training images / batch size steps)."
                )
        for key, least in MINIMA.items():
            if isinstance(value := kwargs.get(key), int | float) and value < least:
                raise InputError(
                    f"trainer.{key} is {value}; give {'more than 0' if 0 < least < 1 else f'{least} or more'}."
                )
        leave_saving_to_callbacks(kwargs)
        take_no_mps(kwargs)
        show_ours(kwargs)
        take_all_processes(kwargs)
        super().__init__(*args, **kwargs)  # as it stands here: the command line reads Lightning's options out of it
        for logger in self.loggers:
            if isinstance(logger, LoggerInRunFolder):
                logger.log_into(run_folder(self))
        refuse_other_processes(self)
        if isinstance(self._accelerator_connector.cluster_environment, LightningEnvironment):
            die_with_parent()
        self.strategy.checkpoint_io = CheckpointFiles()
        self._checkpoint_connector = Resume(self)
        if isinstance(self.strategy, DDPStrategy) and self.strategy._timeout == default_pg_timeout:
            self.strategy._timeout = PATIENCE
        self.signals = self._signal_connector = Signals(self)
        loop = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = _Steps(self, min_steps=loop.min_steps, max_steps=loop.max_steps)
        self._shown: dict[str, float] = {}

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What a progress bar shows beside the time; on a GPU, where reading waits, that of the last logged step."""
        if self.strategy.root_device.type == "cpu" or self._logger_connector.should_update_logs:
            self._shown = super().progress_bar_metrics
        return self._shown

    def fit(
        self,
        model: L.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a method on the training people.

        Args:
            model: the method.
            train_dataloaders: instead of a datamodule.
            val_dataloaders: instead of a datamodule.
            datamodule: the data.
            ckpt_path: `last` continues the run in its folder, or starts it if nothing is there; a file continues
                from that one.
            weights_only: not read; nothing is ever unpickled.
        """
        if self.max_steps == -1 and not any(isinstance(callback, Timer) for callback in self.callbacks):  # type: ignore[attr-defined]
            raise InputError("trainer.max_steps is -1, so the run would never end; give it, or trainer.max_time.")
        refuse_two_averages(self)
        folder = run_folder(self) / "checkpoints"
        if ckpt_path == "last":
            ckpt_path = newest(folder)
        elif (there := saved(folder)) and (ckpt_path is None or Path(ckpt_path).resolve() != there[0].resolve()):
            raise InputError(
                f"{folder} already holds {there[0].name} of an earlier run; continue it with --ckpt_path last, "
                "or give another --name."
            )
        if ckpt_path is not None:
            refuse_exported(Path(ckpt_path))
            refuse_other_method(Path(ckpt_path), type(model).__name__)
            self.resumed_from = Path(ckpt_path)
        tell_if_nothing_is_saved(self)
        claim(self, known=ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve())
        for logger in self.loggers:
            if isinstance(logger, WandbRun) and self.is_global_zero:
                logger.continue_in(run_folder(self))
                _ = logger.experiment  # refused now, not after the preparation
        self.signals.expect_requeue()
        say(f"run folder: {folder.parent}" + (f"; it goes on from {ckpt_path}" if ckpt_path else ""))
        if isinstance(model, Method) and (shape := getattr(datamodule, "shape", None)):
            model.before_data(shape(), self.resumed_from)
            if not model.reads_images:
                getattr(datamodule, "refuse_augmentation", lambda: None)()
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        written = sorted(path.name + "/" * path.is_dir() for path in folder.parent.glob("[!.]*"))
        say(f"{self.global_step} steps done; {folder.parent}: {', '.join(written)}")

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.fn != "fit":
            return super()._run(*args, **kwargs)
        self.strategy.setup_environment()  # connects the processes; Lightning's own call then finds them connected
        with Peers() as self.peers:
            return super()._run(*args, **kwargs)

    def _run_stage(self) -> Any:
        for logger in self.loggers if self.state.fn == "fit" else []:
            if isinstance(logger, RunLogger | LoggerInRunFolder):
                logger.rewind(self.fit_loop.epoch_loop._batches_that_stepped)
        if self.state.fn == "fit":
            self._say_what_a_step_needs()
        results = super()._run_stage()
        for callback in self.callbacks if self.state.fn == "fit" else []:  # type: ignore[attr-defined]
            if isinstance(callback, Report):
                callback.write(self, self.lightning_module)
        return results

    def _say_what_a_step_needs(self) -> None:
        """A line about the memory of a step and of the device, before the first one; see `lit_medgen.memory`."""
        model, data = self.lightning_module, self.datamodule  # type: ignore[attr-defined]
        if not isinstance(model, Method) or not all(hasattr(data, name) for name in READ_OF_DATA):
            return
        voxels, device = data.voxels_per_batch, self.strategy.root_device
        averages = [each.average.values() for each in self.callbacks if isinstance(each, EMA)]  # type: ignore[attr-defined]
        needs = step_needs(
            model,
            optimizer=optimizer_bytes(self.optimizers, [*model.optimizer_factories().values()]),
            averages=sum(value.nbytes for each in averages for value in each),
            batch=voxels * bytes_per_voxel(data.spec) if model.reads_images else 0,
            voxels=voxels if model.reads_images else 0,
            halved="mixed" in str(self.precision),
        )
        change = first_change(needs, model, data.batch_size, str(self.precision), device)
        sharing = self.num_devices if device.type == "cpu" else 1
        say(step_line(needs, free_bytes(device), device, change, sharing))

    def step_boundary(self) -> None:
        """Between two steps: all processes agree to go on, to save, or to save and stop."""
        callbacks = [callback for callback in self.checkpoint_callbacks if isinstance(callback, Checkpoints)]
        stop, due = self.peers.max([self.signals.received, any(callback.due(self) for callback in callbacks)])
        paths = [str(callback.save(self)) for callback in callbacks] if stop or due else []
        if stop:
            saved_as = f"saved as {paths[0]}" if paths else "not saved, since the config has no Checkpoints callback"
            raise interrupted(self, stop, saved_as)


def take_no_mps(options: dict[str, Any]) -> None:
    """Sets the accelerator of a trainer's options to the CPU on a Mac; InputError if they name its GPU (MPS)."""
    if MPSAccelerator.is_available():
        if (chosen := options.get("accelerator", "auto")) not in ("auto", "cpu"):
            raise InputError(
                f"trainer.accelerator is {chosen}, but a Mac's GPU (MPS) has no float64, in which noise schedules are "
                "computed; give cpu (or --config configs/with/cpu.yaml)."
            )
        options["accelerator"] = "cpu"


class _Steps(_TrainingEpochLoop):
    """Lightning's loop over batches, with a boundary after each optimizer step."""

    trainer: Trainer

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """One batch. Checkpoints are written at step boundaries, so no step or validation is half done."""
        self.restarting = False
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validation if it is due, then the step boundary."""
        super().on_advance_end(data_fetcher)
        if not self._should_accumulate():
            self.trainer.step_boundary()

    def _broadcast_sigterm_tensor(self) -> None:
        """Lightning's own agreement, which knows the first process's signals alone."""
