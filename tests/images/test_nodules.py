"""Nodules of label maps: which is the largest, its middle, and masks grown and made coarse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from lit_medgen.images.nodules import coarse, dilated, inside_nodules, largest_nodule, nodule_classes


def test_classes_are_nodules_by_their_name() -> None:
    assert nodule_classes(("background", "lung", "nodule, benign", "no nodule", "nodule")) == [2, 4]
    label_map = torch.tensor([0, 1, 2, 4, -1])
    assert inside_nodules(label_map, [2, 4]).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("dim", [2, 3])
def test_the_largest_nodule_counts(dim: int) -> None:
    inside = np.zeros((12,) * dim, dtype=bool)
    assert largest_nodule(inside) is None
    inside[(slice(1, 4),) * dim] = True
    np.testing.assert_allclose(largest_nodule(inside), [2.0] * dim)
    inside[(slice(6, 10),) * dim] = True
    np.testing.assert_allclose(largest_nodule(inside), [7.5] * dim)
    diagonal = np.eye(5, dtype=bool)  # touches at corners
    np.testing.assert_allclose(largest_nodule(diagonal), [2.0, 2.0])


@pytest.mark.parametrize("dim", [2, 3])
def test_masks_grow_and_lose_nothing(dim: int) -> None:
    inside = torch.rand(2, 1, *[8] * dim, generator=torch.Generator().manual_seed(0)) > 0.95
    grown = dilated(inside, 3)
    for one, other in zip(inside[:, 0].numpy(), grown[:, 0].numpy(), strict=True):
        np.testing.assert_array_equal(other, ndimage.binary_dilation(one, np.ones((3,) * dim)))
    assert torch.equal(dilated(inside, 1), inside)
    blocks = coarse(inside, 2)
    for axis in range(dim):
        blocks = blocks.repeat_interleave(2, axis + 2)
    assert not (inside & ~blocks).any()
    assert blocks.sum() <= 2**dim * inside.sum()
