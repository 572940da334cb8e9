"""DICOM out: every voxel lies where the affine put it, nothing passes for an acquired image, nothing is invented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from lit_medgen.images.dicom import read_series
from lit_medgen.images.dicom_writer import Kind, Series, fresh_uid, slice_dataset, write_series, write_slice

KINDS: tuple[Kind, ...] = ("sc", "ct", "mr")
AXIAL = (1, 0, 0, 0, 1, 0)
UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")


def affine_of(angles: tuple[float, ...], spacing: tuple[float, ...], flips: tuple[int, ...] = (1, 1, 1)) -> np.ndarray:
    """Voxel to world: axes turned by `angles` (degrees), mirrored where `flips` is -1."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.multiply(spacing, flips)
    affine[:3, 3] = (-87.123456, 1012.7654321, -0.5)
    return affine


AFFINES = {
    "straight": affine_of((0, 0, 0), (1, 1, 1)),
    "anisotropic": affine_of((0, 0, 0), (0.4882812, 0.7, 5)),
    "LPS": affine_of((0, 0, 0), (1, 2, 3), (-1, -1, 1)),
    "left-handed": affine_of((0, 0, 0), (1, 2, 3), (-1, 1, 1)),
    "slices downwards": affine_of((0, 0, 0), (1, 2, 3), (1, 1, -1)),
    "sagittal slices": affine_of((90, 0, 90), (1, 2, 3)),
    "oblique": affine_of((20, -31, 12), (0.9, 1.1, 2.5)),
    "oblique, mirrored": affine_of((-7, 14, 33), (1 / 3, 1 / 7, 11 / 9), (1, -1, -1)),
}


