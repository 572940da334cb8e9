"""The verbs `sample` and `evaluate`, on a trainer, so that they run on its devices and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from torch.utils.data import DataLoader

from lit_medgen.batch import DataSpec, Request, Requests, Split
from lit_medgen.callbacks.report import check_report, judge_of, logged, refuse_unfit, score, score_alone
from lit_medgen.callbacks.sample_audit import OF_PATIENTS, OFF, SampleAudit
from lit_medgen.callbacks.sample_writer import SampleWriter
from lit_medgen.cascades import cascaded
from lit_medgen.checkpoints import behind_link, read_spec
from lit_medgen.errors import InputError
from lit_medgen.evaluation.quartets import chosen
from lit_medgen.images.origin import WRITTEN
from lit_medgen.loading import restore
from lit_medgen.output import say
from lit_medgen.requests import RequestOptions, requested
from lit_medgen.sample_files import Format
from lit_medgen.sample_reading import read_samples, spec_of
from lit_medgen.sampling import (
    FACTS_OF_IMAGES,
    asking_of_nodules,
    facts_of_conditions,
    like_people,
    origin,
    refuse_other_images,
    refuse_other_texts,
    refuse_unlike,
    say_extrapolated,
)
from lit_medgen.training.frozen import refuse_other_people
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule


class Verbs(L.Trainer):
    """Lightning's trainer with two more verbs."""

    run_name: str
    """The name of the run, which is that of its folder."""

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
        attributes: dict[str, float | str | None] | None = None,
        label_maps: str | None = None,
        sources: str | None = None,
        given: list[int] | None = None,
        requests: str | None = None,
        like: Split | None = None,
        text: str | None = None,
        text_embeddings: str | None = None,
        sources_from: str | None = None,
        masks: str | None = None,
        audit: bool = True,
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
            attributes: what all images are asked to show, e.g. '{"age_years": 70, "sex": "F"}', of a model that is made
                from it, in the range of its training people; null is unknown.
            label_maps: a folder of label maps, one image is made from each.
            sources: a folder of source images, one image is made from each; with several channels a folder for each.
            given: numbers of the slices of each source that are kept; the others are made.
            requests: a CSV file with a row for each image: columns seed, label_map, source (files), given, text
                (a name), and attributes by name.
            like: images from what those of the people of this part of the data are made from.
            text: the name of the text of all images, or `all`: an image for each text.
            text_embeddings: the file of embeddings that has the texts of `text` or of the table's column text, see
                docs/text.md; None: the file `data.init_args.text` of training.
            sources_from: a checkpoint whose samples of the same seeds are the sources: a cascade.
            masks: a folder with a mask for each source, or a file for all: voxels that are not 0 there are made anew,
                to fit the others, which are kept.
            audit: look for copies of training people in the prepared data.
        """
        if ckpt_path is None:
            raise InputError(
                "sample: --ckpt_path is missing; give a checkpoint, e.g. runs/<name>/checkpoints/last.ckpt."
            )
        ckpt_path = behind_link(ckpt_path)
        refuse_below_one(batch_size=batch_size)
        generator = _generator(model)
        _bring_late_parts(generator, Path(ckpt_path))
        listed = [seeds] if isinstance(seeds, int) else seeds
        texts = (text, text_embeddings, getattr(datamodule, "text", None))
        options = RequestOptions(num, listed, attributes, label_maps, sources, given, requests, like, *texts, masks)
        asked = label_maps or sources or requests or like or text or sources_from
        if generator.required and not asked and datamodule is not None:
            options = replace(options, like="test")
        trained = read_spec(Path(ckpt_path)) or generator.needed_spec()
        data = set_up(datamodule) if options.like and datamodule is not None else None
        if data is not None:
            refuse_other_images(f"--ckpt_path {ckpt_path}", trained, data.spec, facts_of_conditions(generator))
            refuse_other_texts(generator, trained, data.spec)
            refuse_other_people(trained, data.spec, f"--ckpt_path {ckpt_path}")
        if sources_from:
            to_make = cascaded(sources_from, options, generator, trained, self.strategy.root_device)
        else:
            to_make = requested(options, generator, trained, data)
        to_make = asking_of_nodules(generator, to_make)
        say_extrapolated(generator, to_make, trained)
        facts: dict[str, Any] = {"source": out, "name": self.run_name, "method": type(generator).__name__}
        facts |= {"notes": [OF_PATIENTS]} if origin(to_make.of_patients) != "synthetic" else {}
        audited = SampleAudit(datamodule, trained, facts) if audit else OFF  # type: ignore[arg-type]
        self._write_samples(generator, to_make, batch_size, Path(out), format, ckpt_path, audited)
        say(f"{len(to_make)} {WRITTEN[origin(to_make.of_patients)].format(out)}")

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
        strips: bool = True,
        judge: str | None = None,
        quartets: int | None = None,
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
            strips: show what each attribute does that the checkpoint's images are made from: up to 7 more images of one
                seed for each.
            judge: the checkpoint of a `CropClassifier` of clean crops that says whether images show what they are asked
                to: two more images of each sample's label map for each label that it tells.
            quartets: also write a page with so many quartets of real and synthetic images, for readers to tell apart.
        """
        if (ckpt_path is None) == (samples is None):
            raise InputError("evaluate: give either --ckpt_path FILE or --samples DIR.")
        if datamodule is None:
            raise InputError("evaluate: no data to compare with; add --config FILE with a `data` section.")
        refuse_below_one(batch_size=batch_size, num=num, quartets=quartets)
        if judge and (samples or not isinstance(model, Generator)):
            raise InputError("--judge: has images made from the model of --ckpt_path, which must make images.")
        if quartets and not isinstance(model, Generator):
            raise InputError(f"--quartets: {type(model).__name__} makes no images for readers to tell; leave it out.")
        if self.is_global_zero:
            check_report(Path(out))
        data = set_up(datamodule)
        ckpt_path = behind_link(ckpt_path) if ckpt_path else None
        trained = spec_of(Path(samples)) if samples else read_spec(Path(ckpt_path or ""))
        refuse_other_people(trained, data.spec, f"--samples {samples}" if samples else f"--ckpt_path {ckpt_path}")
        model.take_spec(data.spec)
        device = self.strategy.root_device
        if not isinstance(model, Generator):
            if ckpt_path is None:
                raise InputError(f"--samples: {type(model).__name__} makes no images; give --ckpt_path FILE.")
            refuse_other_images(f"--ckpt_path {ckpt_path}", trained, data.spec, FACTS_OF_IMAGES)
            if not self.is_global_zero:
                return
            restore(model, Path(ckpt_path))
            report = score_alone(model.to(device).eval(), data, Path(out), ckpt_path, self.run_name)
        else:
            folder, seconds = Path(samples or Path(out, "samples")), None
            if ckpt_path is not None:
                _bring_late_parts(model, Path(ckpt_path))
                requests = like_people(model, data, "test", num)
                refuse_unfit(model, data, requests, features)
                refuse_other_images(f"--ckpt_path {ckpt_path}", trained, data.spec, facts_of_conditions(model))
                refuse_other_texts(model, trained, data.spec)
                say_extrapolated(model, requests, trained or data.spec)
                if quartets:
                    chosen(quartets, len(data.images("test", one_per_person=True)), len(requests))
                if judge:
                    judge_of(judge, model, data)  # before hours are spent on samples
                seconds = self._write_samples(model, requests, batch_size, folder, None, ckpt_path) / len(requests)
            if not self.is_global_zero:
                return
            source, has_weights = ckpt_path or str(folder), ckpt_path is not None
            written, num_at_once = read_samples(folder, data.spec), batch_size if strips and has_weights else None
            where = Path(out), source, features, seconds, device, has_weights, num_at_once
            judging = judge_of(judge, model, data, batch_size, device) if judge else None
            report = score(written, model.to(device).eval(), data, *where, judging, self.run_name, quartets or 0)
        for logger in self.loggers:
            logger.log_metrics(logged(report))

    def _write_samples(
        self,
        model: Generator,
        requests: Requests,
        batch_size: int,
        out: Path,
        format: Format | None,
        ckpt_path: str,
        audit: SampleAudit | str = "none",
    ) -> float:
        """All that is asked for, made by all processes, as files; the seconds it took."""
        writer = SampleWriter(out, format, requests, Path(ckpt_path), audit)
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        try:
            data = _Requested(requests, batch_size)
            self.predict(model, datamodule=data, ckpt_path=ckpt_path, return_predictions=False)
        finally:
            self.callbacks.remove(writer)  # type: ignore[attr-defined]
        return writer.seconds


