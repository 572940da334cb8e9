"""The XML message of LIDC-IDRI about a series: its readers' outlines and ratings, as TCIA delivers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from data_modules.phantoms.lidc_database import Annotation, Scan

NAMESPACE = "http://www.nih.gov"


def message_of(
    scan: Scan, sessions: Sequence[Sequence[Annotation]], uid: Callable[..., str], comment: str
) -> ElementTree.Element:
    """The message of one CT series.

    Args:
        scan: the series; outlines lie in its slices.
        sessions: what each reader outlined.
        uid: gives the message's UID for ("message",), and those of slices for ("slice", number).
        comment: where the file comes from.
    """
    message = ElementTree.Element("LidcReadMessage", xmlns=NAMESPACE, uid=f"{uid('message')}.0")
    header = _child(message, "ResponseHeader")
    for name, text in (
        ("Version", "1.7"),
        ("TaskDescription", "Second unblinded read"),
        ("SeriesInstanceUid", scan.series_uid),
        ("StudyInstanceUID", scan.study_uid),
        ("DateService", "2000-01-01"),
        ("ResponseDescription", "1 - Reading complete"),
        ("ResponseComments", comment),
    ):
        _child(header, name, text)
    for outlined in sessions:
        session = _child(message, "readingSession")
        _child(session, "annotationVersion", "3.12")
        _child(session, "servicingRadiologistID", "anonymous")
        for annotation in outlined:
            _add_nodule(session, scan, annotation, uid)
    return message


def film_message_of(study_uid: str, series_uid: str, num_readers: int, comment: str) -> ElementTree.Element:
    """The message of a chest film, in which nobody outlines anything."""
    message = ElementTree.Element("IdriReadMessage", xmlns=NAMESPACE)
    header = _child(message, "ResponseHeader")
    _child(header, "SeriesInstanceUID", series_uid)
    _child(header, "StudyInstanceUID", study_uid)
    _child(header, "ResponseComments", comment)
    for _ in range(num_readers):
        _child(_child(message, "CXRreadingSession"), "servicingRadiologistID", "anonymous")
    return message


def add_mark(
    session: ElementTree.Element, kind: str, number: int, z_mm: float, slice_uid: str, point: tuple[int, int]
) -> None:
    """Adds a point (column, row) that is a nodule below 3 mm ("unblindedReadNodule") or no nodule ("nonNodule")."""
    mark = _child(session, kind)
    if kind == "nonNodule":
        _child(mark, "nonNoduleID", str(number))
        _add_slice(mark, z_mm, slice_uid)
        _add_point(mark, "locus", *point)
    else:
        _child(mark, "noduleID", str(number))
        _add_roi(mark, z_mm, slice_uid, [point])


def write_xml(path: Path, message: ElementTree.Element) -> None:
    """Writes a message, one element a line."""
    ElementTree.indent(message, " ")
    ElementTree.ElementTree(message).write(path, encoding="UTF-8", xml_declaration=True)


def _add_nodule(session: ElementTree.Element, scan: Scan, annotation: Annotation, uid: Callable[..., str]) -> None:
    nodule = _child(session, "unblindedReadNodule")
    _child(nodule, "noduleID", annotation.nodule_id)
    ratings = _child(nodule, "characteristics")
    for name, value in annotation.ratings.items():
        _child(ratings, name, str(value))
    for contour in annotation.contours:
        index = scan.slice_of(contour)
        _add_roi(nodule, scan.z_mm[index], uid("slice", index), contour.points, contour.inclusion)


def _add_roi(
    nodule: ElementTree.Element, z_mm: float, slice_uid: str, points: Iterable[Sequence[int]], inclusion: bool = True
) -> None:
    roi = _child(nodule, "roi")
    _add_slice(roi, z_mm, slice_uid)
    _child(roi, "inclusion", "TRUE" if inclusion else "FALSE")
    for x, y in points:
        _add_point(roi, "edgeMap", x, y)


def _add_slice(parent: ElementTree.Element, z_mm: float, slice_uid: str) -> None:
    _child(parent, "imageZposition", str(z_mm))
    _child(parent, "imageSOP_UID", slice_uid)


def _add_point(parent: ElementTree.Element, name: str, x: int, y: int) -> None:
    point = _child(parent, name)
    _child(point, "xCoord", str(x))
    _child(point, "yCoord", str(y))


def _child(parent: ElementTree.Element, name: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, name)
    child.text = text
    return child
