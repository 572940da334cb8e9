"""Samples and sources of several channels: every format comes back, and plain viewers see what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.pixels import apply_color_lut
from torch import Tensor

from lit_medgen.axes import COLOURS
from lit_medgen.batch import DataSpec
from lit_medgen.callbacks.sample_grid import show
from lit_medgen.errors import InputError
from lit_medgen.images import read_image
from lit_medgen.images.grids import columns_of, mosaic
from lit_medgen.request_files import read_source
from lit_medgen.sample_files import Format, SampleFile, sample_files, write_manifest
from lit_medgen.sample_reading import read_samples

VOLUME = DataSpec(2, (5, 6, 4), (2.0, 2.0, 3.0), channel_names=("t1", "flair"))
PICTURE = replace(VOLUME, size=(5, 6), spacing_mm=(1.0, 1.0), orientation="")
RGB = replace(PICTURE, channels=3, channel_names=COLOURS, intensity_window=(0.0, 255.0), intensity_unit="raw")
RGB_VOLUME = replace(RGB, size=(5, 6, 4), spacing_mm=(2.0, 2.0, 3.0), orientation="RAS")
SPECS = {"volume": VOLUME, "picture": PICTURE, "rgb": RGB, "rgb volume": RGB_VOLUME}
EIGHT_BITS = 1 / 255 + 1e-6


def images_of(spec: DataSpec) -> Tensor:
    """Two images of noise, each with values of its own in every channel."""
    return torch.rand(2, spec.channels, *spec.size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def write(folder: Path, spec: DataSpec, format: Format) -> list[str]:
    """The images as files, with their manifest; returns their names in it."""
    folder.mkdir()
    file = SampleFile(format, spec, "synthetic", "ab" * 16)
    names = ["sample_0", "sample_1"]
    for name, image in zip(names, images_of(spec), strict=True):
        file.write(folder, name, image, None)
    write_manifest(folder, [{"file": file.named(name), "condition": ""} for name in names], None, spec)
    return [file.named(name) for name in names]


FORMATS: list[tuple[str, Format, float]] = [
    ("volume", "nifti", 1e-6),
    ("picture", "nifti", 1e-6),
    ("rgb", "nifti", 1e-5),
    ("rgb volume", "nifti", 1e-5),
    ("picture", "png", EIGHT_BITS),
    ("rgb", "png", EIGHT_BITS),
    ("volume", "dicom", 1e-3),
    ("picture", "dicom", 1e-3),
    ("rgb", "dicom", EIGHT_BITS),
    ("rgb volume", "dicom", EIGHT_BITS),
]


@pytest.mark.parametrize(("kind", "format", "precision"), FORMATS)
def test_samples_of_channels_come_back(kind: str, format: Format, precision: float, tmp_path: Path) -> None:
    spec = SPECS[kind]
    write(tmp_path / "s", spec, format)
    found = read_samples(tmp_path / "s", spec).images.all()
    torch.testing.assert_close(found, images_of(spec), atol=precision, rtol=0)


@pytest.mark.parametrize(("kind", "format", "precision"), FORMATS)
def test_samples_of_channels_are_sources(kind: str, format: Format, precision: float, tmp_path: Path) -> None:
    spec = SPECS[kind]
    name, _ = write(tmp_path / "s", spec, format)
    found, _ = read_source(tmp_path / "s" / name, spec)
    torch.testing.assert_close(found, images_of(spec)[:1], atol=precision, rtol=0)


def test_each_format_is_what_others_read(tmp_path: Path) -> None:
    image = images_of(VOLUME)[0]
    write(tmp_path / "nifti", VOLUME, "nifti")
    stored = nib.load(tmp_path / "nifti" / "sample_0.nii.gz").get_fdata()  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.moveaxis(stored, -1, 0), (image + 1) / 2, atol=1e-6)

    rgb = ((images_of(RGB)[0] + 1) * 127.5).round().numpy().astype(np.uint8)
    write(tmp_path / "png", RGB, "png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / "sample_0.png")), rgb.T)
    write(tmp_path / "dicom", RGB, "dicom")
    data = pydicom.dcmread(tmp_path / "dicom" / "sample_0" / "1-001.dcm")
    assert (data.PhotometricInterpretation, data.SyntheticData) == ("RGB", "YES")
    assert np.array_equal(data.pixel_array, rgb.T)

    write(tmp_path / "series", VOLUME, "dicom")
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "series" / "sample_0").iterdir())]
    described = [data.SeriesDescription for data in slices]
    assert described == ["SYNTHETIC t1"] * 4 + ["SYNTHETIC flair"] * 4
    assert len({data.SeriesInstanceUID for data in slices}) == 2
    assert len({(data.StudyInstanceUID, data.FrameOfReferenceUID) for data in slices}) == 1


@pytest.mark.parametrize(("kind", "format"), [("volume", "nifti"), ("picture", "nifti"), ("picture", "png")])
def test_a_name_of_the_only_channel_changes_no_file(kind: str, format: Format, tmp_path: Path) -> None:
    spec = replace(SPECS[kind], channels=1, channel_names=())
    (plain, _), (named, _) = (
        write(tmp_path / out, replace(spec, channel_names=names), format)
        for out, names in (("plain", ()), ("named", ("t1",)))
    )
    assert plain == named
    assert (tmp_path / "plain" / plain).read_bytes() == (tmp_path / "named" / named).read_bytes()


def test_a_source_of_other_channels_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "s", VOLUME, "nifti")
    three = replace(VOLUME, channels=3, channel_names=("t1", "t2", "flair"))
    with pytest.raises(InputError, match=r"sample_0.nii.gz: 2 channels; expected 3 channels, or a folder with"):
        read_source(tmp_path / "s" / "sample_0.nii.gz", three)
    write(tmp_path / "p", PICTURE, "png")
    (tmp_path / "p" / "sample_0" / "flair.png").unlink()
    with pytest.raises(InputError, match=r"sample_0: files t1; expected one for each channel .*: t1, flair"):
        read_source(tmp_path / "p" / "sample_0", PICTURE)


def test_the_files_of_channels_are_known_as_samples(tmp_path: Path) -> None:
    outputs = sample_files(tmp_path / "s", ["sample_0", "sample_1"], "png")
    outputs.claim()
    for name in ("sample_0", "sample_1"):
        SampleFile("png", PICTURE, "synthetic", "").write(tmp_path / "s", name, images_of(PICTURE)[0], None)
    outputs.end()
    outputs.clear()
    assert not list((tmp_path / "s").rglob("*.png"))


# Colours in DICOM.


def colour_file(path: Path, photometric: str, pixels: np.ndarray) -> None:
    """Colour slices as other programs write them, from a file of ours."""
    SampleFile("dicom", RGB, "synthetic", "").write(path.parent, path.stem, images_of(RGB)[0], None)
    data = pydicom.dcmread(path.parent / path.stem / "1-001.dcm")
    data.PhotometricInterpretation, data.PixelData = photometric, pixels.tobytes()
    data.Rows, data.Columns = pixels.shape[:2]
    if photometric == "PALETTE COLOR":
        data.SamplesPerPixel = 1
        del data.PlanarConfiguration
        for number, name in enumerate(("Red", "Green", "Blue")):
            table = (np.arange(256) * (number + 1) % 256).astype("<u2") * 257
            data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
            data.add_new(f"{name}PaletteColorLookupTableData", "OW", table.tobytes())
    data.save_as(path)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colours_of_dicom_are_red_green_and_blue(photometric: str, tmp_path: Path) -> None:
    shape = (6, 4) if photometric == "PALETTE COLOR" else (6, 4, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    colour_file(path := tmp_path / "a.dcm", photometric, pixels)
    data = pydicom.dcmread(path)
    expected = {
        "RGB": lambda: pixels,
        "YBR_FULL": lambda: pydicom.pixels.convert_color_space(pixels, "YBR_FULL", "RGB"),
        "PALETTE COLOR": lambda: apply_color_lut(pixels, data) / 257,
    }[photometric]()
    voxels, _ = read_image([path], flat=True, channels=3)
    np.testing.assert_allclose(voxels, np.asarray(expected).T, atol=1e-3)
    with pytest.raises(ValueError, match=r"a colour image|cannot be read"):
        read_image([path], flat=True, numbers=True)


# Pictures.


def test_pictures_have_a_row_for_each_channel_or_colours() -> None:
    images = images_of(PICTURE)
    whole = (images.numpy() + 1) / 2
    rows = np.vstack([np.hstack([image[channel].T for image in whole]) for channel in range(2)])
    np.testing.assert_allclose(mosaic(images), rows)
    colour = images_of(RGB)
    np.testing.assert_allclose(mosaic(colour, True), np.hstack([(image.T + 1) / 2 for image in colour.numpy()]))
    assert mosaic(colour).shape == (18, 10)  # channels with other names are no colours
    volumes = images_of(VOLUME)
    of_each = [columns_of(volumes[:, k : k + 1]) for k in range(2)]
    columns = [np.vstack(channels) for channels in zip(*of_each, strict=True)]
    np.testing.assert_allclose(mosaic(volumes), np.hstack(columns))


def test_loggers_are_told_of_colours() -> None:
    seen: list[str] = []

    def add_image(name: str, picture: np.ndarray, step: int, dataformats: str) -> None:
        seen.append(f"{picture.shape} {dataformats}")

    board = SimpleNamespace(experiment=SimpleNamespace(add_image=add_image))
    for picture in (np.zeros((4, 5)), np.zeros((4, 5, 3))):
        show(board, picture, 0, "samples")
    assert seen == ["(4, 5) HW", "(4, 5, 3) HWC"]
