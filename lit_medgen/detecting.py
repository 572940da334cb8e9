"""The verb `detect`, on a trainer, so that it runs on its devices."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lit_medgen.checkpoints import behind_link
from lit_medgen.errors import InputError
from lit_medgen.evaluation.detection import detect, image_sets, output_files, refuse_unable
from lit_medgen.loading import restore
from lit_medgen.sampling import FACTS_OF_IMAGES
from lit_medgen.training.method import Method
from lit_medgen.verbs import refuse_below_one, refuse_other_data, set_up


class Detecting(L.Trainer):
    """Lightning's trainer with a verb that asks a trained model which images are not like those of its training."""

    run_name: str

    def detect(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        out: str = "detection",
        near: list[str] | None = None,
        others: dict[str, str] | None = None,
        num: int | None = None,
        batch_size: int = 16,
    ) -> None:
        """Score how well a model tells images that it was not trained for: report.json, report.md, detected.csv.

        Args:
            model: the method; from the checkpoint unless given.
            datamodule: the data that it was trained on: test people are what it knows, validation people say what is
                usual.
            ckpt_path: the checkpoint of the model.
            out: folder of the report.
            near: which sets are made from the test people, e.g. '[noise,blur]', or '[]' for none; None: all.
            others: name of a set -> folder of its images (NIfTI, MGH, PNG, DICOM), e.g. '{"knees": "data/knees"}', or
                --others.knees data/knees.
            num: people of the data, and images of each of the other sets, at most; None: all.
            batch_size: images that the model looks at together.
        """
        if datamodule is None or ckpt_path is None:
            raise InputError("detect: give --ckpt_path FILE, and --config FILE with a `data` section if it holds none.")
        refuse_below_one(batch_size=batch_size, num=num)
        refuse_unable(model)
        if self.is_global_zero:
            output_files(Path(out)).check()
        data = set_up(datamodule)
        ckpt_path = behind_link(ckpt_path)
        refuse_other_data(ckpt_path, data.spec, FACTS_OF_IMAGES)
        if not self.is_global_zero:
            return
        sets = image_sets(data, near, others or {}, num)
        restore(model, Path(ckpt_path))
        model.to(self.strategy.root_device).eval()
        detect(model, data, sets, Path(out), ckpt_path, batch_size, self.run_name)
