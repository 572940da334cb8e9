"""`MedicalDataModule`: from a raw folder to batches; every data set is a subclass that lists its scans.

prepare_data   raw tree -> prepared store (once, on one process, restartable)
setup          store -> patient-wise splits, `DataSpec`
loaders        store -> `Batch`, in an order that is a function of (seed, position); see `ResumableLoaders`
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_modules.augmentation import Augmentation, Frame
from data_modules.augmented_figure import plot_augmented
from data_modules.augmenter import Augmenter
from data_modules.divided import DividedPeople
from data_modules.items import Items
from data_modules.listing import Tree, count_suffixes, walk
from data_modules.preparing import prepare
from data_modules.recipes.volumes import Preprocessing
from data_modules.records import Record, has_values, image_hash, known_values, person_hash
from data_modules.sources import IMAGE, Rejected, Scan
from data_modules.split_lists import image_name
from data_modules.splits import SPLITS, Split
from data_modules.store import Store, StoreAddress
from data_modules.summary import account, contents, kinds, lacking, nameless, passed_over
from data_modules.tables import Numbers
from data_modules.texts import name_of
from data_modules.views import View, Volume
from data_modules.withdrawals import LeftOut, clean_all, facts_of_people, note, read_ids, write_note
from lit_medgen.axes import AXES, backward
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.images.png import write_figure
from lit_medgen.output import say

Anatomy = Literal["", "brain"]
FEWEST = {"val": (1, "validation", "there is no val/loss"), "test": (2, "test", "`evaluate` refuses it")}
"""People of a part that a run and its evaluation need; what the part is called, and what fewer people mean."""


class MedicalDataModule(DividedPeople):
    """What every data set shares.

    Args:
        root: folder of the raw data.
        preprocessing: grid and intensities.
        axis: the axis along which slices are stacked.
        view: which part of an image an item shows: one slice (2D methods), sets of slices (cDPM), a crop; None: the
            whole volume or 2D image.
        batch_size: samples per step and process.
        num_workers: data loader processes; 0 reads in the training process.
        worker_timeout_s: seconds after which a batch that does not come ends the run, naming the sample.
        fractions: shares of train, validation and test people.
        fold: "k of n", e.g. "0 of 5": cross-validation. The k-th (from 0) of n equal parts of the people is tested, so
            that each person is in one fold of the n; the second of `fractions` is the share of the others who are
            validation people, and the third counts for nothing.
        augmentation: random changes of training images in the order in which they act (docs/augmentation.md): flips,
            rotations, shifts and zooms first, of image, label map and sources alike, then those of the image's values.
        split_files: text files of who is in which part, `train`, `val`, `test`, or `train_val` for people whom
            `fractions` divide; paths also below the root. A line is an id of a person as the data set names people, or
            the path of an image below the root, with or without suffix. A part without a list is taken from all others.
        seed: of splits, order and draws.
        store_dir: folder that holds the prepared stores.
        num_jobs: processes of the preparation; -1 is one per core.
        balance: attribute (a code, such as sex) of which every value is trained on as often; None: every image is.
        train_where: attribute -> value: images of training and validation people with another or no value are not seen,
            as in `{lesion: 0}` for a model of healthy people; test people are all there.
        exclude: text file of people who are left out, such as those who withdrew, an id a line as the data set names
            them. Nobody else changes sides. All that was made of them goes from every store of this data set in
            `store_dir`, before anything is read, so runs that share a store should share the file.
        text: file of text embeddings (see docs/text.md). A text is that of the image whose path below the root, without
            suffix, is its name, unless the data set says otherwise; texts of a single name are everybody's. Of several
            texts of an image training draws one, evaluation takes the first.
    """

    anatomy: Anatomy = ""
    """What images show; brains (T1-weighted) have scores of their own."""
    ids_are_unique: bool = True
    """Whether an id names one person in all copies and parts of this data set; else only below one root."""
    ids_are_in_names: bool = False
    """Whether names of files are ids of people, so that no error may name one."""
    spec: DataSpec

    def __init__(
        self,
        root: str,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
        axis: Literal["axial", "coronal", "sagittal"] = "axial",
        view: View | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        worker_timeout_s: float = 50,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        store_dir: str = "data/prepared",
        num_jobs: int = -1,
        balance: str | None = None,
        exclude: str | None = None,
        text: str | None = None,
        fold: str | None = None,
        split_files: dict[str, str] | None = None,
        augmentation: list[Augmentation] | None = None,
        train_where: dict[str, float] | None = None,
    ) -> None:
        super().__init__(view or Volume(), batch_size, num_workers, worker_timeout_s, seed, balance)
        self.divide_by(fractions, fold, split_files)
        if num_jobs == 0:
            raise InputError("data.init_args.num_jobs is 0; give a number of processes, or -1 for all cores.")
        self.root, self.preprocessing = Path(root), preprocessing
        self.store_dir, self.axis, self.num_jobs, self.exclude = Path(store_dir), axis, num_jobs, exclude
        self.text, self.augmentation, self.train_where = text, tuple(augmentation or ()), train_where or {}
        self._tree: Tree | None = None
        self.unread = Numbers()
        """Reads numbers of tables for `scans`, and knows the cells that are none."""
        self._scans: list[Scan] = []
        self._set_aside: list[Scan] = []
        self.remarks: list[str] = []
        """What the last preparation has to say besides what it took."""

    @abstractmethod
    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """The raw images of the data set, and what was refused on sight (a subject without an image, say)."""

    def listing(self) -> dict[str, Any]:
        """What besides the root decides which images are listed and what is known of them; each has its own store."""
        return {}

    @property
    def address(self) -> StoreAddress:
        """Where the prepared store lies, and what makes it."""
        name = type(self).__name__.removesuffix("DataModule").lower()
        listing = json.dumps({"root": str(self.root.resolve()), **self.listing()}, sort_keys=True)
        return StoreAddress(self.store_dir, name, self.preprocessing, self.axis, listing)

    def tree(self) -> Tree:
        """What lies below the root, looked through once for each preparation."""
        if self._tree is None:
            self._tree = walk(self.root)
        return self._tree

    def prepare_data(self) -> None:
        """Writes the prepared store; quick where it is already there. Says what was taken and what was not."""
        accepted, rejected = self.prepare()
        say(account(accepted, rejected, self.root, self.address.folder))
        for line in self.taken(accepted, rejected, owner=False):
            say(line)

    def prepare(self, verify: bool = False, figures: bool = False) -> tuple[list[Record], list[Rejected]]:
        """Writes the prepared store; returns what was accepted and rejected. Arguments: those of `preparing.prepare`.

        MissingDataError if there is no data; InputError if every file was rejected.
        """
        if not self.root.is_dir():
            raise MissingDataError(f"data.init_args.root: no folder '{self.root}'. {self.remedy}")
        self._tree, self.unread, self.remarks = None, Numbers(), []
        self._leave_out()
        scans, refused, self._set_aside = self.left_out.set_aside(*self.scans())
        self.remarks += self.left_out.remarks_on(self._set_aside)
        if not scans and self._set_aside:
            raise InputError(
                f"{self.root}: all people who have images are left out ({len(self.left_out.ids)} are listed); look at "
                "the list that data.init_args names."
            )
        if not scans and not refused:
            there = f" (there are {count_suffixes(self.tree().files)} files)" if self.tree().files else ""
            raise MissingDataError(f"data.init_args.root: no images under '{self.root}'{there}. {self.remedy}")
        scans = [self._named(scan) for scan in scans]
        self._divide((person_hash(scan.person), image_hash(scan.name or "")) for scan in scans)  # before hours of work
        if verify and self.texts:
            self.texts.embeddings.verify()
        accepted, rejected = prepare(self.address, scans, refused, self.num_jobs, verify, figures)
        if not note(self.address.folder):
            write_note(self.address.folder, self.left_out, self.root)
        if not accepted:
            first = f"{rejected[0].source}: {rejected[0].reason}"
            first = nameless(rejected[0], self.root) if self.ids_are_in_names else first
            raise InputError(
                f"{self.root}: all {len(rejected)} images were rejected; the first: {first}. "
                f"All are listed in {self.address.folder / 'rejected.csv'}."
            )
        if figures and self.augmentation:
            self._plot_augmented()
        self._scans = scans
        return accepted, rejected

    def _plot_augmented(self) -> None:
        """Writes a figure of an image as it is augmented, which goes with all that is of its person."""
        store = Store(self.address)
        record = self.shown(store.records)[0]
        figure = plot_augmented(Items(store, self.view), self.augmenter(), record, self.stored_spec().is_colour)
        write_figure(store.folder / "figures" / f"{record.file}.augmented.png", figure, dpi=90)

    def taken(self, accepted: Sequence[Record], rejected: Sequence[Rejected], owner: bool) -> list[str]:
        """What the last preparation took, by folder and by kind of name, and what it passed over, a line each.

        `owner` names the folders, which may be called after people.
        """
        refused, taken = Counter(row.source for row in rejected), []
        for scan in self._scans:
            source = str(scan.sources[IMAGE])  # of several series in a folder as many are left out as were rejected
            taken += [scan] if refused[source] < 1 else []
            refused[source] -= 1
        lines = [*self.remarks, *kinds(taken, self.root, owner)]
        beside = [name for name in self.address.preprocessing.arrays(0) if name != IMAGE]
        lines += [
            contents(accepted),
            lacking(accepted, beside),
            self.passed_over(rejected),
            *self.unread.lines(owner),
        ]
        return [line for line in lines if line]

    def passed_over(self, rejected: Sequence[Rejected]) -> str:
        """What the last preparation neither took nor rejected, in a line; "" if that is nothing."""
        return passed_over(self.tree(), [*self._scans, *self._set_aside], rejected)

    remedy: str = "Give the folder that holds the raw data."
    """What to do when there is no data."""

    def setup(self, stage: str) -> None:
        """Opens the store, splits people, derives `spec`."""
        self._leave_out()
        self.store = Store(self.address)
        kept = [record for record in self.store.records if record.person not in self.left_out.people]
        self._sides = self._divide((record.person, record.name) for record in kept)
        kept = self._listed(kept)
        self.records = {split: [] for split in SPLITS}
        for record in self.shown(kept):
            side = self._side_of(record.person)
            if side == "test" or has_values(record, self.train_where, "data.init_args.train_where"):
                self.records[side].append(record)
        tested: tuple[Split, ...] = ("test",) if self.trainer else ()  # not `evaluate` and `sample`, which refuse it
        needed: dict[str, tuple[Split, ...]] = {"fit": ("val", "test"), "validate": ("val",), "test": tested}
        for split in needed.get(stage, ()):
            self._tell_of_few(split)
        if not self.records["train"]:
            raise InputError(
                f"{self._divided} leave no training people of the {len({record.person for record in kept})} there are; "
                f"change {'them' if self._sides else 'fractions or seed'}."
            )
        if self.texts:
            self.texts.tell_of(kept)
        self._items = Items(self.store, self.view, self.texts)
        people: dict[Split, set[str]] = {split: set() for split in SPLITS}
        for record in kept:  # also of whom nothing is shown: other views of the same split are of the same people
            people[self._side_of(record.person)].add(record.person)
        absent = self._sides.split_of_absent if self._sides else self._side_of
        self.spec = replace(self.make_spec(), **facts_of_people(people, self.left_out, absent))

    def _named(self, scan: Scan) -> Scan:
        """The scan with the names of itself and of its text."""
        path = name_of(scan, self.root)
        text, name = (path if given is None else given for given in (scan.text, scan.name))
        return replace(scan, text=text, name=image_name(name) if scan.name is not None else name)

    def shown(self, records: list[Record]) -> list[Record]:
        """The images that are used, from those of all who are not left out, with what the config derives of them."""
        return records

    def _tell_of_few(self, split: Split) -> None:
        """Says that a part has fewer people than what is done with it needs."""
        num, (fewest, name, lost) = len({record.person for record in self.records[split]}), FEWEST[split]
        if num < fewest:
            say(f"{self._divided} leave {num} {name} people: {lost}; give a larger share, another seed or more people.")

    def excluded(self) -> set[str]:
        """People who are left out, as `Scan.person` names them: the ids in the file `exclude`."""
        return set() if self.exclude is None else read_ids(Path(self.exclude), "data.init_args.exclude")

    def _leave_out(self) -> None:
        """Reads who is left out, and removes all that was made of them; before anything else is read."""
        self.left_out = LeftOut(frozenset(self.excluded()))
        clean_all(self.address, self.left_out, self.root, self.ids_are_unique)

    def make_spec(self) -> DataSpec:
        """The facts of the images, once people are split."""
        known = known_values(self.records["train"])
        ranges = {name: (min(values), max(values)) for name, values in known.items()}
        codes = tuple(name for name, values in known.items() if values == {0.0, 1.0})
        fractional = tuple(name for name, values in known.items() if any(value % 1 for value in values))
        names = {name: values for name, values in self.category_names().items() if name in ranges}
        return replace(self.shape(), attributes=ranges, codes=codes, fractional=fractional, category_names=names)

    def category_names(self) -> dict[str, tuple[str, ...]]:
        """Name of an attribute that is a category -> the names of its values 0, 1, ...; read once people are split."""
        return {}

    def shape(self) -> DataSpec:
        """The facts of items that the config alone decides; a method looks at them before anything is prepared."""
        if self.augmentation:
            self.augmenter()
        shape = self.view.spec(self.stored_spec(), self.axis)
        return self.texts.embeddings.described_in(shape) if self.texts else shape

    def brought(self, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
        """A raw image as training sees it, by the recipe of the volumes; see `TrainingData.brought`."""
        recipe, shown = self.preprocessing, self.shape()
        if not isinstance(recipe, Preprocessing) or voxels.ndim != len(recipe.size) or recipe.channels:
            return None
        image = recipe(voxels, affine).voxels * 2 - 1
        if len(shown.size) < len(recipe.size):
            image = image.take((image.shape[AXES[self.axis]] - 1) // 2, AXES[self.axis])
            image = np.flip(image, backward(shown.orientation)).copy()
        return image if image.shape == tuple(shown.size) else None

    def augmenter(self) -> Augmenter:
        """What draws the changes of training items; InputError if images cannot be changed so."""
        stored = self.stored_spec()
        stacked = AXES[self.axis] if self.view.reads_slices else None
        return Augmenter(self.augmentation, Frame(stored.size, stored.spacing_mm, stacked), self.seed)

    def stored_spec(self) -> DataSpec:
        """The same of stored images, before the view; a data set with a recipe of its own says it in its own way."""
        recipe = self.preprocessing
        return DataSpec(
            channels=len(recipe.channels) or 1,
            channel_names=recipe.channels,
            size=recipe.size,
            spacing_mm=recipe.spacing_mm,
            orientation="RAS" if len(recipe.size) == 3 else "",
            intensity_window=recipe.window if recipe.intensity == "window" else (0.0, 1.0),
            intensity_unit="raw" if recipe.intensity == "window" else "normalised",
            classes=recipe.classes,
            sources=tuple(recipe.sources),
            source_size=(recipe.source_size or recipe.size) if recipe.sources else (),
        )
