"""The verb `utility`, on a trainer, so that it runs on its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from lit_medgen.checkpoints import behind_link, read_spec
from lit_medgen.errors import InputError
from lit_medgen.evaluation.held import Scratch
from lit_medgen.evaluation.utility import ADDED, SHARES, Plan, output_files, utility, write_utility
from lit_medgen.evaluation.utility_sets import Made, names_of_tasks, owned, refuse_few, refuse_unknown_split
from lit_medgen.evaluation.utility_training import Training
from lit_medgen.loading import restore
from lit_medgen.output import say
from lit_medgen.sample_reading import read_samples, spec_of
from lit_medgen.sampling import facts_of_conditions, like_people
from lit_medgen.sampling import samples as samples_of
from lit_medgen.training.frozen import refuse_other_people
from lit_medgen.training.generator import Generator
from lit_medgen.training.method import Method
from lit_medgen.verbs import refuse_below_one, refuse_other_data, set_up

if TYPE_CHECKING:
    from data_modules.base import MedicalDataModule


MIN_SEEDS = 2
"""Networks of each kind from which their spread can be told."""


class Utility(L.Trainer):
    """Lightning's trainer with a verb that says what can be learned from samples."""

    run_name: str

    def utility(
        self,
        model: Method,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        samples: str | None = None,
        out: str = "utility",
        predict: list[str] | str | None = None,
        shares: tuple[float, ...] = SHARES,
        added: tuple[float, ...] = ADDED,
        num_seeds: int = 5,
        num_steps: int = 300,
        batch_size: int = 16,
        num: int | None = None,
    ) -> None:
        """Train small networks on samples and on real people, and test both on unseen people: report.json, report.md.

        Args:
            model: the method; from the checkpoint or the samples unless given.
            datamodule: the data that it was trained on; networks learn from its training people and are tested on its
                test people.
            ckpt_path: make samples from this checkpoint, like the training people.
            samples: or read samples from this folder, which `sample --like train` wrote.
            out: folder of the report.
            predict: what the networks predict: names of attributes, e.g. '[sex,age]', or label_map; None: all that the
                samples were asked to show.
            shares: of the training people, for the curve.
            added: shares of the samples that are added to them.
            num_seeds: networks of each kind, 2 at least; intervals hold how they differ.
            num_steps: updates of each network.
            batch_size: images of each update, and images that the model makes together.
            num: how many samples are made; None: one for each image of the training people. Read samples are all used.
        """
        if (ckpt_path is None) == (samples is None):
            raise InputError("utility: give either --ckpt_path FILE or --samples DIR.")
        if datamodule is None:
            raise InputError("utility: no real people; add --config FILE with a `data` section.")
        if not isinstance(model, Generator):
            raise InputError(f"model.class_path: {type(model).__name__} makes no images, so nothing is to be learned.")
        refuse_below_one(num_steps=num_steps, batch_size=batch_size, num=num)
        if num_seeds < MIN_SEEDS:
            raise InputError(
                f"--num_seeds is {num_seeds}; give {MIN_SEEDS} or more: intervals hold how networks differ by seed."
            )
        _refuse_no_shares({"shares": shares, "added": added})
        if self.is_global_zero:
            output_files(Path(out)).check()
        data = set_up(datamodule)
        ckpt_path = behind_link(ckpt_path) if ckpt_path else None
        _refuse_other_split(model, data, ckpt_path, samples)
        refuse_few(data)
        if not self.is_global_zero:
            return
        asked = [predict] if isinstance(predict, str) else predict
        with Scratch(data.cache) as scratch:
            make = _Making(model, data, asked, scratch)
            training = Training(num_steps, batch_size, self.strategy.root_device)
            made, names = make.read(Path(samples)) if samples else make.new(Path(ckpt_path or ""), num, training)
            facts = {"source": samples or ckpt_path, "name": self.run_name, "method": type(model).__name__}
            report = utility(made, data, names, Plan(shares, added, num_seeds), training, facts, skip=not asked)
        write_utility(Path(out), report)
        say(f"utility: {Path(out) / 'report.md'}; figure: curves.png\n{report['verdict']}")


def _refuse_no_shares(options: dict[str, Sequence[float]]) -> None:
    for option, shares in options.items():
        if not shares or not all(0 < share <= 1 for share in shares):
            raise InputError(f"--{option} is {list(shares)}; give shares above 0, up to 1, e.g. '[0.25,1]'.")


def _refuse_other_split(model: Generator, data: MedicalDataModule, ckpt_path: str | None, samples: str | None) -> None:
    """InputError unless samples come from a model that was trained on the training people of this data."""
    if ckpt_path:
        refuse_unknown_split(read_spec(Path(ckpt_path)), f"--ckpt_path {ckpt_path}")
        refuse_other_data(ckpt_path, data.spec, facts_of_conditions(model))
    else:
        trained, source = spec_of(Path(str(samples))), f"--samples {samples}"
        refuse_unknown_split(trained, source)
        refuse_other_people(trained, data.spec, source)


@dataclass(frozen=True)
class _Making:
    """Where samples come from, with the names of what is predicted, which are looked at before anything is made."""

    model: Generator
    data: MedicalDataModule
    asked: Sequence[str] | None
    scratch: Scratch

    def read(self, folder: Path) -> tuple[Made, list[str]]:
        """The samples of a folder."""
        found = read_samples(folder, self.data.spec)
        names = self._names(found.made_from)
        return owned(Made(found.images, found.made_from), self.data), names

    def new(self, ckpt_path: Path, num: int | None, training: Training) -> tuple[Made, list[str]]:
        """Samples like the training people, held while they are needed."""
        restore(self.model, ckpt_path)
        self.model.to(training.device).eval()
        requests = like_people(self.model, self.data, "train", num)
        names = self._names(requests.made_from)
        say(f"utility: making {len(requests)} samples")
        images = self.scratch.hold(samples_of(self.model, requests, training.batch_size), len(requests))
        return owned(Made(images, requests.made_from), self.data), names

    def _names(self, made_from: Sequence[Mapping[str, Any]]) -> list[str]:
        reads_maps = "label_map" in {*self.model.required, *self.model.optional}
        return names_of_tasks(made_from, self.data.spec, reads_maps, self.asked)