def whole_voxels(shape: tuple[int, ...] = (5, 6, 4), seed: int = 0) -> np.ndarray:
    """int16, both ends of the type among them."""
    voxels = np.random.default_rng(seed).integers(-32768, 32768, shape, dtype=np.int16)
    voxels.flat[:2] = (-32768, 32767)
    return voxels


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same image as the reader orders it."""
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float64), affine))
    return np.asarray(image.dataobj), image.affine


def corners(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """8 3: where the corner voxels lie, mm."""
    ends = np.stack(np.meshgrid(*[(0, length - 1) for length in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return ends @ affine[:3, :3].T + affine[:3, 3]


def assert_same(found: tuple[np.ndarray, np.ndarray], voxels: np.ndarray, affine: np.ndarray, step: float) -> None:
    """The geometry to 1e-4 mm at the farthest corner, the voxels to `step`."""
    expected, expected_affine = canonical(voxels, affine)
    assert found[0].shape == expected.shape
    assert np.abs(corners(found[0].shape, found[1]) - corners(expected.shape, expected_affine)).max() < 1e-4
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=step)


@contextmanager
def strict_reading() -> Iterator[None]:
    """pydicom refuses whatever the standard forbids in a value."""
    before = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    try:
        yield
    finally:
        pydicom.config.settings.reading_validation_mode = before


def elements(data: Dataset) -> list[pydicom.DataElement]:
    """All of a data set, those in sequences too; reading decodes them."""
    return [element for element in data.file_meta.iterall()] + list(data.iterall())


@pytest.mark.parametrize("name", AFFINES)
def test_whole_numbers_and_geometry_come_back(name: str, tmp_path: Path) -> None:
    voxels = whole_voxels()
    files = write_series(tmp_path, voxels, AFFINES[name], Series())
    assert [path.name for path in files] == ["1-001.dcm", "1-002.dcm", "1-003.dcm", "1-004.dcm"]
    assert sorted(tmp_path.iterdir()) == files  # nothing else, no temporary file
    assert_same(read_series(files), voxels, AFFINES[name], step=0)


@pytest.mark.parametrize("name", AFFINES)
def test_fractions_come_back_to_the_step(name: str, tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).normal(0.5, 0.2, (5, 6, 4))
    step = float(np.ptp(voxels)) / 65535
    files = write_series(tmp_path, voxels, AFFINES[name], Series())
    assert_same(read_series(files), voxels, AFFINES[name], step=0.5 * step + 1e-7)  # it reads as float32
    stored = np.stack([pydicom.dcmread(path).pixel_array for path in files])
    assert (stored.min(), stored.max()) == (-32768, 32767)  # all 16 bits are used


@settings(max_examples=40)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.05, 12)] * 3),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.integers(2, 6)] * 3),
)
def test_any_box_in_space_comes_back(
    angles: tuple[float, ...], spacing: tuple[float, ...], flips: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    affine, voxels = affine_of(angles, spacing, flips), whole_voxels(shape)
    with TemporaryDirectory() as folder:
        found, found_affine = read_series(write_series(Path(folder), voxels, affine, Series()))
    # By place, not by order: at 45 degrees, which axis is called first is up to rounding.
    index = np.indices(shape).reshape(3, -1)
    back = np.linalg.inv(found_affine) @ affine @ np.vstack([index, np.ones(index.shape[1])])
    nearest = np.rint(back[:3]).astype(int)
    away = found_affine[:3, :3] @ (back[:3] - nearest)
    assert np.abs(away).max() < 1e-4
    np.testing.assert_array_equal(found[tuple(nearest)], voxels[tuple(index)])


@pytest.mark.parametrize("name", AFFINES)
def test_a_mark_on_the_right_stays_on_the_right(name: str, tmp_path: Path) -> None:
    """By the standard's own equation (PS3.3, C.7.6.2.1-1), without the reader."""
    affine, voxels = AFFINES[name], np.zeros((5, 6, 4), np.int16)
    place = max(np.ndindex(voxels.shape), key=lambda index: (affine @ [*index, 1])[0])
    voxels[place] = 1000
    found = []
    for path in write_series(tmp_path, voxels, affine, Series()):
        data = pydicom.dcmread(path)
        along, down = np.reshape(data.ImageOrientationPatient, (2, 3)).astype(float)
        for row, column in np.argwhere(data.pixel_array == 1000):
            moved = along * data.PixelSpacing[1] * column + down * data.PixelSpacing[0] * row
            found.append(np.array(data.ImagePositionPatient, dtype=float) + moved)
    assert len(found) == 1
    left, posterior, superior = found[0]
    np.testing.assert_allclose((-left, -posterior, superior), (affine @ [*place, 1])[:3], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", AFFINES)
def test_another_reader_finds_the_same_image_in_the_same_place(name: str, kind: Kind, tmp_path: Path) -> None:
    voxels = whole_voxels()
    write_series(tmp_path, voxels, AFFINES[name], Series(kind=kind))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))  # GDCM orders them by place
    image = reader.Execute()
    found = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    assert sorted(found.ravel()) == sorted(voxels.ravel())
    for index in np.ndindex(found.shape):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        place = np.linalg.solve(AFFINES[name], (-left, -posterior, superior, 1))[:3]
        assert np.abs(AFFINES[name][:3, :3] @ (place - place.round())).max() < 1e-4
        assert found[index] == voxels[tuple(place.round().astype(int))]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.int64])
def test_whole_numbers_of_any_type_are_exact(dtype: type, tmp_path: Path) -> None:
    offset = {np.uint16: 200, np.int32: 1_000_000, np.int64: -70_000}.get(dtype, 0)
    voxels = (np.random.default_rng(2).integers(0, 2 if dtype is np.bool_ else 256, (3, 4, 5)) + offset).astype(dtype)
    files = write_series(tmp_path, voxels, np.eye(4), Series())
    assert_same(read_series(files), voxels, np.eye(4), step=0)
    data = pydicom.dcmread(files[0])
    assert data.RescaleSlope == 1
    assert (data.RescaleIntercept == 0) == (voxels.min() >= -32768 and voxels.max() <= 32767)


@pytest.mark.parametrize("value", [0.25, -1e-20, 0.1 + 1e6])
def test_one_value_everywhere_comes_back(value: float, tmp_path: Path) -> None:
    files = write_series(tmp_path, np.full((3, 3, 3), value), np.eye(4), Series())
    np.testing.assert_allclose(read_series(files)[0], value, rtol=1e-7, atol=1e-9)