class _Requested(L.LightningDataModule):
    """Requests in batches, dealt out over the processes."""

    def __init__(self, requests: Requests, batch_size: int) -> None:
        super().__init__()
        self.requests, self.batch_size = requests, batch_size

    def predict_dataloader(self) -> DataLoader[Request]:
        """The requests that this process answers: every n-th of them on n processes."""
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, len(self.requests), self.trainer.world_size)
        return DataLoader(mine, batch_size=self.batch_size, collate_fn=self.requests.joined)  # type: ignore[arg-type]


def refuse_other_data(ckpt_path: str, spec: DataSpec, names: Sequence[str]) -> DataSpec | None:
    """The spec that a checkpoint's model was trained on; InputError for data of other people, or other in a fact."""
    trained = read_spec(Path(ckpt_path))
    refuse_unlike(f"--ckpt_path {ckpt_path}", trained, spec, names)
    return trained


def _bring_late_parts(model: Generator, ckpt_path: Path) -> None:
    """Loads a method whose frozen parts may come late: they say what its images can be asked to show."""
    if any(part.late for part in model.frozen_parts.values()):
        restore(model, ckpt_path)


def set_up(datamodule: L.LightningDataModule) -> MedicalDataModule:
    """The data, prepared, with the images of all parts."""
    data: MedicalDataModule = datamodule  # type: ignore[assignment]
    data.prepare_data()
    data.setup("test")
    return data


def refuse_below_one(**counts: int | None) -> None:
    """InputError for an option that counts something of which there is none; None: it was left out."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"--{option} is {value}; give 1 or more.")


def _generator(model: Method) -> Generator:
    if not isinstance(model, Generator):
        raise InputError(
            f"model.class_path: {type(model).__name__} makes no images; `evaluate` reports its own scores."
        )
    return model
