"""What training, reports and second stages read of a data set, once its store is prepared and its people are split."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from data_modules.augmentation import KEY, Augmentation
from data_modules.augmenter import Augmenter
from data_modules.items import Items, Latents
from data_modules.loader import StoreDataset
from data_modules.records import Record
from data_modules.resumable import ResumableLoaders
from data_modules.splits import Split
from data_modules.store import Store
from data_modules.texts import ImageTexts
from lit_medgen.batch import Batch, DataSpec, Images, Requests
from lit_medgen.errors import InputError
from lit_medgen.seeds import mix


class PreparedData(ResumableLoaders):
    """Images of a store by split: `TrainingData`, but for what `MedicalDataModule` derives when it is set up."""

    spec: DataSpec
    store: Store
    fractions: tuple[float, float, float]
    text: str | None
    augmentation: Sequence[Augmentation]
    train_where: dict[str, float]
    _items: Items
    _latents: Latents | None = None

    @cached_property
    def texts(self) -> ImageTexts | None:
        """The texts of the file `text`, opened when they are first asked for."""
        return ImageTexts(self.text) if self.text else None

    def text_null(self) -> Tensor | None:
        """The embedded empty text; see `TrainingData.text_null`."""
        return self.texts.embeddings.null if self.texts else None

    def order(self) -> dict[str, Any]:
        """What decides which samples a step sees, their texts and augmentation; see `ResumableLoaders.order`."""
        texts = {"text": self.texts.embeddings.digest} if self.texts else {}
        changes = {"augmentation": [each.described() for each in self.augmentation]} if self.augmentation else {}
        chosen = {"train_where": self.train_where} if self.train_where else {}
        return super().order() | texts | changes | chosen

    def dataset(self, split: Split) -> StoreDataset:
        """The data set of a split."""
        seed = self.seed if split == "train" else mix(split, self.seed)
        latents = None if split == "test" else self._latents
        is_train = split == "train"
        augmenter = self.augmenter() if is_train and self.augmentation else None
        return StoreDataset(self._items, self.records[split], seed, latents, is_train, augmenter)

    @abstractmethod
    def augmenter(self) -> Augmenter:
        """What draws the changes of training items; InputError if images cannot be changed so."""

    @property
    def voxels_per_batch(self) -> int:
        """Of all images of a batch."""
        return self.batch_size * self.view.num_voxels(self._items.grid)

    def people(self, split: Split) -> dict[str, str]:
        """Store key -> whose image it is (hashed)."""
        return {record.key: record.person for record in self.records[split]}

    @property
    def digest(self) -> str:
        """Hash of the prepared data, which has nobody who is left out, and of the view; see `TrainingData.digest`."""
        view = json.dumps(_plain(self.view), sort_keys=True)
        return hashlib.sha256(f"{self.store.digest} {view}".encode()).hexdigest()

    @property
    def cache(self) -> Path:
        """The store's folder; see `TrainingData.cache`."""
        return self.store.folder

    def images(self, split: Split, one_per_person: bool = False, limit: int | None = None) -> Images:
        """Images of a split as evaluation looks at them; see `TrainingData.images`."""
        records = self.first_visits(split) if one_per_person else self.records[split]
        return self._items.images(records[:limit], self.spec.size)

    def requests(self, split: Split, num: int | None = None) -> Requests:
        """Requests like the people of a split; see `TrainingData.requests`."""
        records = self.first_visits(split)
        if num and not records:
            raise InputError(f"data.init_args.fractions {list(self.fractions)} leave no {split} people to ask for.")
        return self._items.requests(records, num, bool(self.spec.attributes))

    def stored(self, split: Split, first: int = 0) -> Iterator[Batch]:
        """Of each record all images that training can see; see `TrainingData.stored`."""
        return map(self._items.stored, self.records[split][first:])

    def seen(self, split: Split) -> list[tuple[str, int]]:
        """Which images these are; see `TrainingData.seen`."""
        return [image for record in self.records[split] for image in self._items.seen(record)]

    def read_latents(self, latents: Latents | None) -> None:
        """Latents instead of images from now on; see `TrainingData.read_latents`. InputError with an augmentation."""
        if latents is not None:
            self.refuse_augmentation()
        self._latents = latents

    def refuse_augmentation(self) -> None:
        """InputError where training images are augmented, for methods that read latents, made once of each image."""
        if self.augmentation:
            raise InputError(
                f"{KEY}: this method reads latents, which are made of each image once and as it is; leave the "
                "augmentation out, and give it to the training of the first stage."
            )

    def first_visits(self, split: Split) -> list[Record]:
        """A record of each person."""
        first = {record.person: record for record in reversed(self.records[split])}
        return [first[person] for person in dict.fromkeys(self.people(split).values())]


def _plain(view: Any) -> Any:
    """An object as plain data, and those in it."""
    if not hasattr(view, "__dict__"):
        return view
    return [type(view).__qualname__, {name: _plain(value) for name, value in vars(view).items()}]
