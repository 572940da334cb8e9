"""The verb `audit`, on a trainer, so that it runs on its devices; and the audit at the end of `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch

from lit_medgen.batch import Images
from lit_medgen.callbacks.sample_audit import images_in
from lit_medgen.checkpoints import behind_link
from lit_medgen.errors import InputError
from lit_medgen.evaluation.audit import FALSE_ALARMS, audit, output_files, refuse_few_people, write_audit
from lit_medgen.evaluation.membership import membership as membership_of
from lit_medgen.loading import restore
from lit_medgen.output import say
from lit_medgen.sample_reading import spec_of
from lit_medgen.sampling import FACTS_OF_IMAGES, facts_of_conditions, like_people, refuse_unlike
from lit_medgen.sampling import samples as samples_of
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method
from lit_medgen.verbs import refuse_below_one, refuse_other_data, set_up

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule


class Auditing(L.Trainer):
    """Lightning's trainer with a verb that looks for copies of training people among samples."""

    run_name: str

    def audit(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        samples: str | None = None,
        out: str = "audit",
        num: int | None = None,
        false_alarms: float = FALSE_ALARMS,
        membership: bool = True,
        batch_size: int = 16,
    ) -> None:
        """Look for copies of training people among samples: report.json, report.md and figures.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: the data that it was trained on: training people are what is looked for, validation and test
                people say how alike people are.
            ckpt_path: the checkpoint of the model.
            samples: a folder of images, written by `sample` or by anything else; None: they are made now, like the
                test people.
            out: folder of the report.
            num: how many samples are made, or read from a folder without a manifest, at most; None: one for each image
                of the test people, or all.
            false_alarms: share of unseen people that may be called copies; fewer people allow only more.
            membership: also tell whether the model's losses know the training people from unseen ones.
            batch_size: images that the model works on together.
        """
        if datamodule is None or ckpt_path is None:
            raise InputError("audit: give --ckpt_path FILE, and --config FILE with a `data` section if it holds none.")
        refuse_below_one(batch_size=batch_size, num=num)
        if not 0 < false_alarms < 1:
            raise InputError(f"--false_alarms is {false_alarms}; give a share between 0 and 1.")
        if not samples and not isinstance(model, Generator):
            raise InputError(f"audit: {type(model).__name__} makes no images; give --samples DIR.")
        if self.is_global_zero:
            output_files(Path(out)).check()
        data = set_up(datamodule)
        ckpt_path = behind_link(ckpt_path)
        names = facts_of_conditions(model) if isinstance(model, Generator) else FACTS_OF_IMAGES
        refuse_other_data(ckpt_path, data.spec, names)
        if samples:  # a model of other people cannot have copied these, and would pass
            refuse_unlike(f"--samples {samples}", spec_of(Path(samples)), data.spec, FACTS_OF_IMAGES)
        refuse_few_people(data)
        if not self.is_global_zero:
            return
        restore(model, Path(ckpt_path))
        model.to(self.strategy.root_device).eval()
        images = images_in(Path(samples), data, num) if samples else _made(model, data, num, batch_size)
        facts = {"source": samples or ckpt_path, "name": self.run_name, "method": type(model).__name__}
        of_losses = membership_of(model, data, batch_size) if membership else None
        report, pairs = audit(images, data, facts, false_alarms, of_losses)
        write_audit(Path(out), report, pairs)
        say(
            f"audit: {Path(out) / 'report.md'}; figures: pairs.png (training people), likeness.png\n{report['verdict']}"
        )


def _made(model: Method, data: MedicalDataModule, num: int | None, batch_size: int) -> Images:
    assert isinstance(model, Generator)
    requests = like_people(model, data, "test", num)
    return Images.of(torch.cat(list(samples_of(model, requests, batch_size))))
