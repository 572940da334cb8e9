"""What the page answers, without gradio: a map is painted, images are made, one is looked at and written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_desk import FLAT, Drawing, desk

from lit_medgen.app.answers import Answers, Look, whole
from lit_medgen.app.desk import Desk, Wishes
from lit_medgen.app.maps import encoded
from lit_medgen.app.views import OWN, WHOLE
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import write_nifti
from lit_medgen.images.png import write_png

LOOK = Look((), 0, WHOLE, 0.0, 1.0)


def test_a_painted_map_is_made_seen_and_written(tmp_path: Path) -> None:
    at = Answers(desk(tmp_path, ("label_map",)))
    session = at.start()
    assert session.label_map is not None
    plane = session.label_map.plane(0).copy()
    plane[0, 0] = 2
    session = session.painted(encoded(plane), at.desk)
    *_, (session, said) = at.make(session, Wishes(3), 2)
    assert said.startswith("2 of 2 made")
    assert "SYNTHETIC" in said
    assert [made.name for made in session.made] == ["sample_00000003", "sample_00000004"]
    expected = at.desk.make(Wishes(4, label_map=session.label_map))
    session = at.chosen(session, 1)
    assert session.looked_at.image.equal(expected.image)
    (picture,) = at.pictures(session, LOOK)
    assert picture.max() > picture.min()
    path = at.picture_file(session, [picture])
    with Image.open(path) as file:
        assert np.array_equal(np.asarray(file), picture)
        assert "SYNTHETIC" in file.text["Description"]  # type: ignore[attr-defined]
    assert [each.suffix for each in at.files(session)] == [".gz", ".dcm"]
    assert [name for _, name in at.thumbnails(session)] == ["seed 3", "seed 4"]


def test_windows_change_what_is_seen_and_nothing_else(tmp_path: Path) -> None:
    at = Answers(desk(tmp_path))
    *_, (session, _) = at.make(at.start(), Wishes(0), 1)
    whole, narrow = (at.pictures(session, Look((), 0, *how))[0] for how in ((WHOLE, 0, 1), (OWN, -300, 10)))
    assert set(np.unique(narrow)) > {0, 255}
    assert not set(np.unique(whole)) & {0, 255}


def test_before_an_image_is_made_there_is_nothing_to_see(tmp_path: Path) -> None:
    at = Answers(desk(tmp_path))
    with pytest.raises(InputError, match="press Make first"):
        at.files(at.start())


def test_an_empty_field_and_old_files_are_noticed(tmp_path: Path) -> None:
    at = Answers(desk(tmp_path))
    with pytest.raises(InputError, match="no seed; give a whole number"):
        whole(None, "seed")
    *_, (session, _) = at.make(at.start(), Wishes(0), 1)
    first, second = (at.files(session)[0] for _ in range(2))
    assert first.is_file()
    os.utime(first.parent, (0, 0))
    at.files(session)
    assert not first.exists()
    assert second.is_file()


def test_slices_of_a_map_are_painted_one_after_the_other(tmp_path: Path) -> None:
    spec = DataSpec(1, (4, 5, 3), (1.0, 1.0, 2.0), classes=("air", "nodule"))
    at = Answers(desk(tmp_path, ("label_map",), spec=spec))
    session = at.start()
    assert (session.index, session.label_map is not None) == (1, True)
    for index in (1, 2):
        plane = np.zeros((5, 4), int)
        plane[0, index] = 1
        session = at.turned(session, encoded(plane), index + 1 if index == 1 else 0)
    assert session.label_map is not None
    assert np.argwhere(session.label_map.classes).tolist() == [[1, 4, 1], [2, 4, 2]]
    assert not at.empty(session).label_map.classes.any()  # type: ignore[union-attr]


def test_a_source_is_uploaded_checked_and_made_into_a_reconstruction(tmp_path: Path) -> None:
    model = Drawing(("source",))
    model.reconstructs = True
    at = Answers(Desk(model.eval(), "ab" * 32, tmp_path))
    with pytest.raises(InputError, match="open one first"):
        next(at.make(at.start(), Wishes(0), 1))
    bad, good = tmp_path / "DOE^JANE.png", tmp_path / "DOE^JANE.nii"
    write_png(bad, np.zeros((3, 3)))
    with pytest.raises(InputError) as error:
        at.sourced(at.start(), str(bad))
    assert "DOE" not in str(error.value)
    assert "source.png: a source of (3, 3); expected (8, 6)" in str(error.value)
    write_nifti(good, np.full((8, 6, 1), -1000, np.float32), FLAT.affine().numpy())
    session = at.sourced(at.start(), str(good))
    *_, (session, said) = at.make(session, Wishes(0), 1)
    assert session.looked_at.name == "reconstruction_00000000"
    assert "derived from a patient's image" in said
    assert not list(tmp_path.rglob("*DOE*"))
