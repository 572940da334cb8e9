"""The real images that a report compares samples with, by hashes: reports are comparable if these are the same."""

from __future__ import annotations

import hashlib
from typing import Any

from lit_medgen.batch import Images, TrainingData
from lit_medgen.metrics.known import blocks
from lit_medgen.people import sum_of_all

NUM_DIGITS = 12
"""Hexadecimal digits of a hash in a report."""


def reference_of(data: TrainingData, test: Images, train: Images) -> dict[str, Any]:
    """What a report says of the real images; hashes tell images and people apart, and name nobody.

    `images` are those that scores, floors and nulls are made of. The digest of the data says less: it has the view that
    a method is trained by and the attributes that it reads, of which the same test images know nothing.

    Args:
        data: set up.
        test: the images that samples are compared with.
        train: the training images of floors and nulls.
    """
    people = {split: sha256[:NUM_DIGITS] for split, sha256 in data.spec.people.items() if split != "val"}
    return {
        "part": "test",
        "size": list(data.spec.size),
        "fold": getattr(data, "fold", None) or "",
        "cohort": _hash(sum_of_all(data.spec.people_sums.values()).encode()),
        "people": people,
        "images": {"test": _hash_of(test), "train": _hash_of(train)},
    }


def _hash_of(images: Images) -> str:
    """The beginning of the SHA-256 of all images, float32, in order."""
    digest = hashlib.sha256()
    for some in blocks(images):
        digest.update(some.contiguous().numpy().data)
    return digest.hexdigest()[:NUM_DIGITS]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:NUM_DIGITS]
