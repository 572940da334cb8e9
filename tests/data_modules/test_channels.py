"""Channels of images: from files of several contrasts, 4D NIfTI and colours, to the items that methods see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import FolderDataModule, OneSlice
from data_modules.augmentation import Noise
from data_modules.augmented_figure import plot_augmented
from data_modules.items import Items
from data_modules.recipes.volumes import Preprocessing
from data_modules.records import person_hash
from data_modules.slice_sets import UniformDraw
from data_modules.store import StoreAddress
from data_modules.views import Crop, View
from lit_medgen.errors import InputError
from lit_medgen.images import read_image
from lit_medgen.images.nifti import write_nifti

NAMES = ("t1", "flair")
PEOPLE = 4
COLOURS = ("red", "green", "blue")


def head(seed: int) -> np.ndarray:
    """A block of noise in an empty volume."""
    voxels = np.zeros((12, 14, 10), np.float32)
    voxels[2:10, 2:12, 1:9] = np.random.default_rng(seed).integers(60, 200, (8, 10, 8))
    return voxels


def write(path: Path, voxels: np.ndarray) -> None:
    """A NIfTI file of 2 mm in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, voxels, np.diag([2.0, 2, 2, 1]))


@pytest.fixture(scope="module")
def contrasts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T1 and FLAIR of four people in two files, and in one of four dimensions. Read only."""
    root = tmp_path_factory.mktemp("contrasts")
    for person in range(PEOPLE):
        both = [head(2 * person), head(2 * person + 1)]
        for name, voxels in zip(NAMES, both, strict=True):
            write(root / "two" / f"p{person}" / f"p{person}_{name}.nii.gz", voxels)
        write(root / "one" / f"p{person}" / f"p{person}.nii.gz", np.stack(both, -1))
    return root


def module(root: Path, out: Path, channels: Sequence[str] = NAMES, **options: Any) -> FolderDataModule:
    """The contrasts with these channels, prepared and set up."""
    if channels and root.name == "two":
        first, *others = channels
        options |= {"pattern": f"**/*_{first}.nii.gz", "beside": {name: [f"_{first}", f"_{name}"] for name in others}}
    recipe = Preprocessing((12, 14, 10), (24.0, 28.0, 20.0), centre="grid", channels=tuple(channels))
    recipe = options.pop("preprocessing", recipe)
    data = FolderDataModule(
        str(root), preprocessing=recipe, fractions=(0.5, 0.25, 0.25), store_dir=str(out), num_jobs=1, **options
    )
    data.prepare_data()
    data.setup("fit")
    return data


def every(data: FolderDataModule) -> torch.Tensor:
    """All images of all people, in the order of the people."""
    images = {split: data.images(split) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    found = {who: image for some in images.values() for who, image in zip(some.people, some.all(), strict=True)}
    return torch.stack([found[who] for who in sorted(found)])


def test_two_files_and_one_of_four_dimensions_give_the_same_images(contrasts: Path, tmp_path: Path) -> None:
    of_two, of_one = (module(contrasts / kind, tmp_path) for kind in ("two", "one"))
    assert of_two.spec.channels == of_one.spec.channels == 2
    assert of_two.spec.channel_names == NAMES
    assert torch.equal(every(of_two), every(of_one))


def test_each_channel_is_the_image_of_that_contrast_alone(contrasts: Path, tmp_path: Path) -> None:
    both = every(module(contrasts / "two", tmp_path))
    for number, name in enumerate(NAMES):
        alone = every(module(contrasts / "two", tmp_path, (), pattern=f"**/*_{name}.nii.gz"))
        assert alone.shape[1] == 1
        assert torch.equal(both[:, number], alone[:, 0])


@pytest.mark.parametrize("kind", ["two", "one"])
def test_another_order_of_channels_is_that_order_in_the_store(kind: str, contrasts: Path, tmp_path: Path) -> None:
    if kind == "one":
        turned = tmp_path / "turned"
        for path in (contrasts / "one").rglob("*.nii.gz"):
            write(turned / path.parent.name / path.name, np.moveaxis(read_image(path, channels=2)[0][::-1], 0, -1))
    as_they_are = every(module(contrasts / kind, tmp_path))
    other = module(contrasts / kind if kind == "two" else turned, tmp_path, NAMES[::-1])
    assert torch.equal(every(other), as_they_are.flip(1))


@pytest.mark.parametrize("view", [OneSlice(middle=4, per_person=2), UniformDraw(4), Crop((4, 5, 6))])
def test_every_view_shows_all_channels_alike(view: View[Any], contrasts: Path, tmp_path: Path) -> None:
    data = module(contrasts / "two", tmp_path, view=view, batch_size=2)
    alone = module(contrasts / "two", tmp_path, (), pattern="**/*_t1.nii.gz", view=view, batch_size=2)
    image, first = (next(iter(each.train_dataloader())).image for each in (data, alone))
    assert image.shape[:2] == (2, 2)
    if isinstance(view, UniformDraw):  # b c n h w
        assert image.shape[2] == 4
    # The people of a batch differ with the keys, so only the set of the first channels is that of the images alone.
    assert image[:, :1].shape == first.shape
    assert data.spec.channels == 2
    found = every(data)
    assert torch.equal(found[:, :1], every(alone))


def test_augmentation_moves_channels_alike_and_changes_each(contrasts: Path, tmp_path: Path) -> None:
    from data_modules.augmentation import Flip, Noise, Rotation

    recipe = Preprocessing((12, 14, 10), (24.0, 28.0, 20.0), centre="grid", channels=("a", "b"))
    same = tmp_path / "same"
    for person in range(PEOPLE):
        write(same / f"p{person}.nii.gz", np.stack([head(person)] * 2, -1))

    def batches(*augmentation: Any) -> list[torch.Tensor]:
        data = module(same, tmp_path / "store", preprocessing=recipe, augmentation=list(augmentation))
        loader = iter(data.train_dataloader())
        return [next(loader).image for _ in range(4)]

    plain, moved = batches(), batches(Flip(), Rotation(20.0))
    assert all(torch.equal(image[:, 0], image[:, 1]) for image in moved)
    assert not all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))
    noisy = [image - clean for image, clean in zip(batches(Noise(0.1)), plain, strict=True)]
    assert not any(torch.equal(image[:, 0], image[:, 1]) for image in noisy)


def test_a_person_without_a_channel_is_refused_by_name(contrasts: Path, tmp_path: Path) -> None:
    root = tmp_path / "two"
    for path in (contrasts / "two").rglob("*.nii.gz"):
        if path.name != "p1_flair.nii.gz":
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            (root / path.parent.name / path.name).symlink_to(path)
    data = module(root, tmp_path / "store")
    accepted, rejected = data.prepare()
    assert len(accepted) == PEOPLE - 1
    assert [(Path(row.source).name, row.reason) for row in rejected] == [
        ("p1_t1.nii.gz", "1 channel; expected 2 (t1, flair), or one channel with flair beside it")
    ]


def test_an_old_store_keeps_its_address() -> None:
    recipe = StoreAddress(Path("data"), "folder", Preprocessing(), "axial").recipe
    assert "channels" not in recipe
    named = StoreAddress(Path("data"), "folder", Preprocessing(channels=NAMES), "axial").recipe
    assert named == {**recipe, "channels": NAMES}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("t1", "T1")}, "give a name of its own to each"),
        ({"channels": ("t1", "a/b")}, "of letters, digits, - and _"),
        ({"channels": ("t1", "label_map")}, "label_map names something else"),
        ({"channels": ("t1", "flair"), "sources": ("flair",)}, "flair names something else"),
    ],
)
def test_names_that_cannot_be_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"data\.init_args\.preprocessing\.channels is .*{message}"):
        Preprocessing(**options)


# Colours.


def picture(path: Path, seed: int, mode: str = "RGB") -> np.ndarray:
    """A PNG of random colours, 8 rows of 6; returns its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 6, len(mode)), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def colours(root: Path, out: Path, **options: Any) -> FolderDataModule:
    """A folder of colour PNG, prepared and set up."""
    recipe = Preprocessing((6, 8), (6.0, 8.0), "grid", "window", window=(0.0, 255.0), channels=COLOURS)
    return module(root, out, preprocessing=recipe, pattern="**/*.png", **options)


