"""Views: an image, its label map and its sources are read through one of them; geometry goes with what is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_modules import Crop, MedicalDataModule, OneSlice, Preprocessing, Rejected, Scan, UniformDraw, View, Volume
from data_modules.views import Grid
from lit_medgen.batch import ABSENT_CLASS, PADDING, Batch, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import read_nifti, write_nifti

WriteHead = Callable[[Path, int], Path]
CLASSES = ("background", "left", "right")
SIZE, SOURCE_SIZE = (10, 12, 9), (5, 6, 9)


class Several(MedicalDataModule):
    """Heads with a label map and two other images beside them, where these are."""

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each `image.nii`."""
        scans = []
        for image in self.tree().matching("*/image.nii"):
            names = {"label_map": "labels.nii", "t2": "t2.nii", "flair": "flair.nii"}
            beside: dict[str, Any] = {
                name: path for name, file in names.items() if (path := image.parent / file).exists()
            }
            scans.append(Scan(image, image.parent.name, beside=beside))
        return scans, []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_head: WriteHead) -> Path:
    """Six people; the label maps on a grid of 1 mm, the others on that of the image. Read only."""
    root = tmp_path_factory.mktemp("several")
    for person in range(6):
        folder = root / f"p{person}"
        image, affine = read_nifti(write_head(folder / "image.nii", person))
        labels = (image > 0) * np.where(np.arange(len(image)) < len(image) / 2, 1, 2)[:, None, None]
        fine = np.diag([1.0, 1.0, 1.0, 1.0])
        fine[:3, 3] = -0.5  # the middle of the first of two small voxels
        write_nifti(folder / "labels.nii", labels.repeat(2, 0).repeat(2, 1).repeat(2, 2).astype(np.uint8), fine)
        write_nifti(folder / "t2.nii", image.max() - image, affine)
        write_nifti(folder / "flair.nii", image * 2, affine)
    return root


def opened(root: Path, store: Path, view: View[Any] | None = None, **options: Any) -> Several:
    preprocessing: dict[str, Any] = {"classes": CLASSES, "sources": ("t2", "flair"), "source_size": SOURCE_SIZE}
    recipe = Preprocessing(SIZE, (40.0, 48.0, 36.0), **preprocessing | options)
    data = Several(str(root), recipe, view=view, batch_size=6, fractions=(1, 0, 0), store_dir=str(store), num_jobs=1)
    data.prepare_data()
    data.setup("fit")
    return data


def batch_of(data: MedicalDataModule) -> Batch:
    return next(iter(data.train_dataloader()))


def stored(data: MedicalDataModule, name: str) -> dict[str, np.ndarray]:
    """Key -> the whole array."""
    return {record.key: data.store.read(record, name=name) for record in data.records["train"]}


