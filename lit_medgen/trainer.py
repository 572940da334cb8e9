"""`Trainer`: Lightning's, with a boundary after every step, exact resume, and the verbs `sample` and `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout
from torch.utils.data import DataLoader

from lit_medgen.batch import DataSpec, Request, Requests, Split
from lit_medgen.callbacks.checkpoints import Checkpoints
from lit_medgen.callbacks.progress import show_ours
from lit_medgen.callbacks.report import (
    Report,
    check_report,
    logged,
    refuse_unfit,
    score,
)
from lit_medgen.callbacks.run_folder import claim, run_folder
from lit_medgen.callbacks.sample_writer import SampleWriter
from lit_medgen.checkpoints import CheckpointFiles, behind_link, newest, read_spec, refuse_other_method, restore, saved
from lit_medgen.errors import InputError
from lit_medgen.evaluation.report import Maker
from lit_medgen.evaluation.report import evaluate as write_report
from lit_medgen.images.origin import WRITTEN
from lit_medgen.launchers import refuse_other_processes, take_all_processes
from lit_medgen.loggers import RunLogger, WandbRun
from lit_medgen.memory import batch_warning
from lit_medgen.output import say
from lit_medgen.requests import Asked, requested
from lit_medgen.resuming import Resume, leave_saving_to_callbacks, refuse_two_averages, tell_if_nothing_is_saved
from lit_medgen.sample_files import Format, read_samples, spec_of
from lit_medgen.sampling import like_people, origin
from lit_medgen.speed import Speed
from lit_medgen.stopping import PATIENCE, Peers, Signals, die_with_parent, interrupted
from lit_medgen.training.frozen import refuse_other_people
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule


LEAST = {"gradient_clip_val": 0, "accumulate_grad_batches": 1, "val_check_interval": 1e-9}
"""Options that Lightning takes at less, and trains uphill or fails in the middle of a step."""


class Trainer(L.Trainer):
    """Lightning's Trainer with a named run folder, step boundaries between steps and two more verbs."""

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
        for key, least in LEAST.items():
            if isinstance(value := kwargs.get(key), int | float) and value < least:
                raise InputError(
                    f"trainer.{key} is {value}; give {'more than 0' if 0 < least < 1 else f'{least} or more'}."
                )
        leave_saving_to_callbacks(kwargs)
        take_no_mps(kwargs)
        show_ours(kwargs)
        take_all_processes(kwargs)
        super().__init__(*args, **kwargs)  # as it stands here: the command line reads Lightning's options out of it
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
        """Train a method.

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
            if isinstance(logger, RunLogger):
                logger.rewind(self.fit_loop.epoch_loop._batches_that_stepped)
        if self.state.fn == "fit":
            self._warn_of_memory()
        results = super()._run_stage()
        for callback in self.callbacks if self.state.fn == "fit" else []:  # type: ignore[attr-defined]
            if isinstance(callback, Report):
                callback.write(self, self.lightning_module)
        return results

    def _warn_of_memory(self) -> None:
        """Says so if a batch will hardly fit into memory; code maps are small, so methods on them are not looked at."""
        model, voxels = self.lightning_module, getattr(self.datamodule, "voxels_per_batch", None)  # type: ignore[attr-defined]
        if voxels and getattr(model, "reads_images", True):
            device = self.strategy.root_device
            sharing = self.num_devices if device.type == "cpu" else 1
            if line := batch_warning(model, voxels, device, sharing):
                say(line)

    def step_boundary(self) -> None:
        """Between two steps: all processes agree to go on, to save, or to save and stop."""
        callbacks = [callback for callback in self.checkpoint_callbacks if isinstance(callback, Checkpoints)]
        stop, due = self.peers.max([self.signals.received, any(callback.due(self) for callback in callbacks)])
        paths = [str(callback.save(self)) for callback in callbacks] if stop or due else []
        if stop:
            saved_as = f"saved as {paths[0]}" if paths else "not saved, since the config has no Checkpoints callback"
            raise interrupted(self, stop, saved_as)

    def sample(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        num: int | None = None,
        seeds: list[int] | int | None = None,
        batch_size: int = 4,
        out: str = "samples",
        format: Format | None = None,
        attributes: dict[str, float | None] | None = None,
        label_maps: str | None = None,
        sources: str | None = None,
        given: list[int] | None = None,
        requests: str | None = None,
        like: Split | None = None,
    ) -> None:
        """Make images from a checkpoint.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: the people of `like`; nothing else reads data.
            ckpt_path: the checkpoint to sample from.
            num: how many images, with seeds 0, 1, ...; 8, or as many as there are files or people to make them from.
            seeds: the seeds (or one), instead of `num`.
            batch_size: images made at once.
            out: folder for the images and `manifest.csv`.
            format: nifti, png or dicom (a folder of slices for each image); None: nifti for volumes, png for 2D images.
            attributes: what all images are asked to show, e.g. '{"age_years": 70}', of a model that is made from it, in
                the range of its training people; null is unknown.
            label_maps: a folder of label maps, one image is made from each.
            sources: a folder of source images, one image is made from each; with several channels a folder for each.
            given: numbers of the slices of each source that are given; the others are made to fit them.
            requests: a CSV file with a row for each image: columns seed, label_map, source (files), given, and
                attributes by name.
            like: images like the people of this part of the data, from what theirs are made from.
        """
        if ckpt_path is None:
            raise InputError(
                "sample: --ckpt_path is missing; give a checkpoint, e.g. runs/<name>/checkpoints/last.ckpt."
            )
        ckpt_path = behind_link(ckpt_path)
        _refuse_below_one("--batch_size", batch_size)
        generator = _generator(model)
        listed = [seeds] if isinstance(seeds, int) else seeds
        asked = Asked(num, listed, attributes, label_maps, sources, given, requests, like)
        if generator.required and asked.empty and datamodule is not None:
            asked = replace(asked, like="test")
        if asked.like and datamodule is not None:
            datamodule.prepare_data()
            datamodule.setup("test")
        spec = read_spec(Path(ckpt_path)) or generator.needed_spec()
        wanted = requested(asked, generator, spec, datamodule if asked.like else None)  # type: ignore[arg-type]
        self._write_samples(generator, wanted, batch_size, Path(out), format, ckpt_path)
        say(f"{len(wanted)} {WRITTEN[origin(wanted.parts)].format(out)}")

    def evaluate(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        samples: str | None = None,
        num: int | None = None,
        batch_size: int = 4,
        out: str = "report",
        features: str = "learned",
    ) -> None:
        """Score samples against the test people and write report.json, report.md and figures.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: the real images.
            ckpt_path: sample from this checkpoint.
            samples: or read samples from this folder, which `sample` wrote.
            num: how many samples are drawn; None: as many as there are test people. Read samples are all used.
            batch_size: images made at once.
            out: folder of the report.
            features: what Fréchet distance and other scores of features are made of: `learned` (a network trained on
                the training people, kept beside the prepared data), a TorchScript file (inception-2015-12-05.pt gives
                what papers call FID), or `none`.
        """
        if (ckpt_path is None) == (samples is None):
            raise InputError("evaluate: give either --ckpt_path FILE or --samples DIR.")
        if datamodule is None:
            raise InputError("evaluate: no data to compare with; add --config FILE with a `data` section.")
        _refuse_below_one("--batch_size", batch_size)
        _refuse_below_one("--num", 1 if num is None else num)
        data: MedicalDataModule = datamodule  # type: ignore[assignment]
        ckpt_path = behind_link(ckpt_path) if ckpt_path else None
        if self.is_global_zero:
            check_report(Path(out))
        data.prepare_data()
        data.setup("test")
        trained = spec_of(Path(samples)) if samples else read_spec(Path(ckpt_path or ""))
        refuse_other_people(trained, data.spec, f"--samples {samples}" if samples else f"--ckpt_path {ckpt_path}")
        device = self.strategy.root_device
        if not isinstance(model, Generator):
            if ckpt_path is None:
                raise InputError(f"--samples: {type(model).__name__} makes no images; give --ckpt_path FILE.")
            model.take_spec(data.spec)
            restore(model, Path(ckpt_path))
            maker = Maker(type(model).__name__, scores=model.to(device).eval().scores)
            report = write_report(None, data, Path(out), maker, ckpt_path, features, device=device)
        else:
            model.take_spec(data.spec)
            seconds = None
            folder = Path(samples) if samples else Path(out, "samples")
            if ckpt_path is not None:
                wanted = like_people(model, data, "test", num)
                refuse_unfit(model, data, wanted, features)
                _refuse_other_size(ckpt_path, trained, data.spec)
                seconds = self._write_samples(model, wanted, batch_size, folder, None, ckpt_path) / len(wanted)
            if not self.is_global_zero:
                return
            written = read_samples(folder, data.spec)
            source, has_weights = ckpt_path or str(folder), ckpt_path is not None
            report = score(
                *(written.images, written.made_from, model, data, Path(out)),
                *(source, features, seconds, device, has_weights),
            )
        for logger in self.loggers:
            logger.log_metrics(logged(report))

    def _write_samples(
        self, model: Generator, requests: Requests, batch_size: int, out: Path, format: Format | None, ckpt_path: str
    ) -> float:
        """All that is asked for, made by all processes, as files; the seconds it took."""
        writer = SampleWriter(out, format, requests, Path(ckpt_path))
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        try:
            data = _Requested(requests, batch_size)
            self.predict(model, datamodule=data, ckpt_path=ckpt_path, return_predictions=False)
        finally:
            self.callbacks.remove(writer)  # type: ignore[attr-defined]
        return writer.seconds


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


class _Requested(L.LightningDataModule):
    """Requests in batches, dealt out over the processes."""

    def __init__(self, requests: Requests, batch_size: int) -> None:
        super().__init__()
        self.requests, self.batch_size = requests, batch_size

    def predict_dataloader(self) -> DataLoader[Request]:
        """This process's share."""
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, len(self.requests), self.trainer.world_size)
        return DataLoader(mine, batch_size=self.batch_size, collate_fn=self.requests.joined)  # type: ignore[arg-type]


def _refuse_other_size(ckpt_path: str, trained: DataSpec | None, spec: DataSpec) -> None:
    """InputError if the model of a checkpoint makes images that cannot be compared with those of the data."""
    if trained and trained.size != tuple(spec.size):
        raise InputError(
            f"--ckpt_path {ckpt_path}: its images have size {trained.size}, but those of the data have "
            f"{tuple(spec.size)}; use the data it was trained on."
        )


def _refuse_below_one(option: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{option} is {value}; give 1 or more.")


def _generator(model: Method) -> Generator:
    if not isinstance(model, Generator):
        raise InputError(
            f"model.class_path: {type(model).__name__} makes no images; sample and evaluate need a generator."
        )
    return model