def test_colours_come_back_as_they_were(tmp_path: Path) -> None:
    raw = {f"p{k}": picture(tmp_path / "rgb" / f"p{k}" / "a.png", k) for k in range(PEOPLE)}
    raw["p0"][..., 1:] = 0  # a channel may be empty
    Image.fromarray(raw["p0"]).save(tmp_path / "rgb" / "p0" / "a.png")
    data = colours(tmp_path / "rgb", tmp_path)
    assert data.spec.is_colour
    assert data.spec.intensity_window == (0.0, 255.0)
    found = ((every(data) + 1) * 127.5).round().to(torch.uint8)
    assert sorted(image.numpy().tobytes() for image in found) == sorted(each.T.tobytes() for each in raw.values())


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 0, "RGBA")
    voxels, _ = read_image(tmp_path / "a.png", channels=3)
    expected = pixels[..., :3] * (pixels[..., 3:] / 255.0)
    np.testing.assert_allclose(voxels, expected.T, rtol=1e-6)
    with_alpha, _ = read_image(tmp_path / "a.png", channels=4)
    assert np.array_equal(with_alpha, pixels.T)
    palette = Image.open(tmp_path / "a.png").convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png")
    voxels, _ = read_image(tmp_path / "p.png", channels=3)
    assert np.array_equal(voxels, np.asarray(palette.convert("RGB")).T)


