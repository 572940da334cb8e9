"""What an audit compares samples with: all images that a model was trained on, in both representations, kept on disk.

Kept beside the prepared store, under a hash of what they were made from (the store's content, which images of it were
trained on, the recipe), so an audit of further samples reads no training image, and the withdrawal of a person removes
them with all else that was derived.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_medgen.batch import Images, TrainingData
from lit_medgen.evaluation import audit_views as views
from lit_medgen.evaluation.audit_views import Embedding, coarse, learn, turned, voxels
from lit_medgen.evaluation.copies import Nearest, nearest
from lit_medgen.files import write_atomically
from lit_medgen.metrics.known import blocks

REPRESENTATIONS = ("voxels", "embedding")
VERSION = 1
"""Of the representations; another one is made anew."""
QUERIES = 256
"""Images whose flips and rotations are in memory at a time."""


def training_images(data: TrainingData) -> Images:
    """All images of the training people that training can see: of 2D images of volumes every slice, not some."""
    images = data.images("train")
    seen = data.seen("train") if len(data.spec.size) == 2 else []
    if len(seen) <= len(images):
        return images
    whose = data.people("train")
    first: dict[str, int] = {}
    for position, (key, _) in enumerate(seen):
        first.setdefault(key, position)
    number_of = {key: number for number, key in enumerate(first)}

    def read(indices: Sequence[int]) -> Tensor:
        found: list[Tensor] = []
        of, held = "", torch.empty(0)
        for index in indices:
            key = seen[index][0]
            if key != of:
                of, held = key, next(data.stored("train", number_of[key])).image
            found.append(held[index - first[key]])
        return torch.stack(found)

    return Images([f"{key}-{slice_:04d}" for key, slice_ in seen], [whose[key] for key, _ in seen], read)


@dataclass(frozen=True)
class Reference:
    """The training images as an audit knows them.

    Attributes:
        images: of the training people, read where they are shown or planted.
        features: m d, `audit_views.voxels` of each.
        embedding: learned from them.
        embedded: m k.
    """

    images: Images
    features: Tensor
    embedding: Embedding
    embedded: Tensor

    @classmethod
    def of(cls, data: TrainingData) -> Reference:
        """That of data which is set up; read from beside its store where it has been made before."""
        images = training_images(data)
        path = data.cache / "audit" / f"{_digest(data, images)}.pt"
        if (known := _read(path)) is None:
            known = _made(images)
            _keep(path, known)
        return cls(images, known["features"], Embedding(known["mean"], known["matrix"]), known["embedded"])

    def nearest(self, images: Images) -> dict[str, Nearest]:
        """Representation -> the training image most like each of n images, over their flips and small rotations."""
        found: dict[str, list[Nearest]] = {name: [] for name in REPRESENTATIONS}
        for some in _split(images):
            features = [voxels(each) for each in turned(some)]
            found["voxels"].append(nearest(features, self.features))
            found["embedding"].append(nearest([self.embedding(each) for each in features], self.embedded))
        return {
            name: Nearest(torch.cat([part.index for part in parts]), torch.cat([part.likeness for part in parts]))
            for name, parts in found.items()
        }


def _split(images: Images) -> Iterator[Tensor]:
    for block in blocks(images):
        yield from coarse(block).split(QUERIES)


def _digest(data: TrainingData, images: Images) -> str:
    """Hash of all that the reference is made from."""
    constants = [getattr(views, name) for name in dir(views) if name.isupper()]
    recipe = json.dumps([VERSION, data.digest, data.spec.people.get("train", ""), images.keys, repr(constants)])
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _made(images: Images) -> dict[str, Tensor]:
    small = torch.cat([coarse(block) for block in blocks(images)])
    features = torch.cat([voxels(some) for some in small.split(QUERIES)])
    chosen = torch.arange(min(len(small), views.MAX_LEARNED)) * len(small) // min(len(small), views.MAX_LEARNED)
    embedding = learn(small[chosen])
    return {"features": features, "embedded": embedding(features), **embedding._asdict()}


def _read(path: Path) -> dict[str, Tensor] | None:
    """What was kept there; None where nothing was, or it cannot be read."""
    try:
        content: dict[str, Tensor] = torch.load(path, weights_only=True)
        return content if {"features", "embedded", "mean", "matrix"} <= content.keys() else None
    except Exception:  # whatever is wrong with it, it is made anew
        return None


def _keep(path: Path, content: dict[str, Tensor]) -> None:
    """Writes it, where the store can be written."""
    if not os.access(path.parent.parent, os.W_OK):
        return
    path.parent.mkdir(exist_ok=True)
    file = io.BytesIO()
    torch.save(content, file)
    write_atomically(path, file.getvalue())
