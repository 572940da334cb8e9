"""`Trainer`: Lightning's, with the verbs `sample` and `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from torch.utils.data import DataLoader

from lit_medgen.callbacks.sample_writer import Format, SampleWriter, read_samples
from lit_medgen.errors import InputError
from lit_medgen.methods.base import Generator, Method, Requests

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule


class Trainer(L.Trainer):
    """Lightning's Trainer with a named run folder and two more verbs."""

    run_name: str = ""
    """Name of the run folder below `default_root_dir`."""

    def sample(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        num: int = 8,
        seeds: list[int] | None = None,
        batch_size: int = 4,
        out: str = "samples",
        format: Format = "nifti",
    ) -> None:
        """Make images from a checkpoint.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: not read.
            ckpt_path: the checkpoint to sample from.
            num: how many images, with seeds 0, 1, ...
            seeds: the seeds, instead of `num`.
            batch_size: images made at once.
            out: folder for the images and `manifest.csv`.
            format: file format.
        """
        if ckpt_path is None:
            raise InputError(
                "sample: --ckpt_path is missing; give a checkpoint, e.g. runs/<name>/checkpoints/last.ckpt."
            )
        wanted = seeds if seeds is not None else list(range(num))
        if not wanted or len(set(wanted)) != len(wanted):
            raise InputError(f"--seeds {wanted}: give at least one seed and each seed once (or --num).")
        self._write_samples(_generator(model), wanted, batch_size, out, format, ckpt_path)
        if self.is_global_zero:
            print(f"{len(wanted)} samples in {out}")

    def evaluate(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        samples: str | None = None,
        num: int | None = None,
        batch_size: int = 4,
        out: str = "report",
    ) -> None:
        """Score samples against the test people and write report.json, report.md and a figure.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: the real images.
            ckpt_path: sample from this checkpoint.
            samples: or read samples from this folder, which `sample` wrote.
            num: how many samples are drawn; None: as many as there are test people. Read samples are all used.
            batch_size: images made at once.
            out: folder of the report.
        """
        from lit_medgen.evaluation import evaluate

        if (ckpt_path is None) == (samples is None):
            raise InputError("evaluate: give either --ckpt_path FILE or --samples DIR.")
        if datamodule is None:
            raise InputError("evaluate: no data to compare with; add --config FILE with a `data` section.")
        data: MedicalDataModule = datamodule  # type: ignore[assignment]
        data.prepare_data()
        data.setup("test")
        generator = _generator(model)
        generator.spec = data.spec
        if ckpt_path is not None:
            samples = str(Path(out, "samples"))
            seeds = list(range(num or len({record.person for record in data.records["test"]})))
            self._write_samples(
                generator, seeds, batch_size, samples, "nifti" if len(data.spec.size) == 3 else "png", ckpt_path
            )
        if self.is_global_zero:
            assert samples is not None
            images = read_samples(Path(samples), data.spec)
            evaluate(images, data, Path(out), seams=generator.seams(), source=ckpt_path or samples)

    def _write_samples(
        self, model: Generator, seeds: Sequence[int], batch_size: int, out: str, format: Format, ckpt_path: str
    ) -> None:
        """Samples of all seeds, made by all processes, as files."""
        writer = SampleWriter(Path(out), format, seeds, Path(ckpt_path))
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        try:
            self.predict(model, datamodule=_Requested(seeds, batch_size), ckpt_path=ckpt_path, return_predictions=False)
        finally:
            self.callbacks.remove(writer)  # type: ignore[attr-defined]


class _Requested(L.LightningDataModule):
    """Seeds in batches, dealt out over the processes."""

    def __init__(self, seeds: Sequence[int], batch_size: int) -> None:
        super().__init__()
        self.seeds, self.batch_size = list(seeds), batch_size

    def predict_dataloader(self) -> DataLoader[Requests]:
        """This process's share."""
        assert self.trainer is not None
        mine = self.seeds[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=self.batch_size, collate_fn=Requests)  # type: ignore[arg-type]


def _generator(model: Method) -> Generator:
    if not isinstance(model, Generator):
        raise InputError(
            f"model.class_path: {type(model).__name__} makes no images; sample and evaluate need a generator."
        )
    return model
