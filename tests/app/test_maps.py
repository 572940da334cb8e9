"""Label maps between the page, the browser and files: the same classes come back, nothing else is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_medgen.app.maps import LabelMap, colours, decoded, empty_body, encoded, read_map, uploaded
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.label_maps import write_label_map
from lit_medgen.images.nifti import write_nifti
from lit_medgen.request_files import read_label_map

CLASSES = ("background", "body", "lung", "nodule")
FLAT = DataSpec(1, (7, 5), (1.0, 1.0), orientation="LP", classes=CLASSES)
DEEP = DataSpec(1, (4, 5, 3), (1.0, 1.0, 2.0), classes=CLASSES)
PATIENT = "DOE^JANE_19470329"


def random_map(spec: DataSpec, seed: int) -> LabelMap:
    return LabelMap(np.random.default_rng(seed).integers(0, len(spec.classes), spec.size))


@given(seed=st.integers(0, 10**6), deep=st.booleans())
def test_what_the_browser_sends_back_unpainted_is_the_map(seed: int, deep: bool) -> None:
    spec = DEEP if deep else FLAT
    label_map = again = random_map(spec, seed)
    for index in range(label_map.num_slices):
        again = again.painted(index, decoded(encoded(label_map.plane(index)), spec))
    assert np.array_equal(again.classes, label_map.classes)


def test_a_painted_pixel_is_where_it_is_seen() -> None:
    """Right of the top row: the last column of a picture; of a volume the patient's right to left, and the front."""
    for spec, index, expected in ((FLAT, 0, (6, 0)), (DEEP, 2, (3, 4, 2))):
        label_map = LabelMap(np.zeros(spec.size, int))
        plane = label_map.plane(index).copy()
        plane[0, -1] = 3
        painted = label_map.painted(index, decoded(encoded(plane), spec))
        assert np.argwhere(painted.classes).tolist() == [list(expected)]
        assert not label_map.classes.any()


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (encoded(np.zeros((5, 6), int)), "7 x 5"),
        (encoded(np.zeros((7, 5), int)), "size [5, 7]"),
        (encoded(np.full((5, 7), 4)), "classes up to 4"),
        ("", "load the page again"),
        ("[1, 2]", "load the page again"),
        (json.dumps({"size": [7, 5], "classes": "%%%"}), "load the page again"),
        (json.dumps({"classes": encoded(np.zeros((5, 7)))}), "load the page again"),
    ],
)
def test_what_is_no_map_is_refused(sent: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        decoded(sent, FLAT)
    assert named in str(error.value)


def test_files_are_read_as_sample_reads_them_and_are_not_kept(tmp_path: Path) -> None:
    label_map = random_map(FLAT, 1).classes
    write_label_map(tmp_path / f"{PATIENT}.PNG", label_map, FLAT.spacing_mm)
    affine = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 1, 50], [0, 0, 0, 1]])
    write_nifti(tmp_path / f"{PATIENT}.nii.gz", label_map[..., None].astype(np.uint8), affine)
    for suffix in (".PNG", ".nii.gz"):
        path = tmp_path / f"{PATIENT}{suffix}"
        expected, place = read_label_map(path, FLAT)
        found = read_map(uploaded(str(path), tmp_path / "private", "map"), FLAT)
        assert np.array_equal(found.classes, expected[0, 0].numpy())
        assert (found.affine is None) == (place is None) == (suffix == ".PNG")
        assert found.affine is None or found.affine.equal(place)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("suffix", "named"), [(".png", "classes 9"), (".nii", "map.nii"), (".txt", "another kind")])
def test_no_message_about_a_file_has_its_name(tmp_path: Path, suffix: str, named: str) -> None:
    path = tmp_path / f"{PATIENT}{suffix}"
    if suffix == ".png":
        write_label_map(path, np.full(FLAT.size, 9), FLAT.spacing_mm)
    else:
        path.write_text("no image")
    with pytest.raises(InputError) as error:
        read_map(uploaded(str(path), tmp_path / "private", "map"), FLAT)
    assert named in str(error.value)
    assert PATIENT not in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_empty_body_has_the_classes_of_the_data_and_no_nodule() -> None:
    chest = replace(FLAT, size=(64, 64))
    found = empty_body(chest).classes
    assert set(np.unique(found)) == {0, 1, 2}
    assert (found == 2).sum() > 0.1 * found.size  # two lungs
    assert np.array_equal(found, found[::-1])
    deep = empty_body(replace(chest, size=(64, 64, 3), spacing_mm=(1.0, 1.0, 1.0))).classes
    assert np.array_equal(deep[..., 0], deep[..., 2])
    assert np.array_equal(LabelMap(deep).plane(1), LabelMap(found).plane(0))
    assert not empty_body(replace(FLAT, classes=("air", "brain"))).classes.any()


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len(set(colours(40))) == 40
    assert all(len(colour) == 7 for colour in colours(40))
