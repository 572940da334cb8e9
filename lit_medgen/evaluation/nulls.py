"""Nulls of a report: images that know the training people only superficially, and that any model must beat.

`DEFINITIONS` says what each is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUM_COMPONENTS = 10
ROWS = 32
"""Images of the PCA null that are made at once, in float64."""

DEFINITIONS = {
    "noise": "independent normal voxels with the mean and the spread of the training images",
    "mean+noise": "the mean training image, with independent noise of every voxel's own spread",
    "pca_gaussian": f"a Gaussian with the {NUM_COMPONENTS} leading principal components of the training images",
    "prior": "the model's own prior, a Gaussian factor model of the training images, without the network",
}
"""What each null is, for the report."""


def nulls(train: Tensor, num: int) -> dict[str, Tensor]:
    """Name -> `num` images (n c *s in [-1, 1]) that know the training images only superficially."""
    return {name: make() for name, make in null_makers(train, num, principal_components(train)).items()}


def null_makers(train: Tensor, num: int, pca: Any) -> dict[str, Callable[[], Tensor]]:
    """Name -> what makes `num` images of a null, so that one of them needs to be in memory at a time."""

    def noise() -> Tensor:
        return torch.randn((num, *train.shape[1:]), generator=torch.Generator().manual_seed(0))

    def pca_gaussian() -> Tensor:
        scores = pca.transform(train.flatten(1).numpy())
        drawn = np.random.default_rng(0).normal(size=(num, scores.shape[1])) * scores.std(axis=0, ddof=1)
        made = torch.empty((num, *train.shape[1:]))
        for start in range(0, num, ROWS):
            rows = torch.from_numpy(pca.inverse_transform(drawn[start : start + ROWS]))
            made[start : start + ROWS] = rows.float().view(-1, *train.shape[1:]).clamp(-1, 1)
        return made

    return {
        "noise": lambda: noise().mul_(train.std()).add_(train.mean()).clamp_(-1, 1),
        "mean+noise": lambda: noise().mul_(train.std(0)).add_(train.mean(0)).clamp_(-1, 1),
        "pca_gaussian": pca_gaussian,
    }


def principal_components(train: Tensor) -> Any:
    """The fitted PCA of scikit-learn, of at most `NUM_COMPONENTS`."""
    from sklearn.decomposition import PCA

    pca = PCA(min(NUM_COMPONENTS, len(train) - 1), svd_solver="randomized", random_state=0)
    return pca.fit(train.flatten(1).numpy())
