"""Ventricles are measured where they are, and their spread tells people from copies of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_metrics import measured
from torch import Tensor

from data_modules import OneSlice, UKBiobankDataModule
from data_modules.recipes.volumes import Preprocessing
from lit_medgen.__main__ import main
from lit_medgen.images import read_image
from lit_medgen.metrics import VentricleSpread
from lit_medgen.metrics.anatomy import brain_volume, ventricle_size, ventricle_volume


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


def ellipsoid(size: tuple[int, ...], centre: tuple[float, ...], radii_mm: tuple[float, ...], spacing: float) -> Tensor:
    """*size, share of each voxel inside an ellipsoid around a point (mm from the middle of the grid)."""
    fine = 2  # points along each axis of a voxel
    axes = [(torch.arange(n * fine) - (n * fine - 1) / 2) * spacing / fine for n in size]
    place = torch.meshgrid(*axes, indexing="ij")
    inside = sum(((p - c) / r) ** 2 for p, c, r in zip(place, centre, radii_mm, strict=True)) < 1
    pool = torch.nn.functional.avg_pool3d if len(size) == 3 else torch.nn.functional.avg_pool2d
    return pool(inside[None, None].float(), fine)[0, 0]


@pytest.mark.parametrize("spacing", [2.0, 4.0])
def test_volumes_of_ellipsoids_are_those_of_the_formula(spacing: float) -> None:
    """4/3 pi a b c, in mL, whatever the voxel size; fluid at 0.6 of the brain is all fluid, at 0.3 no tissue."""
    size = tuple(round(extent / spacing) for extent in (160, 192, 160))
    whole, fluid = (64.0, 80.0, 60.0), (22.0, 24.0, 12.0)
    brain, ventricles = ellipsoid(size, (0, 0, 0), whole, spacing), ellipsoid(size, (0, -4, 8), fluid, spacing)
    volume = [4 / 3 * np.pi * np.prod(radii) / 1000 for radii in (whole, fluid)]
    dark, image = ((0.6 * brain - depth * ventricles)[None, None] * 2 - 1 for depth in (0.42, 0.24))
    assert float(ventricle_volume(image, [spacing] * 3)) == pytest.approx(volume[1], rel=0.03)
    assert float(brain_volume(dark, [spacing] * 3)) == pytest.approx(volume[0] - volume[1], rel=0.03)
    assert float(ventricle_volume(image, [2 * spacing] * 3)) == pytest.approx(
        8 * float(ventricle_volume(image, [spacing] * 3))
    )


def test_areas_of_ellipses_are_those_of_the_formula() -> None:
    """The same in cm² of an axial slice, whose second axis goes to the back: turned round, the fluid lies outside."""
    brain, fluid = ellipsoid((80, 96), (0, 0), (64, 80), 2.0), ellipsoid((80, 96), (0, 10), (20, 12), 2.0)
    dark, image = ((0.6 * brain - depth * fluid)[None, None] * 2 - 1 for depth in (0.42, 0.24))
    assert float(ventricle_volume(image, [2.0, 2.0])) == pytest.approx(np.pi * 2.0 * 1.2, rel=0.03)
    assert float(brain_volume(dark, [2.0, 2.0])) == pytest.approx(np.pi * (6.4 * 8.0 - 2.0 * 1.2), rel=0.03)
    front = ellipsoid((80, 96), (0, 35), (20, 12), 2.0)
    behind, before = ((0.6 * brain - 0.4 * part)[None, None] * 2 - 1 for part in (front, front.flip(1)))
    assert float(ventricle_volume(behind, [2.0, 2.0])) > 1.5 * float(ventricle_volume(before, [2.0, 2.0]))


@pytest.fixture(scope="module")
def ixi(shared_data: Path) -> tuple[Tensor, pd.DataFrame]:
    """The brains of IXI, 138 1 80 96 80 in [-1, 1] at 2 mm, and the rows of their table."""
    folder = shared_data / "brain" / "ixi"
    table = pd.read_csv(folder / "participants.tsv", sep="\t").set_index("participant_id")
    paths = sorted((folder / "brain").glob("*.nii.gz"))
    images = torch.stack([torch.from_numpy(read_image(path)[0]).float() for path in paths])[:, None]
    return images / 255 * 2 - 1, table.loc[[path.name.split("_T1")[0] for path in paths]]


def ratio(measured: Tensor, known: pd.Series) -> tuple[float, float]:
    """Correlation of measured with known volumes, and mean absolute error."""
    values = measured.numpy()
    return float(np.corrcoef(values, known)[0, 1]), float(np.abs(values - known).mean())


@pytest.mark.data
@pytest.mark.parametrize(("spacing", "errors"), [(2, (4, 40)), (4, (5, 40))])
def test_volumes_follow_segmented_ones(
    spacing: int, errors: tuple[float, float], ixi: tuple[Tensor, pd.DataFrame]
) -> None:
    """At both sizes of our configs: 80 x 96 x 80 voxels of 2 mm, 40 x 48 x 40 of 4 mm."""
    images, table = ixi
    coarse = torch.nn.functional.avg_pool3d(images, spacing // 2)
    r, error = ratio(ventricle_volume(coarse, [float(spacing)] * 3), table["ventricles_ml"])
    assert r > 0.95
    assert error < errors[0]
    r, error = ratio(brain_volume(coarse, [float(spacing)] * 3), table["brain_ml"])
    assert r > 0.98
    assert error < errors[1]


@pytest.mark.data
def test_areas_of_four_slices_follow_segmented_volumes(ixi: tuple[Tensor, pd.DataFrame]) -> None:
    """Slices as `OneSlice(middle=32)` has them, averaged over a person."""
    images, table = ixi
    slices = [images[..., z].flip(3) for z in OneSlice(middle=32).evaluated_of(80)]
    for measure, name in ((ventricle_volume, "ventricles_ml"), (brain_volume, "brain_ml")):
        mean = torch.stack([measure(some, [2.0, 2.0]) for some in slices]).mean(0)
        assert ratio(mean, table[name])[0] > 0.85, name


@pytest.mark.data
def test_size_follows_segmented_ventricles(ixi: tuple[Tensor, pd.DataFrame]) -> None:
    """In voxels of 4 mm, each brain relative to its brightest voxel."""
    coarse = (torch.nn.functional.avg_pool3d(ixi[0], 2) + 1) / 2
    bright = coarse / coarse.amax((1, 2, 3, 4), keepdim=True) * 2 - 1
    assert ratio(ventricle_size(bright), ixi[1]["ventricles_ml"])[0] > 0.95


@pytest.mark.slow  # phantoms of 16 people
def test_volumes_follow_those_of_phantoms(tmp_path: Path) -> None:
    """Those of UK Biobank, whose table says what was drawn."""
    root, withdrawals = tmp_path / "ukbiobank", tmp_path / "none.txt"
    assert main(["phantom", "ukbiobank", "--out", str(root), "--num_subjects", "16", "--seed", "3"]) == 0
    withdrawals.write_text("")
    data = UKBiobankDataModule(
        str(root),
        str(withdrawals),
        volumes="measured",
        preprocessing=Preprocessing(size=(40, 48, 40), field_of_view_mm=(160.0, 192.0, 160.0)),
        store_dir=str(tmp_path / "store"),
        num_jobs=1,
        fractions=(1.0, 0.0, 0.0),
    )
    data.prepare_data()
    data.setup("fit")
    images = data.images("train").all()
    for measure, name in ((ventricle_volume, "ventricles_ml"), (brain_volume, "brain_ml")):
        drawn = pd.Series([record.attributes[name] for record in data.records["train"]])
        assert ratio(measure(images, data.spec.spacing_mm), drawn)[0] > 0.8, name