def test_grey_pictures_among_colours_are_refused_by_name(tmp_path: Path) -> None:
    for k in range(PEOPLE):
        picture(tmp_path / "rgb" / f"p{k}" / "a.png", k)
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 6)).save(tmp_path / "rgb" / "p0" / "grey.png")
    _, rejected = colours(tmp_path / "rgb", tmp_path).prepare()
    assert [row.reason for row in rejected] == [
        "1 channel; expected 3 (red, green, blue), or one channel with green, blue beside it"
    ]


def test_nifti_of_colours_and_of_vectors(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    as_bytes = np.ascontiguousarray(pixels).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    for name, voxels in (("rgb", as_bytes), ("vector", pixels[:, :, :, None]), ("time", pixels)):
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1, 1, 1])), tmp_path / f"{name}.nii")
        found, affine = read_image(tmp_path / f"{name}.nii", channels=3)
        assert np.array_equal(found, np.moveaxis(pixels[::-1], -1, 0))
        assert affine[0, 0] == 1
        with pytest.raises(ValueError, match=r"a colour image|expected one 3D volume"):
            read_image(tmp_path / f"{name}.nii")


def test_channels_are_part_of_the_spec_that_is_kept(contrasts: Path, tmp_path: Path) -> None:
    spec = module(contrasts / "two", tmp_path).spec
    plain = json.loads(json.dumps(spec.plain()))
    assert type(spec).from_plain(plain) == spec
    del plain["channel_names"]  # as before there were names
    assert type(spec).from_plain(plain) == replace(spec, channel_names=())


# Figures.


def panels(data: FolderDataModule) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Title -> the picture below it in the figure of the first image, and the image c *s in [0, 1]."""
    record, address = data.store.records[0], data.address
    (scan,) = [scan for scan in data.scans()[0] if person_hash(scan.person) == record.person]
    path = data.store.path(record)
    figure = address.preprocessing.plot(scan, path, address.stacked, json.loads(path.with_suffix(".json").read_text()))
    shown = {axis.get_title(loc="left"): np.asarray(axis.images[0].get_array()) for axis in figure.axes}
    image = [(data.store.read(record, name=name) + 1) / 2 for name in data.store.channels]
    return shown, np.stack([np.asarray(each) for each in image])


@pytest.mark.parametrize("kind", ["two", "one"])
def test_a_figure_of_the_preparation_has_rows_for_each_channel(kind: str, contrasts: Path, tmp_path: Path) -> None:
    shown, image = panels(module(contrasts / kind, tmp_path))
    for name, each in zip(NAMES, image, strict=True):
        axial = np.flipud(each[:, :, each.shape[2] // 2].T)
        np.testing.assert_allclose(shown[f"{name}, prepared"], axial, atol=1e-3)
        delivered = shown[f"{name}, as delivered; outline: what is kept"]
        assert np.corrcoef(delivered.flatten(), axial.flatten())[0, 1] > 0.99


def test_a_figure_of_colours_is_in_colour(tmp_path: Path) -> None:
    for k in range(PEOPLE):
        picture(tmp_path / "rgb" / f"p{k}" / "a.png", k)
    shown, image = panels(colours(tmp_path / "rgb", tmp_path))
    np.testing.assert_allclose(shown["prepared"], image.T, atol=1e-3)
    assert shown["as delivered; outline: what is kept"].shape == image.T.shape


@pytest.mark.parametrize("colour", [False, True])
def test_a_figure_of_augmentation_shows_every_channel(colour: bool, contrasts: Path, tmp_path: Path) -> None:
    if colour:
        for k in range(PEOPLE):
            picture(tmp_path / "rgb" / f"p{k}" / "a.png", k)
    more: Any = {"augmentation": [Noise(0.1)]}
    data = colours(tmp_path / "rgb", tmp_path, **more) if colour else module(contrasts / "two", tmp_path, **more)
    record = data.store.records[0]
    figure = plot_augmented(Items(data.store, data.view), data.augmenter(), record, data.spec.is_colour)
    first, other = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[:2])
    image = torch.cat([torch.as_tensor(data.store.read(record, name=name))[None] for name in data.store.channels])
    if colour:
        np.testing.assert_allclose(first, (image.permute(2, 1, 0) + 1) / 2, atol=1e-3)
    else:
        np.testing.assert_allclose(first, np.vstack([np.flipud(each[:, :, 5].T) for each in image.numpy()]), atol=1e-3)
    assert other.shape == first.shape
    assert not np.allclose(other, first)
