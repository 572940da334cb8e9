"""DICOM series: every voxel lies where the standard puts it, whatever the files are called; faults are refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lit_medgen.images import read_image
from lit_medgen.images.dicom import group_by_series, open_series, read_series

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, feet first": (-1, 0, 0, 0, 1, 0),
    "axial, prone": (-1, 0, 0, 0, -1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0, 0, 0, -1),
}
SERIES = "1.2.826.0.1.3680043.8.498.1"


@dataclass(frozen=True)
class Series:
    """What the slices of a written series have in common."""

    orientation: tuple[float, ...] = ORIENTATIONS["axial"]
    rows: int = 6
    columns: int = 5
    spacing: tuple[float, float] = (2.0, 1.5)  # between rows, between columns, mm
    gap: float = 3.0
    origin: tuple[float, ...] = (-50.0, 20.0, 100.0)

    def position(self, k: float) -> np.ndarray:
        """Image Position (Patient) of slice k, mm, in DICOM's axes: left, posterior, superior."""
        along, down = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        return np.array(self.origin) + k * self.gap * np.cross(along, down)

    def field(self, position: np.ndarray) -> np.ndarray:
        """rows columns: `world_field` of every pixel (PS3.3, equation C.7.6.2.1-1)."""
        row, column = np.mgrid[: self.rows, : self.columns][..., None]
        along, down = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        return world_field(position + along * self.spacing[1] * column + down * self.spacing[0] * row)


def world_field(place: np.ndarray) -> np.ndarray:
    """A value that tells where a point (..., 3; left, posterior, superior, mm) lies."""
    return place @ np.array([2.0, 4.0, 8.0])


def write_slice(
    path: Path, series: Series, k: float, slope: float = 1.0, intercept: float = -1024.0, **changes: Any
) -> None:
    """One slice; `changes` overwrite its attributes, None removes one."""
    position = changes.pop("position", series.position(k))
    pixels = (series.field(position) - intercept) / slope
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, pydicom.uid.generate_uid()
    data.SeriesInstanceUID, data.PatientName = SERIES, "Doe^Jane"
    data.InstanceNumber = int(np.random.default_rng(int(10 * k)).integers(1000))  # says nothing about the order
    data.ImageOrientationPatient, data.ImagePositionPatient = list(series.orientation), [float(p) for p in position]
    data.PixelSpacing = list(series.spacing)
    data.Rows, data.Columns, data.SamplesPerPixel = series.rows, series.columns, 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept = slope, intercept
    data.PixelData = pixels.round().astype("<i2").tobytes()
    for name, value in changes.items():
        delattr(data, name) if value is None else setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


def write_series(folder: Path, series: Series = Series(), num: int = 7, **changes: Any) -> list[Path]:
    """The paths, in an order that is not the anatomical one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(1).permutation(num)
    for k in range(num):
        write_slice(folder / f"{names[k]:03}.dcm", series, k, **changes)
    return sorted(folder.glob("*.dcm"))


def assert_in_place(voxels: np.ndarray, affine: np.ndarray, atol: float) -> None:
    """Every voxel has the field's value at the world coordinate that the affine gives it."""
    ras = affine[:3, :3] @ np.indices(voxels.shape).reshape(3, -1) + affine[:3, 3:]
    np.testing.assert_allclose(voxels.ravel(), world_field(ras.T * [-1, -1, 1]), atol=atol)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_lies_where_the_standard_puts_it(name: str, tmp_path: Path) -> None:
    series = Series(orientation=ORIENTATIONS[name])
    voxels, affine = read_series(write_series(tmp_path, series))
    assert voxels.dtype == np.float32
    assert nib.orientations.aff2axcodes(affine) == ("R", "A", "S")
    assert sorted(voxels.shape) == [5, 6, 7]
    np.testing.assert_allclose(sorted(np.linalg.norm(affine[:3, :3], axis=0)), [1.5, 2.0, 3.0], rtol=1e-6)
    assert_in_place(voxels, affine, atol=0.51)  # pixels are whole numbers


def test_rescale_is_that_of_each_slice(tmp_path: Path) -> None:
    for k in range(7):
        write_slice(tmp_path / f"{k}.dcm", Series(), k, slope=(0.5, 1, 2)[k % 3], intercept=(-1024, 0, -2048)[k % 3])
    assert_in_place(*read_series(sorted(tmp_path.glob("*.dcm"))), atol=1.01)