def test_a_picture_is_one_file_that_looks_as_in_a_png_and_has_no_patient_axes(tmp_path: Path) -> None:
    pixels = whole_voxels((5, 7))
    files = write_series(tmp_path, pixels, np.diag([0.5, 0.25, 1.0]), Series())
    assert [path.name for path in files] == ["1-001.dcm"]
    data = pydicom.dcmread(files[0])
    np.testing.assert_array_equal(data.pixel_array, pixels.T)
    assert data.PixelSpacing == [0.25, 0.5]
    assert not {"ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"} & set(data.dir())


def written(folder: Path, kind: Kind, **changes: Any) -> list[Dataset]:
    """A series of a kind, read back strictly."""
    voxels = np.random.default_rng(3).normal(0, 300, (5, 6, 4))
    with strict_reading():
        files = write_series(folder, voxels, AFFINES["oblique, mirrored"], Series(kind=kind, **changes))
        slices = [pydicom.dcmread(path) for path in files]
        assert all(len(elements(data)) > 50 for data in slices)
    return slices


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_strict_reading_finds_nothing(kind: Kind, tmp_path: Path) -> None:
    full = {"model_hash": "f" * 64, "date": "20260131", "description": "brain, ä", "head": True, "patient_id": "A" * 48}
    for k, changes in enumerate(({}, full)):
        for data in written(tmp_path / str(k), kind, **changes):
            assert data.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert not [element.tag for element in elements(data) if element.tag.is_private]
            decimals = [value for element in elements(data) if element.VR == "DS" for value in strings(element)]
            assert len(decimals) >= 14
            assert all(len(value) <= 16 for value in decimals)


def strings(element: pydicom.DataElement) -> list[str]:
    """The values of a decimal string as they stand in the file."""
    values = element.value if element.VM > 1 else [element.value] if element.VM else []
    return [str(value.original_string) for value in values]


