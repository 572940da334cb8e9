"""`MedicalDataModule`: from a raw folder to batches; every data set is a subclass that lists its scans.

prepare_data   raw tree -> prepared store (once, on one process, restartable)
setup          store -> patient-wise splits, `DataSpec`
loaders        store -> `Batch`, in an order that is a function of (seed, position)
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.listing import Tree, count_suffixes, walk
from data_modules.loader import WatchedDataset, WatchedLoader
from data_modules.order import Place, PositionBatches
from data_modules.recipes.volumes import Preprocessing
from data_modules.splits import SPLITS, Split, identity, split_of
from data_modules.store import Record, Rejected, Scan, Store, StoreAddress, prepare
from data_modules.summary import account, contents, kinds, passed_over
from data_modules.tables import Numbers
from data_modules.views import OneSlice, SliceDraw, Slices
from lit_medgen.batch import Batch, Condition, DataSpec, Images, Request, Requests
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.output import say
from lit_medgen.seeds import mix

Anatomy = Literal["", "brain"]
Codes = Callable[[Batch], torch.Tensor]
FEWEST: dict[Split, int] = {"train": 1, "val": 1, "test": 2}
"""People of each part that a run and its evaluation need."""


class StoreDataset(WatchedDataset):
    """Records of a store as batches of one.

    Args:
        store: the prepared store.
        records: the records of one split.
        draw: one slice, the slice sets of cDPM, or None for whole volumes.
        seed: with the position it decides the draw.
        codes: gives the stored codes of a batch, whose images are then not read; None: they are.
    """

    def __init__(
        self,
        store: Store,
        records: Sequence[Record],
        draw: SliceDraw | None,
        seed: int,
        codes: Codes | None = None,
    ) -> None:
        super().__init__()
        self.store, self.records, self.draw, self.seed, self.codes = store, list(records), draw, seed, codes

    def __len__(self) -> int:
        return len(self.records)

    def name(self, place: Place) -> str:
        """The store's file."""
        return str(self.store.path(self.records[place[1]]))

    def read(self, place: Place) -> Batch:
        """One sample."""
        position, index = place
        record, slices = self.records[index], None
        if self.draw is not None:
            slices = self.draw.draw(self.store.num_slices, np.random.default_rng(mix("slices", self.seed, position)))
        batch = Batch(
            image=torch.empty(1, 0) if self.codes else self._image(record, slices),
            key=[record.key],
            affine=torch.from_numpy(record.affine)[None],
            condition=Condition(
                attributes={name: torch.tensor([value]) for name, value in record.attributes.items()},
                label_map=self._label_map(record),
                slice_index=None if slices is None else torch.from_numpy(slices.index)[None],
                observed=None if slices is None else torch.from_numpy(slices.observed)[None],
            ),
        )
        return replace(batch, latent=self.codes(batch)) if self.codes else batch

    def _image(self, record: Record, slices: Slices | None) -> torch.Tensor:
        """1 1 *s: the volume, one of its slices, or a set of them with -1 in places of padding."""
        if slices is None:
            image = self.store.read(record)
        else:
            real = slices.index >= 0
            chosen = self.store.read(record, slices.index[real])
            if isinstance(self.draw, OneSlice):
                image = upright(chosen)[0]
            else:
                image = np.full((len(real), *chosen.shape[1:]), -1, dtype=np.float32)
                image[real] = chosen
        return torch.from_numpy(np.ascontiguousarray(image))[None, None]

    def _label_map(self, record: Record) -> torch.Tensor | None:
        classes = self.store.label_map(record)
        return None if classes is None else torch.from_numpy(classes.astype(np.int64))[None, None]


def upright(slices: np.ndarray) -> np.ndarray:
    """Slices n a b of a RAS volume as images: the second axis goes down, as in every 2D image, so up stays up."""
    return slices[..., ::-1]