def test_what_lies_beside_an_image_comes_on_its_grid(root: Path, tmp_path: Path) -> None:
    data = opened(root, tmp_path)
    assert (data.spec.classes, len(data.spec.sources), data.spec.source_size) == (CLASSES, 2, SOURCE_SIZE)
    batch = batch_of(data)
    assert batch.image.shape == (6, 1, *SIZE)
    labels, source = batch.condition.label_map, batch.condition.source
    assert labels is not None
    assert source is not None
    assert labels.shape == batch.image.shape
    assert labels.dtype == torch.int64
    assert set(labels.unique().tolist()) == {0, 1, 2}
    inside = batch.image > -0.5  # half of the mean inside
    assert 2 * ((labels > 0) & inside).sum() / ((labels > 0).sum() + inside.sum()) > 0.93
    assert (labels[:, :, : SIZE[0] // 2 - 1] != 2).all()
    assert (labels[:, :, SIZE[0] // 2 + 1 :] != 1).all()
    assert source.shape == (6, 2, *SOURCE_SIZE)
    assert source.abs().max() <= 1
    coarse = torch.nn.functional.avg_pool3d(batch.image, (2, 2, 1))
    for channel, least, most in ((0, 0.9, 1.0), (1, -1.0, -0.5)):  # flair is like the image, t2 is its negative
        like = np.corrcoef(source[:, channel].flatten(), coarse.flatten())[0, 1]
        assert least < like <= most


@pytest.mark.parametrize("name", ["image", "label_map", "flair"])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_one_slice_is_that_slice_of_everything(name: str, axis: Any, root: Path, tmp_path: Path) -> None:
    data = opened(root, tmp_path, source_size=None)
    data.view, data.axis = OneSlice(), axis
    data.prepare_data()
    data.setup("fit")
    batch, whole = batch_of(data), stored(data, name)
    part = {"image": batch.image, "label_map": batch.condition.label_map, "flair": batch.condition.source}[name]
    assert part is not None
    assert batch.condition.slice_index is not None
    for key, index, image in zip(batch.key, batch.condition.slice_index[:, 0].tolist(), part, strict=True):
        expected = whole[key].take(index, {"sagittal": 0, "coronal": 1, "axial": 2}[axis])[:, ::-1]
        np.testing.assert_array_equal(image[0], expected)
    assert data.spec.size == tuple(batch.image.shape[2:])
    assert data.spec.source_size == data.spec.size


def test_sets_of_slices_are_padded_with_background(root: Path, tmp_path: Path) -> None:
    data = opened(root, tmp_path, UniformDraw(7))
    batch = batch_of(data)
    index = batch.condition.slice_index
    assert index is not None
    assert (index == PADDING).any()
    parts = {"image": batch.image, "label_map": batch.condition.label_map, "flair": batch.condition.source}
    for name, part in parts.items():
        whole = stored(data, name)
        assert part is not None
        for row, key in enumerate(batch.key):
            real = index[row] != PADDING
            np.testing.assert_array_equal(part[row, 0, real], np.moveaxis(whole[key], 2, 0)[index[row, real]])
            assert (part[row, 0, ~real] == (0 if name == "label_map" else -1)).all()
    assert data.spec.slice_axis == "axial"
    assert data.voxels_per_batch == 6 * 7 * 10 * 12


@pytest.mark.parametrize("size", [(4, 5, 3), (16, 5, 3), (13, 17, 30)])
def test_a_crop_is_padded_where_it_leaves_the_image(size: tuple[int, ...], root: Path, tmp_path: Path) -> None:
    data = opened(root, tmp_path, source_size=None)
    data.view = Crop(size)
    data.setup("fit")
    assert data.spec.size == data.spec.source_size == size
    grid, record = Grid(SIZE, "axial"), data.records["train"][0]
    for seed in range(20):
        first = data.view.draw(grid, record, np.random.default_rng(seed))
        for name, padding in (("image", -1), ("label_map", 0)):
            whole = data.store.read(record, name=name)
            around = np.pad(whole, 40, constant_values=padding)
            expected = around[tuple(slice(40 + f, 40 + f + side) for f, side in zip(first, size, strict=True))]
            found = data.view.read(lambda slices, whole=whole: whole, grid, first, padding)
            np.testing.assert_array_equal(found, expected)
    assert batch_of(data).image.shape == (6, 1, *size)


@given(
    centre=st.lists(st.floats(-5, 40), min_size=3, max_size=3),
    size=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_the_known_point_is_the_middle_of_its_crop(centre: list[float], size: list[int]) -> None:
    record: Any = SimpleNamespace(facts={"nodule": np.array(centre)})
    (first,) = Crop(tuple(size), "nodule").evaluated(Grid((30, 30, 30), "axial"), record)
    assert first == Crop(tuple(size), "nodule").draw(Grid((30, 30, 30), "axial"), record, np.random.default_rng(0))
    middle = np.array(first) + (np.array(size) - 1) / 2
    assert (np.abs(middle - centre) <= 0.5 + 1e-9).all()


def test_a_fact_that_is_no_point_is_no_middle_of_a_crop() -> None:
    """Also where it is unknown, which points of images may be."""
    record: Any = SimpleNamespace(facts={"boxes": np.full(10, np.nan)})
    with pytest.raises(InputError, match="centre is 'boxes', which has 10 numbers, not the 2 of a point"):
        Crop((4, 4), "boxes").evaluated(Grid((16, 16), "axial"), record)


def test_every_crop_inside_is_as_likely() -> None:
    record: Any = None
    random = np.random.default_rng(0)
    starts = [Crop((3, 5)).draw(Grid((6, 5), ""), record, random) for _ in range(4000)]
    counts = np.bincount([x for x, _ in starts], minlength=4)
    assert {y for _, y in starts} == {0}
    assert np.abs(counts / 1000 - 1).max() < 0.12


def test_crops_that_cannot_be_are_refused(root: Path, tmp_path: Path) -> None:
    data = opened(root, tmp_path, source_size=None)
    for view, said in (
        (Crop((4, 4)), "size is [4, 4]; give 3 numbers"),
        (OneSlice(1000), "middle is 1000, but there are 9 slices"),
    ):
        data.view = view
        with pytest.raises(InputError, match=said.replace("[", r"\[")):
            data.shape()
    data.view = Crop((4, 4, 4), "nodule")
    data.setup("fit")
    with pytest.raises(InputError, match="centre is 'nodule'; facts of the images: none"):
        batch_of(data)
    data.view = Crop((4, 4, 4))
    data.setup("fit")
    with pytest.raises(InputError, match="crops anywhere in an image cannot be listed"):
        next(data.stored("train"))


@pytest.mark.parametrize(
    ("size", "view"), [((5, 6, 3), OneSlice()), ((5, 6, 3), UniformDraw()), ((5, 6, 9), Crop((2, 2, 2)))]
)
def test_sources_that_a_view_cannot_follow_are_refused(size: tuple[int, ...], view: View[Any]) -> None:
    spec = DataSpec(1, SIZE, (4.0, 4.0, 4.0), sources=("t2",), source_size=size)
    with pytest.raises(InputError, match=r"data\.init_args\.view: .* sources"):
        view.spec(spec, "axial")


@pytest.mark.parametrize("view", [Volume(), OneSlice(per_person=2), Crop((4, 20, 3)), UniformDraw(3)])
def test_a_voxel_shown_lies_where_it_lies_in_the_image(view: View[Any], root: Path, tmp_path: Path) -> None:
    """By the affine of its request, every voxel above background is one of the image with that value."""
    data = opened(root, tmp_path, view, source_size=None)
    request = data.requests("train", 1).read(0)
    assert request.affine is not None
    assert request.target is not None
    record = {record.key: record for record in data.records["train"]}[request.key[0]]
    whole, part = data.store.read(record), request.target[0, 0].numpy()
    index = np.argwhere(part > -0.9)
    points = np.zeros((len(index), 4))
    points[:, : part.ndim], points[:, 3] = index, 1
    places = np.linalg.inv(record.affine) @ request.affine[0].numpy() @ points.T
    rounded = places[:3].round().astype(int)
    np.testing.assert_allclose(places[:3], rounded, atol=1e-6)
    assert len(index) > 10
    np.testing.assert_array_equal(part[tuple(index.T)], whole[tuple(rounded)])


def test_what_some_images_lack_is_absent_in_their_rows(
    root: Path, tmp_path: Path, write_head: WriteHead, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in root.iterdir():
        (tmp_path / "raw" / person.name).mkdir(parents=True)
        for file in person.iterdir():
            (tmp_path / "raw" / person.name / file.name).symlink_to(file)
    (tmp_path / "raw/p0/labels.nii").unlink()
    (tmp_path / "raw/p1/t2.nii").unlink()
    data = opened(tmp_path / "raw", tmp_path / "store")
    assert "1 of 6 images have no label_map, 1 of 6 images have no t2" in capsys.readouterr().out
    batch = batch_of(data)
    labels, source = batch.condition.label_map, batch.condition.source
    assert labels is not None
    assert source is not None
    without = [(labels == ABSENT_CLASS).flatten(1).all(1), source.isnan().flatten(1).all(1)]
    assert [int(rows.sum()) for rows in without] == [1, 1]
    assert not (without[0] & without[1]).any()
    assert (labels[~without[0]] >= 0).all()
    assert source[~without[1]].isfinite().all()


def test_requests_hold_the_sources_of_the_data(root: Path, tmp_path: Path) -> None:
    data = opened(root, tmp_path)
    requests = data.requests("train")
    assert requests.parts == {"label_map", "source"}
    request = requests.joined(range(6))
    assert request.condition.source is not None
    assert request.condition.source.shape == (6, 2, *SOURCE_SIZE)
    assert request.condition.label_map is not None
    assert torch.equal(request.target, data.images("train").all())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "0.5 (1 voxels)"), (3, "3 (1 voxels)"), (-1, "-1 (1 voxels)"), (300, "300 (1 voxels)")]
)
def test_values_that_are_no_class_are_named(value: float, said: str, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "p0"
    folder.mkdir(parents=True)
    for file in (root / "p0").iterdir():
        (folder / file.name).symlink_to(file)
    labels, affine = read_nifti(root / "p0/labels.nii")
    labels[3, 3, 3] = value
    (folder / "labels.nii").unlink()
    write_nifti(folder / "labels.nii", labels.astype(np.float32), affine)
    with pytest.raises(InputError, match="all 1 images were rejected") as error:
        opened(tmp_path / "raw", tmp_path / "store")
    assert f"its label_map, {folder / 'labels.nii'}: values that are no class: {said}" in str(error.value)
    assert "expected whole numbers, 0 background, 1 left, 2 right" in str(error.value)


def test_what_no_image_has_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has a 'pd' beside it.*there is flair, label_map, t2"):
        opened(root, tmp_path, sources=("pd",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ("a",) * 257}, "classes names 257; give at most 256"),
        ({"sources": ("image",)}, "sources is \\['image'\\]"),
        ({"sources": ("t2", "t2")}, "sources is \\['t2', 't2'\\]"),
        ({"sources": ("t2",), "source_size": (4, 4)}, "source_size is \\[4, 4\\]; give 3 numbers"),
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Preprocessing(SIZE, (40.0, 48.0, 36.0), **options)