@pytest.mark.parametrize("kind", KINDS)
def test_every_slice_says_in_each_way_that_it_is_synthetic(kind: Kind, tmp_path: Path) -> None:
    for data in written(tmp_path, kind, description="brain", model_hash="ab" * 32, patient_id="SYN-7-1"):
        assert data.SyntheticData == "YES"
        assert list(data.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert data.SeriesDescription == "SYNTHETIC brain"
        assert str(data.PatientName) == "SYNTHETIC^SYN-7-1"
        assert data.PatientID == "SYN-7-1"
        assert data.ImageComments.startswith("SYNTHETIC")
        assert data.BurnedInAnnotation == "NO"
        equipment = data.ContributingEquipmentSequence[0]
        purpose = equipment.PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert purpose.CodeMeaning == "Synthesizing Equipment"
        for software in (data.SoftwareVersions, equipment.SoftwareVersions):
            assert software[0].startswith("lit_medgen ")
            assert software[1] == "model " + "ab" * 16
        assert "SourceImageSequence" not in data
        assert "PatientIdentityRemoved" not in data  # no claim of de-identification


CLASSES = {
    "sc": ("1.2.840.10008.5.1.4.1.1.7", "OT"),
    "ct": ("1.2.840.10008.5.1.4.1.1.2", "CT"),
    "mr": ("1.2.840.10008.5.1.4.1.1.4", "MR"),
}
# PS3.3: type 1 has a value, type 2 is present.
WITH_VALUE = (
    "StudyInstanceUID SeriesInstanceUID Modality SOPClassUID SOPInstanceUID ImageType FrameOfReferenceUID Rows Columns "
    "SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation PixelData "
    "PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness SpacingBetweenSlices RescaleSlope "
    "RescaleIntercept RescaleType WindowCenter WindowWidth SpecificCharacterSet InstanceNumber SeriesNumber "
    "Manufacturer"
)
PRESENT = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName PositionReferenceIndicator"
)
OF_KIND = {
    "sc": ("ConversionType", "PatientOrientation"),
    "ct": ("", "KVP AcquisitionNumber PatientPosition"),
    "mr": (
        "ScanningSequence SequenceVariant",
        "ScanOptions MRAcquisitionType EchoTime RepetitionTime EchoTrainLength PatientPosition",
    ),
}
PHYSICS = (
    "KVP XRayTubeCurrent Exposure ExposureTime ConvolutionKernel GantryDetectorTilt EchoTime RepetitionTime FlipAngle "
    "InversionTime MagneticFieldStrength EchoTrainLength ScanOptions MRAcquisitionType ManufacturerModelName"
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_what_its_class_asks_for_and_no_physics(kind: Kind, tmp_path: Path) -> None:
    for data in written(tmp_path, kind):
        assert (data.SOPClassUID, data.Modality) == CLASSES[kind]
        assert data.file_meta.MediaStorageSOPClassUID == data.SOPClassUID
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        with_value, present = OF_KIND[kind]
        empty = [name for name in f"{WITH_VALUE} {with_value}".split() if name not in data or data[name].is_empty]
        assert not empty
        assert not [name for name in f"{PRESENT} {present}".split() if name not in data]
        assert not [name for name in PHYSICS.split() if name in data and not data[name].is_empty]
        assert data.get("ConversionType") == ("SYN" if kind == "sc" else None)
        assert len(data.ImageType) == (2 if kind == "sc" else 3)
        assert (data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation) == (16, 16, 15, 1)
        assert "RecognizableVisualFeatures" not in data
    assert all(data.RecognizableVisualFeatures == "YES" for data in written(tmp_path / "head", kind, head=True))


def test_a_series_shares_its_uids_and_each_slice_has_its_own(tmp_path: Path) -> None:
    slices = written(tmp_path, "ct", number=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"3-00{k}.dcm" for k in (1, 2, 3, 4)]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({data[name].value for data in slices}) == 1
    assert len({data.SOPInstanceUID for data in slices}) == 4
    assert [data.InstanceNumber for data in slices] == [1, 2, 3, 4]
    assert len({(data.WindowCenter, data.WindowWidth) for data in slices}) == 1


def test_fresh_uids_are_valid_and_never_come_twice() -> None:
    uids = {fresh_uid() for _ in range(100_000)}
    assert len(uids) == 100_000
    assert all(len(uid) <= 64 and UID.fullmatch(uid) for uid in uids)
    one, other = Series(), Series()
    assert len({one.study_uid, one.series_uid, one.frame_uid, other.study_uid, other.series_uid, other.frame_uid}) == 6


def test_no_uid_of_a_training_series_is_in_what_was_made_of_it(tmp_path: Path) -> None:
    def uids(files: list[Path]) -> set[str]:
        found = [element for path in files for element in pydicom.dcmread(path).iterall() if element.VR == "UI"]
        return {str(element.value) for element in found if element.keyword != "SOPClassUID"}

    training = write_series(tmp_path / "training", whole_voxels(), AFFINES["oblique"], Series())
    made = write_series(tmp_path / "made", *read_series(training), Series())
    assert len(uids(training)) == 3 + len(training)
    assert len(uids(made)) == 3 + len(made)
    assert not uids(training) & uids(made)


def test_the_preamble_is_zero_whatever_the_dataset_carries(tmp_path: Path) -> None:
    data = slice_dataset(Series(), np.zeros((3, 4), np.int16), (0, 0, 0), AXIAL, (1, 1), 1)
    data.preamble = b"MZ" + b"\x90" * 126
    write_slice(tmp_path / "a.dcm", data)
    assert (tmp_path / "a.dcm").read_bytes()[:132] == bytes(128) + b"DICM"
    for path in write_series(tmp_path / "s", whole_voxels(), np.eye(4), Series()):
        assert path.read_bytes()[:132] == bytes(128) + b"DICM"


def test_a_slice_keeps_its_uid_and_the_values_that_its_series_gives_it(tmp_path: Path) -> None:
    series, uid = Series(slope=0.5, intercept=-1024, window=(-160, 240)), fresh_uid()
    pixels = np.arange(12, dtype=np.int16).reshape(3, 4)
    data = slice_dataset(series, pixels, (1, 2, 3), AXIAL, (2, 1.5), 7, uid)
    write_slice(tmp_path / "a.dcm", data)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert found.SOPInstanceUID == uid
    assert (found.RescaleSlope, found.RescaleIntercept, found.InstanceNumber) == (0.5, -1024, 7)
    assert found.PixelSpacing == [2, 1.5]
    assert found["SliceThickness"].is_empty
    np.testing.assert_array_equal(found.pixel_array, pixels)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1000.0, 400.0), (5.0, 5.0)])