class MedicalDataModule(L.LightningDataModule, ABC):
    """What every data set shares.

    Args:
        root: folder of the raw data.
        preprocessing: grid and intensities.
        axis: the axis along which slices are stacked.
        slices: draws one slice (2D methods) or the slice sets of cDPM; None for whole volumes (or 2D images).
        batch_size: samples per step and process.
        num_workers: data loader processes; 0 reads in the training process.
        worker_timeout_s: seconds after which a batch that does not come ends the run, naming the sample.
        fractions: shares of train, validation and test people.
        seed: of splits, order and draws.
        store_dir: folder that holds the prepared stores.
        num_jobs: processes of the preparation; -1 is one per core.
    """

    anatomy: Anatomy = ""
    """What images show; brains (T1-weighted) have scores of their own."""
    spec: DataSpec
    stored_codes: Codes | None = None
    """Gives the stored codes of training and validation images, where a second stage has set it: batches then hold
    codes instead of images."""
    batch_size: int  # public, so that Lightning's batch size scaling finds it

    def __init__(
        self,
        root: str,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
        axis: Literal["axial", "coronal", "sagittal"] = "axial",
        slices: SliceDraw | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        worker_timeout_s: float = 50,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        store_dir: str = "data/prepared",
        num_jobs: int = -1,
    ) -> None:
        super().__init__()
        if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
            raise InputError(f"data.init_args.fractions is {list(fractions)}; give three shares that sum to 1.")
        if batch_size < 1:
            raise InputError(f"data.init_args.batch_size is {batch_size}; give at least 1.")
        if num_workers < 0:
            raise InputError(f"data.init_args.num_workers is {num_workers}; give 0 (no worker processes) or more.")
        if num_jobs == 0:
            raise InputError("data.init_args.num_jobs is 0; give a number of processes, or -1 for all cores.")
        self.root, self.preprocessing, self.slices = Path(root), preprocessing, slices
        self.batch_size, self.num_workers, self.num_jobs = batch_size, num_workers, num_jobs
        self.worker_timeout_s = worker_timeout_s
        self._first_position = self._first_batch = 0
        self.fractions, self.seed = fractions, seed
        self.store_dir, self.axis = Path(store_dir), axis
        self.records: dict[Split, list[Record]] = {}
        self._tree: Tree | None = None
        self.unread = Numbers()
        """Reads numbers of tables for `scans`, and knows the cells that are none."""
        self._scans: list[Scan] = []

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
        """Writes the prepared store; returns what was accepted and rejected. Arguments: as those of `store.prepare`.

        MissingDataError if there is no data; InputError if every file was rejected.
        """
        if not self.root.is_dir():
            raise MissingDataError(f"data.init_args.root: no folder '{self.root}'. {self.remedy}")
        self._tree, self.unread = None, Numbers()
        scans, refused = self.scans()
        if not scans and not refused:
            there = f" (there are {count_suffixes(self.tree().files)} files)" if self.tree().files else ""
            raise MissingDataError(f"data.init_args.root: no images under '{self.root}'{there}. {self.remedy}")
        accepted, rejected = prepare(self.address, scans, refused, self.num_jobs, verify, figures)
        if not accepted:
            raise InputError(
                f"{self.root}: all {len(rejected)} images were rejected; the first: {rejected[0].source}: "
                f"{rejected[0].reason}. All are listed in {self.address.folder / 'rejected.csv'}."
            )
        self._scans = scans
        return accepted, rejected

    def taken(self, accepted: Sequence[Record], rejected: Sequence[Rejected], owner: bool) -> list[str]:
        """What the last preparation took, by folder and by kind of name, and what it passed over, a line each.

        Args:
            accepted: what is in the store.
            rejected: what is not.
            owner: name the folders, which may be called after people.
        """
        refused, taken = Counter(row.source for row in rejected), []
        for scan in self._scans:
            place = str(scan.place)  # of several series in one folder as many are left out as were rejected
            taken += [scan] if refused[place] < 1 else []
            refused[place] -= 1
        lines = kinds(taken, self.root, owner)
        lines += [contents(accepted), passed_over(self.tree(), self._scans, rejected), *self.unread.told(owner)]
        return [line for line in lines if line]

    remedy: str = "Give the folder that holds the raw data."
    """What to do when there is no data."""

    def setup(self, stage: str) -> None:
        """Opens the store, splits people, derives `spec`."""
        self.store = self.open_store()
        self.records = {split: [] for split in SPLITS}
        for record in self.store.records:
            self.records[split_of(record.person, self.fractions, self.seed)].append(record)
        tested: tuple[Split, ...] = ("test",) if self.trainer else ()  # not `evaluate` and `sample`, which refuse it
        needed: dict[str, tuple[Split, ...]] = {"fit": ("val", "test"), "validate": ("val",), "test": tested}
        for split in needed.get(stage, ()):
            self._tell_of_few(split)
        if not self.records["train"]:
            raise InputError(
                f"data.init_args.fractions {list(self.fractions)} leave no training people of the "
                f"{len({record.person for record in self.store.records})} there are; change fractions or seed."
            )
        people: dict[str, str] = {split: identity(self.people(split).values()) for split in SPLITS}
        self.spec = replace(self.make_spec(), codes=_codes(self.records["train"]), people=people)

    def _tell_of_few(self, split: Split) -> None:
        """Says that a part has fewer people than what is done with it needs."""
        people = {record.person for record in self.records[split]}
        if len(people) < FEWEST[split]:
            name, lost = {"val": ("validation", "there is no val/loss")}.get(split, ("test", "`evaluate` refuses it"))
            say(
                f"data.init_args.fractions {list(self.fractions)} and seed {self.seed} leave {len(people)} {name} "
                f"people: {lost}; give a larger share, another seed or more people."
            )

    def open_store(self) -> Store:
        """The prepared store."""
        return Store(self.address)

    def make_spec(self) -> DataSpec:
        """The facts of the images, once people are split."""
        return replace(self.shape(), attributes=self.attribute_ranges())

    def shape(self) -> DataSpec:
        """The facts of the images that the config alone decides; a method looks at them before anything is prepared.

        A data set that makes its spec in another way gives these in another way, too.
        """
        size, spacing_mm = self.preprocessing.size, self.preprocessing.spacing_mm
        if len(size) == 2 and self.slices:
            raise InputError("data.init_args.slices is set, but the images are 2D; set it to null.")
        if isinstance(self.slices, OneSlice):
            self.slices.evaluated(size[self.address.stacked])  # refused here, before a worker does
            plane = [axis for axis in range(3) if axis != self.address.stacked]
            size, spacing_mm = tuple(size[axis] for axis in plane), tuple(spacing_mm[axis] for axis in plane)
        return DataSpec(
            channels=1,
            size=size,
            spacing_mm=spacing_mm,
            orientation="RAS" if len(size) == 3 else "",
            intensity_window=self.preprocessing.window if self.preprocessing.intensity == "window" else (0.0, 1.0),
            intensity_unit="raw" if self.preprocessing.intensity == "window" else "normalised",
            slice_axis=self.address.axis if self.slices and len(size) == 3 else "",
        )

    def attribute_ranges(self) -> dict[str, tuple[float, float]]:
        """name -> (low, high) of every attribute that is known for any training person."""
        return _ranges(self.records["train"])

    def dataset(self, split: Split) -> StoreDataset:
        """The data set of a split."""
        seed = self.seed if split == "train" else mix(split, self.seed)
        codes = None if split == "test" else self.stored_codes
        return StoreDataset(self.store, self.records[split], self.slices, seed, codes)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless batches, from the position that the run has reached."""
        self._first_batch = self._num_batches()
        dataset = self.dataset("train")
        rank, world_size = self._place_of_process()
        batches = PositionBatches(len(dataset), self.batch_size, self.seed, rank, world_size, self._first_position)
        return self._loader(dataset, batch_sampler=batches)

    def state_dict(self) -> dict[str, int]:
        """Position in the order of samples, which is what a resumed run needs, on however many processes."""
        batches = self._num_batches() - self._first_batch
        return {"position": self._first_position + batches * self._place_of_process()[1] * self.batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Starts from a saved position; called before the loaders are made."""
        self._first_position = state_dict["position"]

    def order(self) -> dict[str, Any]:
        """What decides, with the position in the run, which samples a step sees."""
        images = len(self.records["train"])
        return {"seed": self.seed, "batch_size": self.batch_size, "slices": self.slices, "images": images}

    def _num_batches(self) -> int:
        """Batches that the run has taken since its beginning."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed if self.trainer else 0

    def _place_of_process(self) -> tuple[int, int]:
        """Rank and world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation people, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test people, in order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> DataLoader[Batch]:
        rank, world_size = self._place_of_process()
        places = [(index, index) for index in range(rank, len(self.records[split]), world_size)]
        return self._loader(self.dataset(split), batch_size=self.batch_size, sampler=places)

    def _loader(self, dataset: StoreDataset, **order: Any) -> DataLoader[Batch]:
        """The batches of a data set, in an order given by a sampler."""
        return WatchedLoader(
            dataset,
            **order,
            num_workers=self.num_workers,
            collate_fn=Batch.join,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=self.worker_timeout_s if self.num_workers else 0,
        )

    @property
    def voxels_per_batch(self) -> int:
        """Of all images of a batch."""
        voxels = math.prod(self.spec.size)
        if self.slices and not isinstance(self.slices, OneSlice):
            voxels = voxels // self.store.num_slices * self.slices.max_slices
        return self.batch_size * voxels

    def people(self, split: Split) -> dict[str, str]:
        """Store key -> whose image it is (hashed)."""
        return {record.key: record.person for record in self.records[split]}

    @property
    def every_slice(self) -> np.ndarray | None:
        """The slices that can be drawn one at a time; None where images are no slices."""
        return self.slices.used(self.store.num_slices) if isinstance(self.slices, OneSlice) else None

    @property
    def images_per_person(self) -> int:
        """How many images of each person `volumes` gives where it gives one visit of each."""
        return self.slices.per_person if isinstance(self.slices, OneSlice) else 1

    @property
    def digest(self) -> str:
        """Hash of the prepared data and of the view of it, for all that is derived from both."""
        slices = None if self.slices is None else [type(self.slices).__qualname__, vars(self.slices)]
        view = json.dumps(slices, sort_keys=True, default=lambda part: [type(part).__qualname__, vars(part)])
        return hashlib.sha256(f"{self.store.digest} {view}".encode()).hexdigest()

    @property
    def cache(self) -> Path:
        """The folder where what is derived from the prepared data is kept: that of the store."""
        return self.store.folder

    def images(self, split: Split, one_per_person: bool = False, limit: int | None = None) -> Images:
        """Images of a split as evaluation looks at them; see `TrainingData.images`."""
        items = self._evaluated(split, one_per_person)[: None if limit is None else limit * self.images_per_person]

        def read(indices: Sequence[int]) -> torch.Tensor:
            images = [self.images_of(record, part) for record, part in (items[index] for index in indices)]
            return torch.cat(images) if images else torch.empty(0, self.spec.channels, *self.spec.size)

        return Images([_name(*item) for item in items], [record.person for record, _ in items], read)

    def requests(self, split: Split, num: int | None = None) -> Requests:
        """Requests like the people of a split; see `TrainingData.requests`."""
        items = self._evaluated(split, one_per_person=True)
        num = len(items) if num is None else num
        if num and not items:
            raise InputError(f"data.init_args.fractions {list(self.fractions)} leave no {split} people to ask for.")
        made_from = [_told(*items[index % len(items)]) for index in range(num)]
        known = {"attributes": self.spec.attributes, "label_map": self.spec.classes, "source": True}
        parts: frozenset[Any] = frozenset(part for part, there in known.items() if there)
        return Requests(range(num), made_from, parts, lambda index: self._request(index, *items[index % len(items)]))

    def stored(self, split: Split) -> Iterator[Batch]:
        """Of every record a batch of all images that training can see of it; see `TrainingData.stored`."""
        index = None if self.every_slice is None else torch.from_numpy(self.every_slice)[:, None]
        for record in self.records[split]:
            images = self.images_of(record, self.every_slice)
            yield Batch(
                image=images,
                key=[record.key] * len(images),
                affine=torch.from_numpy(record.affine).expand(len(images), -1, -1),
                condition=Condition(slice_index=index),
            )

    def read_latents(self, latents: Callable[[Batch], torch.Tensor] | None) -> None:
        """From now on training and validation batches hold what `latents` gives of them; None: images."""
        self.stored_codes = latents

    def _evaluated(self, split: Split, one_per_person: bool) -> list[tuple[Record, np.ndarray | None]]:
        """What evaluation looks at: records, each with one slice where images are slices."""
        records = self.first_visits(split) if one_per_person else self.records[split]
        if not isinstance(self.slices, OneSlice):
            return [(record, None) for record in records]
        slices = self.slices.evaluated(self.store.num_slices)
        return [(record, slices[k : k + 1]) for record in records for k in range(len(slices))]

    def _request(self, seed: int, record: Record, part: np.ndarray | None) -> Request:
        """An image like one that is there."""
        image, label_map = self.images_of(record, part), self.store.label_map(record)
        condition = Condition(
            attributes={name: torch.tensor([value]) for name, value in record.attributes.items()},
            label_map=None if label_map is None else torch.from_numpy(label_map.astype(np.int64))[None, None],
            source=image,
            slice_index=None if part is None else torch.from_numpy(part)[None],
        )
        return Request([seed], condition, [record.key], torch.from_numpy(record.affine)[None], image)

    def attributes_of(self, split: Split) -> dict[str, list[float]]:
        """name -> its value for every image that `volumes` gives where it gives one visit of each person."""
        records = [record for record in self.first_visits(split) for _ in range(self.images_per_person)]
        return {name: [record.attributes[name] for record in records] for name in self.spec.attributes}

    def first_visits(self, split: Split) -> list[Record]:
        """A record of each person."""
        first = {record.person: record for record in reversed(self.records[split])}
        return [first[person] for person in dict.fromkeys(self.people(split).values())]

    def images_of(self, record: Record, slices: np.ndarray | None = None) -> torch.Tensor:
        """n c *s in [-1, 1]: the volume (or 2D image) alone, or the given of its slices, each an image."""
        found = self.store.read(record)[None] if slices is None else upright(self.store.read(record, slices))
        return torch.from_numpy(np.ascontiguousarray(found))[:, None]


def _told(record: Record, part: np.ndarray | None) -> Mapping[str, Any]:
    """What the manifest says of an image that was made like another: the other's key and its known attributes."""
    known = {name: value for name, value in record.attributes.items() if np.isfinite(value)}
    return {"key": _name(record, part), **known}


def _name(record: Record, part: np.ndarray | None) -> str:
    """The key of an image, with the number of the slice where it is one of several."""
    return record.key if part is None else f"{record.key}-{part[0]:04d}"


def _ranges(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """name -> (low, high) of every attribute that is known for anybody."""
    ranges = {}
    for name in records[0].attributes:
        values = np.array([record.attributes[name] for record in records])
        if np.isfinite(values).any():
            ranges[name] = (float(np.nanmin(values)), float(np.nanmax(values)))
    return ranges


def _codes(records: Sequence[Record]) -> tuple[str, ...]:
    """Names of the attributes that are 0 or 1 wherever they are known, and both somewhere."""
    known = {name: {record.attributes[name] for record in records} for name in records[0].attributes}
    return tuple(name for name, values in known.items() if {v for v in values if np.isfinite(v)} == {0.0, 1.0})