def test_without_rescale_tags_the_pixels_are_the_values(tmp_path: Path) -> None:
    assert_in_place(
        *read_series(write_series(tmp_path, intercept=0, RescaleSlope=None, RescaleIntercept=None)), atol=0.51
    )


def test_identical_duplicates_count_once(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    write_slice(tmp_path / "again.dcm", Series(), 3)
    voxels, affine = read_series([*files, tmp_path / "again.dcm"])
    assert voxels.shape == (5, 6, 7)
    assert_in_place(voxels, affine, atol=0.51)


def extra(k: float, **changes: Any) -> Callable[[Path], None]:
    """A further file in a good series."""
    return lambda folder: write_slice(folder / "extra.dcm", Series(), k, **changes)


def without_slice(folder: Path) -> None:
    for path in folder.glob("*.dcm"):
        if abs(pydicom.dcmread(path).ImagePositionPatient[2] - 109) < 1e-3:  # slice 3; slice 2 lies at 106 mm
            path.unlink()


def only_one(folder: Path) -> None:
    for path in sorted(folder.glob("*.dcm"))[1:]:
        path.unlink()


def tilted(folder: Path) -> None:
    """Slices that move 1 mm to the back for every 3 mm up: a gantry tilt of 18 degrees."""
    for k, path in enumerate(sorted(folder.glob("*.dcm"))):
        write_slice(path, Series(), k, position=Series().position(k) + np.array([0, k, 0]))


def one_shifted(folder: Path) -> None:
    """One slice 4 mm to the side of the others, as when the table or the patient moved."""
    for k, path in enumerate(sorted(folder.glob("*.dcm"))):
        write_slice(path, Series(), k, position=Series().position(k) + np.array([4.0 * (k == 3), 0, 0]))


def uneven(folder: Path) -> None:
    for k, path in enumerate(sorted(folder.glob("*.dcm"))):
        write_slice(path, Series(), k + 0.2 * (k % 2))


def cut_off(folder: Path) -> None:
    (folder / "extra.dcm").write_bytes((folder / "003.dcm").read_bytes()[:-20])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "different slices at one place": (extra(3, intercept=-1000.0, RescaleIntercept=-1024.0), "two different slices"),
    "missing slice": (without_slice, r"gap of 6\.00 mm after 106\.00 mm"),
    "localizer": (extra(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "different orientation"),
    "mixed spacing": (extra(7, PixelSpacing=[2.0, 1.6]), "spacing"),
    "mixed size": (lambda folder: write_slice(folder / "extra.dcm", Series(rows=7), 7), "different values of size"),
    "two series": (extra(7, SeriesInstanceUID=SERIES + ".2"), "series"),
    "gantry tilt": (tilted, "tilt"),
    "one slice shifted sideways": (one_shifted, "shifted"),
    "uneven distances": (uneven, "2.40 to 3.60 mm apart"),
    "single slice": (only_one, "one slice"),
    "pixel data cut off": (cut_off, "extra.dcm"),
    "not DICOM": (lambda folder: (folder / "extra.dcm").write_text("no image"), "extra.dcm"),
    "empty file": (lambda folder: (folder / "extra.dcm").write_bytes(b""), "extra.dcm"),
    "no pixels": (extra(7, PixelData=None), "extra.dcm"),
    "no position": (extra(7, ImagePositionPatient=None), "extra.dcm"),
    "empty orientation": (extra(7, ImageOrientationPatient=[]), "extra.dcm"),
    "empty position": (extra(7, ImagePositionPatient=[]), "extra.dcm"),
    "several frames": (extra(7, NumberOfFrames=2), "extra.dcm"),
    "zero spacing": (lambda folder: write_series(folder, PixelSpacing=[0, 0]), "spacing"),
    "infinite values": (extra(7, RescaleSlope="1e39"), "extra.dcm|finite"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_series_is_refused_with_its_fault(fault: str, tmp_path: Path) -> None:
    write_series(tmp_path)
    spoil, text = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=text) as caught:
        read_series(sorted(tmp_path.glob("*.dcm")))
    assert "Doe" not in str(caught.value)


def test_damaged_files_either_load_whole_or_are_a_value_error(tmp_path: Path, leaks: Callable[..., list[str]]) -> None:
    files = write_series(tmp_path, replace(Series(), rows=16, columns=16), num=3)

    def read() -> tuple[np.ndarray, np.ndarray]:
        voxels, affine = read_series(files)
        assert voxels.ndim == 3
        return voxels, affine

    assert not leaks(files[1], 150, read)


@pytest.mark.data
def test_real_ct_series_agrees_with_its_nifti_copy(shared_data: Path) -> None:
    voxels, affine = read_image(sorted((shared_data / "lungct" / "dicom").rglob("*.dcm")))
    assert voxels.shape == (512, 512, 49)
    np.testing.assert_allclose(np.diag(affine), [0.75976562, 0.75976562, 2, 1], rtol=1e-6)
    assert (voxels.min(), voxels.max()) == (-1024, 3071)
    assert abs(np.median(voxels[200:300, -30:, 24]) + 1000) < 100  # the air in front of the chest

    copy, copy_affine = read_image(shared_data / "lungct" / "nifti" / "LungFCP-01-0001_ct_half.nii.gz")
    blocks = voxels.reshape(256, 2, 256, 2, 49).mean(axis=(1, 3))  # the copy also averages pairs of 1 mm slices
    np.testing.assert_allclose(
        copy_affine, affine @ [[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 1, 0.25], [0, 0, 0, 1]], atol=1e-4
    )
    assert np.corrcoef(blocks[::4, ::4].ravel(), copy[::4, ::4].ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("value", "limit"), [(-2000, None), (2**16 - 2000, None), (-2000, -1990)], ids=["signed", "unsigned", "range"]
)
def test_padding_becomes_the_smallest_value_of_the_slice(value: int, limit: int | None, tmp_path: Path) -> None:
    files = write_series(tmp_path)
    for path in files:
        data = pydicom.dcmread(path)
        pixels = data.pixel_array.copy()
        pixels[0, :2] = -2000, -2000 if limit is None else -1991
        data.PixelData = pixels.tobytes()
        data.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", "SS", limit)
        data.save_as(path)
    for one in open_series(files).slices:
        values = one.read()
        assert values[0, 0] == values[0, 1] == values.ravel()[2:].min() > -2000


def test_a_file_deflated_as_a_whole_is_refused(tmp_path: Path) -> None:
    """pydicom inflates it before anybody can ask for its size."""
    files = write_series(tmp_path)
    data = pydicom.dcmread(files[2])
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(files[2])
    with pytest.raises(ValueError, match="deflated"):
        read_series(files)


@pytest.mark.parametrize("slope", ["0", "-1"])
def test_a_rescale_slope_must_be_above_0(slope: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rescale slope"):
        read_series(write_series(tmp_path, RescaleSlope=slope))


def lookup_table(first: int, values: np.ndarray, kind: str) -> pydicom.Sequence:
    """A Modality LUT whose first value stands for the stored number `first`."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, 16])
    item.ModalityLUTType = "US"
    item.add_new("LUTData", kind, values.astype("<u2").tobytes() if kind == "OW" else values.tolist())
    return pydicom.Sequence([item])


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_modality_lut_gives_the_values(kind: str, tmp_path: Path) -> None:
    """Stored numbers are looked up; those outside the table take its first or last value."""
    files = write_series(tmp_path, intercept=0, RescaleSlope=None, RescaleIntercept=None)
    stored, _ = read_series(files)
    first, table = int(stored.min()) + 3, np.random.default_rng(0).integers(0, 4000, int(np.ptp(stored)) - 8)
    for path in files:
        data = pydicom.dcmread(path)
        data.ModalityLUTSequence = lookup_table(first, table, kind)
        data.save_as(path)
    expected = table[(stored.astype(int) - first).clip(0, len(table) - 1)]
    np.testing.assert_array_equal(read_series(files)[0], expected)


def write_enhanced(path: Path, series: Series, order: np.ndarray, **changes: Any) -> Path:
    """One file whose frames are the slices, in the order given; every other frame has a rescale of its own."""
    frames, pixels = [], []
    for number, k in enumerate(order):
        slope, intercept = ((1.0, -1024.0), (2.0, -2048.0))[number % 2]
        frame, place, transform = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [float(p) for p in series.position(k)]
        transform.RescaleSlope, transform.RescaleIntercept = slope, intercept
        frame.PlanePositionSequence = pydicom.Sequence([place])
        frame.PixelValueTransformationSequence = pydicom.Sequence([transform])
        frames.append(frame)
        pixels.append(((series.field(series.position(k)) - intercept) / slope).round().astype("<i2"))
    shared, plane, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    plane.ImageOrientationPatient = list(series.orientation)
    measures.PixelSpacing, measures.SliceThickness = list(series.spacing), series.gap
    shared.PlaneOrientationSequence = pydicom.Sequence([plane])
    shared.PixelMeasuresSequence = pydicom.Sequence([measures])
    write_slice(path, series, 0, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    data = pydicom.dcmread(path)
    del data.RescaleSlope, data.RescaleIntercept
    data.SOPClassUID, data.NumberOfFrames = EnhancedMRImageStorage, len(frames)
    data.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    data.PixelData = b"".join(frame.tobytes() for frame in pixels)
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", ["axial", "oblique"])
def test_frames_of_an_enhanced_file_are_slices(name: str, tmp_path: Path) -> None:
    series = Series(orientation=ORIENTATIONS[name])
    path = write_enhanced(tmp_path / "a.dcm", series, np.random.default_rng(2).permutation(7))
    voxels, affine = read_series([path])
    expected, expected_affine = read_series(write_series(tmp_path / "classic", series))
    np.testing.assert_allclose(affine, expected_affine, atol=1e-9)
    np.testing.assert_allclose(voxels, expected, atol=1.01)  # of half of the slices, every other number is stored
    assert group_by_series([path]) == [[path]]
    assert [one.thickness_mm for one in open_series([path]).slices] == [3.0] * 7


def test_an_enhanced_file_that_is_no_volume_is_refused(tmp_path: Path) -> None:
    several = write_enhanced(tmp_path / "a.dcm", Series(), np.array([0, 1, 1.0, 2]))
    data = pydicom.dcmread(several)
    data.PixelData = np.arange(4 * 30, dtype="<i2").tobytes()  # the two at one place differ
    data.save_as(several)
    with pytest.raises(ValueError, match="two different slices at one position"):
        read_series([several])
    with pytest.raises(ValueError, match="5 frames, but functional groups of 4"):
        read_series([write_enhanced(tmp_path / "b.dcm", Series(), np.arange(4), NumberOfFrames=5)])
    with pytest.raises(ValueError, match="claims 99999999 frames"):
        read_series([write_enhanced(tmp_path / "c.dcm", Series(), np.arange(4), NumberOfFrames=99999999)])


def write_radiograph(path: Path, **changes: Any) -> np.ndarray:
    """A file of rows and columns of 12 bits without a place in the patient; what it stores."""
    stored = np.random.default_rng(0).integers(0, 4096, (6, 5))
    absent = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    facts = dict.fromkeys(absent) | {"SOPClassUID": DigitalXRayImageStorageForPresentation, "PixelRepresentation": 0}
    facts |= {"BitsStored": 12, "HighBit": 11, "PixelData": stored.astype("<u2").tobytes()}
    write_slice(path, Series(), 0, **(facts | changes))
    return stored


@pytest.mark.parametrize("facts", [{"Modality": "CR", "SOPClassUID": "1.2"}, {"Modality": "MG"}, {}])
def test_a_radiograph_is_a_2d_image(facts: dict[str, str], tmp_path: Path) -> None:
    """Column and row from the top; without a pixel spacing its affine says 1 mm."""
    stored = write_radiograph(tmp_path / "a.dcm", **facts)
    pixels, affine = read_image([tmp_path / "a.dcm"])
    np.testing.assert_array_equal(pixels, stored.T)
    np.testing.assert_array_equal(affine, np.eye(3))


@pytest.mark.parametrize("name", ["PixelSpacing", "ImagerPixelSpacing"])
def test_the_spacing_of_a_radiograph_is_read(name: str, tmp_path: Path) -> None:
    write_radiograph(tmp_path / "a.dcm", **{name: [0.2, 0.1]})  # between rows, between columns
    np.testing.assert_allclose(read_image([tmp_path / "a.dcm"])[1], np.diag([0.1, 0.2, 1.0]))


def test_radiographs_that_show_low_values_bright_are_turned(tmp_path: Path) -> None:
    """So that bright is high in all images; of slices, values are measured and stay."""
    stored = write_radiograph(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image([tmp_path / "a.dcm"])[0], 4095 - stored.T)
    ct = write_series(tmp_path / "ct", PhotometricInterpretation="MONOCHROME1")
    assert_in_place(*read_series(ct), atol=0.51)


def test_a_single_slice_is_a_2d_image_where_one_is_wanted(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", Series(), 3)
    pixels, affine = read_image([tmp_path / "a.dcm"], flat=True)
    np.testing.assert_array_equal(pixels, Series().field(Series().position(3)).T)
    np.testing.assert_allclose(affine, np.diag([1.5, 2.0, 1.0]))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_suffix_or_preamble_are_read(syntax: str, tmp_path: Path) -> None:
    files = write_series(tmp_path)
    expected, _ = read_series(files)
    renamed = [path.rename(path.with_suffix(suffix)) for path, suffix in zip(files, [".IMA", ""] * 4, strict=False)]
    for path in renamed:
        data = pydicom.dcmread(path)
        del data.file_meta
        data.preamble = None
        pydicom.dcmwrite(path, data, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, overwrite=True)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_series(renamed)[0], expected)


def test_what_is_no_dicom_is_refused_without_advice_that_nobody_can_follow(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no image " * 100)
    with pytest.raises(ValueError, match=r"a cannot be read as a DICOM slice \(it is no DICOM file") as caught:
        read_series([tmp_path / "a"])
    assert "force" not in str(caught.value)


def test_lengths_written_with_other_digits_are_one(tmp_path: Path) -> None:
    series = Series(spacing=(3.125, 3.125))
    write_series(tmp_path, series)
    write_slice(tmp_path / "next.dcm", series, 7, PixelSpacing=[3.12500001, 3.125])
    assert read_series(sorted(tmp_path.glob("*.dcm")))[0].shape == (5, 6, 8)


def test_slices_may_be_micrometres_apart(tmp_path: Path) -> None:
    series = Series(spacing=(8e-4, 8e-4), gap=8e-4, origin=(0.0, 0.0, 0.0))
    pixels = {k: np.full((6, 5), k, "<i2").tobytes() for k in range(7)}
    for k in range(7):
        write_slice(tmp_path / f"{k}.dcm", series, k, PixelData=pixels[k], PatientID="x")
    voxels, affine = read_series(sorted(tmp_path.glob("*.dcm")))
    assert voxels.shape == (5, 6, 7)
    np.testing.assert_allclose(np.abs(np.diag(affine)), [8e-4, 8e-4, 8e-4, 1])


def test_files_that_lie_together_are_grouped_by_series(tmp_path: Path) -> None:
    """Names tell nothing; radiographs of one series are images of their own; what is no DICOM stands alone."""
    for k in range(6):
        write_slice(tmp_path / f"{k}.dcm", Series(), k // 2, SeriesInstanceUID=f"{SERIES}.{k % 2}")
    for name in ("pa.dcm", "lateral.dcm"):
        write_radiograph(tmp_path / name, SeriesInstanceUID=f"{SERIES}.3")
    (tmp_path / "notes").write_text("no image")
    found = group_by_series(sorted(tmp_path.iterdir()))
    assert [[path.name for path in files] for files in found] == [
        ["0.dcm", "2.dcm", "4.dcm"],
        ["1.dcm", "3.dcm", "5.dcm"],
        ["lateral.dcm"],
        ["notes"],
        ["pa.dcm"],
    ]


def test_a_damaged_file_stays_with_the_only_series(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    files[2].write_bytes(b"no image")
    assert group_by_series(files) == [files]


def test_a_compressed_file_without_a_decoder_names_the_extra(tmp_path: Path) -> None:
    """Where python-gdcm is installed, the file is read instead."""
    path = Path(get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False))
    if importlib.util.find_spec("gdcm"):
        plain = Path(get_testdata_file("MR_small.dcm", download=False))
        np.testing.assert_array_equal(read_image([path], flat=True)[0], read_image([plain], flat=True)[0])
    else:
        with pytest.raises(ValueError, match=r'JPEG-LS.*`pip install "lit_medgen\[dicom\]"`'):
            read_image([path], flat=True)


def test_colour_is_refused(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "a.dcm", PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(ValueError, match=r"a colour image \(PALETTE COLOR\)"):
        read_image([tmp_path / "a.dcm"])


@pytest.mark.parametrize("kind", ["enhanced", "radiograph"])
def test_damaged_images_of_one_file_either_load_or_are_a_value_error(
    kind: str, tmp_path: Path, leaks: Callable[..., list[str]]
) -> None:
    path = tmp_path / "a.dcm"
    if kind == "enhanced":
        write_enhanced(path, Series(), np.arange(5.0))
    else:
        write_radiograph(path)

    def read() -> tuple[np.ndarray, np.ndarray]:
        assert group_by_series([path]) == [[path]]
        return read_image(path, flat=True)

    assert not leaks(path, 100, read)
