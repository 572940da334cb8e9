"""NIfTI: every voxel stays where it is in the world, and every fault of a file is named."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_medgen.images.nifti import read_nifti, write_nifti

SHAPE = (4, 5, 6)
SIGNED_AXES = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def world_field(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A linear function of the world coordinates, so that a voxel's value says where it lies."""
    world = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    return (np.array([1.0, 3.0, -5.0]) @ world).reshape(shape)


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def geometry(axes: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ axes @ np.diag([0.7, 1.0, 2.5])
    affine[:3, 3] = (-90.5, 12.25, 33.0)
    return affine


@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize(
    "axes", SIGNED_AXES, ids=lambda axes: "".join(nib.orientations.aff2axcodes(np.pad(axes, (0, 1))))
)
def test_voxels_keep_their_world_coordinates_and_turn_to_ras(axes: np.ndarray, degrees: float, tmp_path: Path) -> None:
    affine = geometry(axes, degrees)
    write_nifti(tmp_path / "a.nii", world_field(SHAPE, affine).astype(np.float32), affine)
    voxels, found = read_nifti(tmp_path / "a.nii")
    assert nib.orientations.aff2axcodes(found) == ("R", "A", "S")
    np.testing.assert_allclose(voxels, world_field(voxels.shape, found), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("flip", [1, -1])
def test_the_right_ear_stays_right(flip: int, tmp_path: Path) -> None:
    voxels, affine = np.zeros(SHAPE, dtype=np.float32), np.diag([float(flip), 1, 1, 1])
    voxels[1, 2, 3] = 7
    write_nifti(tmp_path / "a.nii.gz", voxels, affine)
    found, found_affine = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(found_affine @ [*np.argwhere(found == 7)[0], 1], affine @ [1, 2, 3, 1], atol=1e-6)


@given(
    origin=st.tuples(*[st.floats(-300, 300)] * 3), spacing=st.tuples(*[st.floats(0.2, 8)] * 3), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None, database=None)
def test_round_trip(
    origin: tuple[float, ...], spacing: tuple[float, ...], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.nii.gz"
    voxels = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    write_nifti(path, voxels, affine, description="synthetic")
    found, found_affine = read_nifti(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(found_affine, affine, rtol=1e-6, atol=1e-6)


def test_integers_with_slope_and_intercept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = struct.pack("<ff", 0.5, -1024)  # nibabel rescales on saving, so set what stands in the file
    (tmp_path / "a.nii").write_bytes(content)
    stored = np.frombuffer(bytes(content[352:]), dtype="<i2").reshape(SHAPE, order="F")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii")[0], stored * 0.5 - 1024)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_extensions_of_any_length_are_passed_over(kind: type, ending: str, tmp_path: Path) -> None:
    """Scanners and converters leave notes between header and voxels, longer than the header itself."""
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = kind(voxels, np.eye(4))
    for note in (b"short", b"x" * 1000, b"y" * 100_000):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", note))
    image.to_filename(path := tmp_path / f"image{ending}")
    assert np.array_equal(read_nifti(path)[0].squeeze(), voxels)
    content = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
    second = content.index(b"x" * 1000) - 8
    struct.pack_into("<i", content, second, -32)
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(ValueError, match="an extension of the header claims -32 bytes"):
        read_nifti(path)


def test_a_trailing_axis_of_one_is_harmless(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 1, 1), dtype=np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz")[0].shape == SHAPE


def saved(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def good(path: Path) -> bytes:
    return saved(path, np.random.default_rng(0).uniform(size=(10, 10, 10)).astype(np.float32)).read_bytes()


def edited(path: Path, *edits: tuple[int, bytes]) -> Path:
    """An uncompressed file with bytes of its header overwritten."""
    content = bytearray(good(path))
    for offset, new in edits:
        content[offset : offset + len(new)] = new
    path.write_bytes(content)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def truncated(folder: Path) -> Path:
    content = good(folder / "a.nii.gz")
    return written(folder / "a.nii.gz", content[: len(content) * 6 // 10])


def without_trailer(folder: Path) -> Path:
    return written(folder / "a.nii.gz", good(folder / "a.nii.gz")[:-8])


def wrong_checksum(folder: Path) -> Path:
    content = bytearray(good(folder / "a.nii.gz"))
    content[-8] ^= 255
    return written(folder / "a.nii.gz", content)


def stored_bit_flip(folder: Path) -> Path:
    """A flipped bit in a gzip member that is only stored: the stream is sound, the checksum is not."""
    content = bytearray(gzip.compress(good(folder / "a.nii"), compresslevel=0))
    content[2000] ^= 64
    return written(folder / "a.nii.gz", content)


def with_voxels(*values: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        voxels = np.ones((10, 10, 10), dtype=np.float32)
        voxels.flat[: len(values)] = values
        return saved(folder / "a.nii.gz", voxels)

    return write


def other_format(path: Path) -> Path:
    nib.save(nib.Spm2AnalyzeImage(np.ones((4, 4, 4), dtype=np.float32), np.eye(4)), path)
    return path


CODES = 252  # qform_code, sform_code: two int16
ROWS = 280  # srow_x, srow_y, srow_z: twelve float32
DIMENSIONS = 40  # dim: eight int16
FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "cut off or damaged"),
    "not compressed": (lambda folder: written(folder / "a.nii.gz", good(folder / "a.nii")), "not compressed though"),
    "gzip trailer missing": (without_trailer, "cut off or damaged"),
    "gzip checksum wrong": (wrong_checksum, "cut off or damaged"),
    "bit flip under gzip": (stored_bit_flip, "cut off or damaged"),
    "named gz, is not": (lambda folder: written(folder / "a.nii.gz", good(folder / "a.nii")), "cut off or damaged"),
    "empty": (lambda folder: written(folder / "a.nii", b""), "cut off or damaged"),
    "text": (lambda folder: written(folder / "a.nii", b"no image " * 100), "cut off or damaged"),
    "data cut": (lambda folder: written(folder / "a.nii", good(folder / "a.nii")[:-1]), "cut off or damaged"),
    "NaN": (with_voxels(np.nan, np.nan, np.nan), r"3 of 1000 voxels are NaN.*preprocessing\.non_finite: fill"),
    "infinite": (with_voxels(np.inf, -np.inf), "2 of 1000 voxels"),
    "4D": (lambda folder: saved(folder / "a.nii", np.ones((4, 4, 4, 2), dtype=np.float32)), "4D image"),
    "2D": (lambda folder: saved(folder / "a.nii", np.ones((4, 4), dtype=np.float32)), "2D image"),
    "both codes 0": (
        lambda folder: edited(folder / "a.nii", (CODES, bytes(4))),
        "qform_code and sform_code are both 0",
    ),
    "singular affine": (lambda folder: edited(folder / "a.nii", (ROWS, bytes(16))), "affine is singular"),
    "NaN affine": (lambda folder: edited(folder / "a.nii", (ROWS, struct.pack("<f", np.nan))), "not finite"),
    "other format": (lambda folder: other_format(folder / "a.img"), "AnalyzeImage.*expected NIfTI"),
    "unknown data type": (lambda folder: edited(folder / "a.nii", (70, struct.pack("<h", 99))), "data"),
    "negative size": (
        lambda folder: edited(folder / "a.nii", (DIMENSIONS, struct.pack("<4h", 3, 10, -10, 10))),
        "shape",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_with_its_fault(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write, text = FAULTS[fault]
    path = write(tmp_path)
    caplog.clear()
    with pytest.raises(ValueError, match=text):
        read_nifti(path)
    assert not caplog.records


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 1e-3), ("mm", 1.0), ("unknown", 1.0)])
def test_units_of_length_are_read(unit: str, mm: float, tmp_path: Path) -> None:
    affine = geometry(np.eye(3))
    affine[:3] /= mm
    image = nib.Nifti1Image(world_field(SHAPE, geometry(np.eye(3))).astype(np.float32), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    voxels, found = read_nifti(tmp_path / "a.nii")
    np.testing.assert_allclose(found, geometry(np.eye(3)), rtol=1e-6)
    np.testing.assert_allclose(voxels, world_field(SHAPE, found), atol=1e-4)


@pytest.mark.parametrize("side_mm", [8e-3, 1e-6])
def test_voxels_may_be_of_any_size(side_mm: float, tmp_path: Path) -> None:
    affine = np.diag([side_mm, side_mm, side_mm, 1.0])
    write_nifti(tmp_path / "a.nii", np.ones(SHAPE, dtype=np.float32), affine)
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii")[1], affine, rtol=1e-6)


def two_forms(path: Path, shift_mm: float) -> Path:
    """The sform lies that far to the right of the qform."""
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32), np.eye(4))
    image.set_qform(np.eye(4), code=1)
    image.set_sform(moved_right(shift_mm), code=2)
    nib.save(image, path)
    return path


def moved_right(mm: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = mm
    return affine


def test_forms_that_differ_are_refused_with_both_numbers_or_chosen_between(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "a.nii", 3.5)
    with pytest.raises(ValueError, match=r"qform \(code 1\).*\(0, .*sform \(code 2\).*\(3\.5, .*preprocessing\.form"):
        read_nifti(path)
    np.testing.assert_allclose(read_nifti(path, form="qform")[1], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(read_nifti(path, form="sform")[1], moved_right(3.5), atol=1e-6)
    assert read_nifti(two_forms(tmp_path / "b.nii", 1e-3))[1][0, 3] == pytest.approx(1e-3)


def coloured(path: Path, voxels: np.ndarray) -> Path:
    dtype = np.dtype([(name, "u1") for name in "RGBA"[: voxels.shape[-1]]])
    nib.save(nib.Nifti1Image(voxels.astype("u1").view(dtype)[..., 0], np.eye(4)), path)
    return path


@pytest.mark.parametrize("channels", [3, 4])
def test_equal_channels_are_grey_and_colours_are_refused(channels: int, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, SHAPE)
    voxels = np.repeat(grey[..., None], channels, axis=-1)
    voxels[..., 3:] = 255  # opaque
    found, _ = read_nifti(coloured(tmp_path / "grey.nii", voxels))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, grey)
    voxels[1, 2, 3, 1] ^= 1
    with pytest.raises(ValueError, match=r"a colour image .*expected grey values"):
        read_nifti(coloured(tmp_path / "colour.nii", voxels))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_voxels_are_refused(dtype: type, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"complex voxels .*the magnitude"):
        read_nifti(saved(tmp_path / "a.nii", np.ones(SHAPE, dtype=dtype)))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_huge_claim_is_refused_before_anything_is_allocated(compressed: bool, tmp_path: Path) -> None:
    path = edited(tmp_path / "a.nii", (DIMENSIONS, struct.pack("<4h", 3, 30000, 30000, 30000)))
    if compressed:
        path = written(tmp_path / "a.nii.gz", gzip.compress(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"claims shape \(30000, 30000, 30000\)"):
        read_nifti(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_files_either_load_whole_or_are_a_value_error(
    suffix: str, tmp_path: Path, leaks: Callable[..., list[str]]
) -> None:
    path = tmp_path / f"a{suffix}"
    good(path)

    def read() -> tuple[np.ndarray, np.ndarray]:
        voxels, affine = read_nifti(path)
        assert voxels.ndim == 3
        return voxels, affine

    assert not leaks(path, 250, read)
