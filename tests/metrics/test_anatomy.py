"""Ventricles are measured where they are, and their spread tells people from copies of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_metrics import measured
from torch import Tensor

from lit_medgen.images import read_image
from lit_medgen.metrics import VentricleSpread
from lit_medgen.metrics.anatomy import ventricle_size


def brains(widths: Tensor) -> Tensor:
    """n 1 40 48 40: bright ellipsoids with a dark box of the given width in the middle."""
    place = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in (40, 48, 40)], indexing="ij"))
    inside = (place / torch.tensor([17.0, 21, 17]).view(3, 1, 1, 1)).square().sum(0) < 1
    made = []
    for width in widths:
        fluid = torch.sigmoid(width / 2 - place[0].abs()) * (place[1].abs() < 4) * (place[2].abs() < 3)
        made.append((inside * (0.7 - 0.6 * fluid)) * 2 - 1)
    return torch.stack(made)[:, None]


def test_larger_ventricles_are_larger() -> None:
    sizes = ventricle_size(brains(torch.tensor([1.0, 3.0, 6.0, 9.0])))
    assert (sizes.diff() > 20).all()
    # 3 more voxels of width, 8 x 6 voxels, of which a voxel of 0.1 against a median of 0.7 counts 1 - 1 / 7 / 0.8
    assert float(sizes[3] - sizes[2]) == pytest.approx(3 * 8 * 6 * (1 - 1 / 7 / 0.8), rel=0.1)


def test_brightness_does_not_matter() -> None:
    brain = brains(torch.tensor([5.0]))
    darker = (brain + 1) * 0.8 - 1
    torch.testing.assert_close(ventricle_size(darker), ventricle_size(brain), rtol=0.02, atol=0)


def test_spread_is_relative_to_real_brains() -> None:
    random = torch.Generator().manual_seed(0)
    people = brains(5 + torch.randn(24, generator=random))
    same = brains(5 + 0.1 * torch.randn(24, generator=random))
    assert measured(VentricleSpread(), people, people).compute().item() == pytest.approx(1)
    assert measured(VentricleSpread(), same, people).compute().item() < 0.3


def test_images_without_a_brain_have_a_size() -> None:
    black, grey = torch.full((1, 1, 12, 12, 12), -1.0), torch.full((1, 1, 12, 12, 12), 0.0)
    noise = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ventricle_size(torch.cat([black, grey, noise])).isfinite().all()


@pytest.mark.data
def test_size_follows_segmented_ventricles(shared_data: Path) -> None:
    """The 138 brains of IXI, averaged to 4 mm, against the volumes in their table."""
    folder = shared_data / "brain" / "ixi"
    known = pd.read_csv(folder / "participants.tsv", sep="\t").set_index("participant_id")["ventricles_ml"]
    images, volumes = [], []
    for path in sorted((folder / "brain").glob("*.nii.gz")):
        voxels = read_image(path)[0]
        coarse = voxels.reshape(40, 2, 48, 2, 40, 2).mean((1, 3, 5))
        images.append(torch.from_numpy(coarse / coarse.max() * 2 - 1).float())
        volumes.append(known[path.name.split("_T1")[0]])
    assert len(images) == 138
    assert np.corrcoef(ventricle_size(torch.stack(images)[:, None]), volumes)[0, 1] > 0.95