def test_the_window_shows_its_ends_black_and_white(ends: tuple[float, float], tmp_path: Path) -> None:
    voxels = np.linspace(*ends, 27).reshape(3, 3, 3)
    data = pydicom.dcmread(write_series(tmp_path, voxels, np.eye(4), Series())[0])
    assert data.WindowWidth >= 1  # below, the linear function is not defined
    assert data.WindowCenter - 0.5 - (data.WindowWidth - 1) / 2 == pytest.approx(ends[0])
    assert data.WindowCenter - 0.5 + (data.WindowWidth - 1) / 2 == pytest.approx(ends[1])


GOOD = np.zeros((3, 4, 5))
SHEARED = np.array([[1.0, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
FAULTS: dict[str, tuple[np.ndarray, np.ndarray, Kind, str]] = {
    "NaN": (np.where(np.arange(60).reshape(3, 4, 5) == 7, np.nan, 0), np.eye(4), "sc", "not finite"),
    "infinite": (np.full((3, 4, 5), np.inf), np.eye(4), "sc", "not finite"),
    "complex": (GOOD.astype(complex), np.eye(4), "sc", "complex128"),
    "four axes": (GOOD[None], np.eye(4), "sc", "colours of 5 channels"),
    "no voxels": (GOOD[:0], np.eye(4), "sc", r"shape \(0, 4, 5\)"),
    "affine of a picture": (GOOD, np.eye(3), "sc", "colours of 5 channels"),
    "picture of a scanner": (GOOD[0], np.eye(3), "ct", "picture"),
    "singular": (GOOD, np.diag([1.0, 0, 1, 1]), "sc", "singular"),
    "endless": (GOOD, np.diag([1.0, np.inf, 1, 1]), "sc", "singular or not finite"),
    "sheared": (GOOD, SHEARED, "sc", "right angles"),
    "too wide": (np.zeros((2, 65536, 1), np.int16), np.eye(4), "sc", "below 65536"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_dicom_cannot_hold_is_refused_in_one_line_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    voxels, affine, kind, text = FAULTS[fault]
    with pytest.raises(ValueError, match=text) as caught:
        write_series(tmp_path / "s", voxels, affine, Series(kind=kind))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "us"),
        ("patient_id", ""),
        ("patient_id", "A^B"),
        ("description", "x" * 55),
        ("description", "a\\b"),
        ("study_uid", "1.02.3"),
        ("series_uid", "1." * 40 + "1"),
        ("model_hash", "no hash"),
        ("date", "2026-01-31"),
        ("slope", 0.0),
        ("window", (0.0, float("nan"))),
        ("number", -1),
    ],
)
def test_a_series_with_what_dicom_cannot_hold_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(Series(), **{name: value})


@pytest.mark.parametrize(
    ("pixels", "position", "orientation", "spacing", "text"),
    [
        (np.zeros((3, 4)), (0, 0, 0), AXIAL, (1, 1), "int16"),
        (np.zeros(3, np.int16), (0, 0, 0), AXIAL, (1, 1), "shape"),
        (np.zeros((3, 4), np.int16), (0, 0), AXIAL, (1, 1), "position"),
        (np.zeros((3, 4), np.int16), (0, 0, np.nan), AXIAL, (1, 1), "position"),
        (np.zeros((3, 4), np.int16), (0, 0, 0), (1, 0, 0, 1, 0, 0), (1, 1), "right angle"),
        (np.zeros((3, 4), np.int16), (0, 0, 0), (2, 0, 0, 0, 1, 0), (1, 1), "unit vectors"),
        (np.zeros((3, 4), np.int16), (0, 0, 0), AXIAL, (1, 0), "spacing"),
    ],
)
def test_a_slice_without_a_plane_is_refused(
    pixels: np.ndarray, position: Any, orientation: Any, spacing: Any, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        slice_dataset(Series(), pixels, position, orientation, spacing, 1)
