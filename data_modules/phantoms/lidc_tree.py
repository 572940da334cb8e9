"""Phantom chests written as a TCIA download of LIDC-IDRI, with the readers' XML files and `metadata.csv`.

A phantom is a scan of the database: its UIDs, spacing, slice positions and annotations are real, its images are
drawn around the outlines (`chests.py`). True lung masks stand in `truth/`, volumes in `phantom_truth.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from joblib import delayed
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation

from data_modules.parallel import in_parallel
from data_modules.phantoms.chests import INTERCEPT, PADDING, SIZE, Chest, draw, make
from data_modules.phantoms.lidc_database import Annotation, Scan, read_scans
from data_modules.phantoms.lidc_xml import add_mark, film_message_of, message_of, write_xml
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs, as_csv
from lit_medgen.images.dicom_writer import Series, slice_dataset, write_slice
from lit_medgen.seeds import mix

COLLECTION = "LIDC-IDRI"
COMMENT = "SYNTHETIC phantom drawn around real LIDC-IDRI outlines; not acquired from a patient, not for diagnosis."
AXIAL = (1, 0, 0, 0, 1, 0)
READERS = 4
FEW_SLICES = 64  # are drawn before other processes have started
METADATA = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,Study Date,"
    "Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,File Size,File Location,"
    "Download Timestamp"
)


@dataclass(frozen=True)
class Subject:
    """One phantom and where its files go."""

    scan: Scan  # the real one that lends its annotations
    indices: range  # slices written, from the feet up
    seed: int  # of the cohort
    number: int  # of the subject in the cohort

    @property
    def layout(self) -> str:
        """The download's way to name folders; the two take turns."""
        return "classic" if self.number % 2 else "descriptive"

    @property
    def has_film(self) -> bool:
        """Whether a chest film was downloaded too: of every third, and the first."""
        return (mix("film", self.seed) + self.number) % 3 == 0 or self.number == 0

    def folder(self, study_uid: str, series_uid: str, series_number: int) -> Path:
        """A series' folder below the download's."""
        patient = Path(COLLECTION) / self.scan.patient
        if self.layout == "classic":
            return patient / study_uid / series_uid
        return patient / f"01-01-2000-NA-NA-{study_uid[-5:]}" / f"{series_number}.000000-NA-{series_uid[-5:]}"

    def uid(self, *parts: int | str) -> str:
        """A UID of our own, the same for the same seed and parts."""
        return f"2.25.{mix('uid', self.seed, self.scan.series_uid, *parts)}"


def write_lidc(out: str, num_subjects: int = 8, seed: int = 0, num_slices: int | None = None) -> None:
    """Phantom chests as a TCIA download of LIDC-IDRI, with XML, metadata.csv and the true lungs.

    Args:
        out: folder to write to.
        num_subjects: people, a scan each.
        seed: another seed is another cohort.
        num_slices: of each scan only so many, about its largest nodule; all of them unless given.
    """
    if num_subjects < 1:
        raise InputError(f"phantom: --num_subjects is {num_subjects}; give 1 or more.")
    if num_slices is not None and num_slices < 1:
        raise InputError(f"phantom: --num_slices is {num_slices}; give 1 or more, or leave it out for whole scans.")
    scans = read_scans(num_subjects, seed)
    root = Path(out)
    outputs = Outputs(root, "phantom-lidc", [f"{COLLECTION}/**/*", "truth/*.npz", "metadata.csv", "phantom_truth.csv"])
    outputs.claim()
    outputs.clear()
    (root / "truth").mkdir(exist_ok=True)
    subjects = [Subject(scan, _window(scan, num_slices), seed, number) for number, scan in enumerate(scans)]
    total = sum(len(subject.indices) for subject in subjects)
    num_jobs = -1 if total > FEW_SLICES else 1
    jobs = (delayed(_write_subject)(root, subject) for subject in subjects)
    rows = list(in_parallel(jobs, len(subjects), "phantom", num_jobs))
    metadata = as_csv((row for metadata, _ in rows for row in metadata), METADATA.split(","))
    (root / "metadata.csv").write_text(metadata, newline="")
    (root / "phantom_truth.csv").write_text(as_csv((truth for _, truth in rows), list(rows[0][1])), newline="")
    outputs.end()
    print(f"{len(rows)} phantom scans, {total} slices in {root}")


def sessions_of(scan: Scan, indices: range) -> list[list[Annotation]]:
    """The annotations, cut to the slices written, as the sessions of four readers.

    Annotations of one nodule go to different readers as long as there are any.
    """
    sessions: list[list[Annotation]] = [[] for _ in range(READERS)]
    for nodule in scan.nodules:
        taken = [0] * READERS
        for annotation in nodule:
            overlapping = [sum(annotation.overlaps(other) for other in session) for session in sessions]
            reader = min(range(READERS), key=list(zip(overlapping, taken, map(len, sessions), strict=True)).__getitem__)
            taken[reader] += 1
            kept = tuple(contour for contour in annotation.contours if scan.slice_of(contour) in indices)
            if kept:
                sessions[reader].append(replace(annotation, contours=kept))
    return sessions


def _window(scan: Scan, num_slices: int | None) -> range:
    """The slices to write: all, or some about the middle of the largest nodule."""
    total = len(scan.z_mm)
    if num_slices is None or num_slices >= total:
        return range(total)
    largest = max(scan.annotations, key=lambda annotation: float(np.prod(np.ptp(annotation.box, axis=1) + 1)))
    middle = int(np.abs(np.asarray(scan.z_mm) - largest.box[2].mean()).argmin())
    start = min(max(middle - num_slices // 2, 0), total - num_slices)
    return range(start, start + num_slices)


def _write_subject(root: Path, subject: Subject) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Rows of metadata.csv, and that of phantom_truth.csv."""
    scan, chest = subject.scan, make(subject.scan, subject.seed)
    number = 3_000_000 + mix("series", subject.seed, scan.patient) % 1000
    folder = subject.folder(scan.study_uid, scan.series_uid, number)
    lungs, film = _write_slices(root / folder, subject, chest, number)
    sessions = sessions_of(scan, subject.indices)
    write_xml(root / folder / f"{subject.number + 1:03}.xml", _message(subject, sessions, lungs))
    np.savez_compressed(root / "truth" / f"{scan.patient}.npz", lungs=lungs)
    rows = [_metadata(root, subject, folder, scan.study_uid, scan.series_uid, "CT")]
    if subject.has_film:
        rows.append(_write_film(root, subject, film))
    voxel_ml = scan.spacing_mm**2 * (scan.z_mm[1] - scan.z_mm[0]) / 1000
    truth = {
        "patient": scan.patient,
        "layout": subject.layout,
        "num_slices": str(len(subject.indices)),
        "num_annotations": str(sum(map(len, sessions))),
        "lung_ml": f"{lungs.sum() * voxel_ml:.1f}",
    }
    return rows, truth


def _write_slices(folder: Path, subject: Subject, chest: Chest, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The lungs, slices rows columns, and a view from the front, slices columns, HU."""
    scan, indices = subject.scan, subject.indices
    folder.mkdir(parents=True, exist_ok=True)
    series = Series(
        study_uid=scan.study_uid,
        series_uid=scan.series_uid,
        frame_uid=subject.uid("frame"),
        patient_id=scan.patient,
        kind="ct",
        description="phantom chest",
        number=number,
        date="20000101",
        intercept=INTERCEPT,
        thickness_mm=scan.thickness_mm,
        window=(-1350, 150),
    )
    # LIDC-IDRI is not in order by file name or instance number, and no reader should count on it.
    names = np.random.default_rng(mix("names", subject.seed, scan.patient)).permutation(len(indices)) + 1
    digits = max(2, len(str(len(indices))))
    lungs = np.zeros((len(indices), SIZE, SIZE), dtype=bool)
    film = np.zeros((len(indices), SIZE))
    corner = -(SIZE - 1) / 2 * scan.spacing_mm
    for i, (index, name) in enumerate(zip(indices, names, strict=True)):
        hu, lungs[i] = draw(chest, index)
        film[i] = hu.clip(INTERCEPT).mean(axis=0)
        place, spacing = (corner, corner, scan.z_mm[index]), (scan.spacing_mm, scan.spacing_mm)
        data = slice_dataset(
            series, hu - np.int16(INTERCEPT), place, AXIAL, spacing, int(name), subject.uid("slice", index)
        )
        data.ImageComments = COMMENT
        data.SpacingBetweenSlices = f"{scan.z_mm[1] - scan.z_mm[0]:.6g}"
        if chest.padded:
            data.PixelPaddingValue = PADDING
        write_slice(folder / f"1-{name:0{digits}}.dcm", data)
    return lungs, film


def _write_film(root: Path, subject: Subject, film: np.ndarray) -> dict[str, str]:
    """A chest film in a study of its own, as many patients have; its row of metadata.csv."""
    study, uid = subject.uid("film study"), subject.uid("film series")
    folder = subject.folder(study, uid, 1)
    (root / folder).mkdir(parents=True, exist_ok=True)
    series = Series(
        study_uid=study, series_uid=uid, patient_id=subject.scan.patient, description="phantom film", date="20000101"
    )
    pixels = np.rint(film[::-1, ::2]).astype(np.int16)
    data = slice_dataset(series, pixels, (0, 0, 0), AXIAL, (1, 1), 1, subject.uid("film"))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "FrameOfReferenceUID"):
        delattr(data, name)
    data.SOPClassUID, data.Modality = DigitalXRayImageStorageForPresentation, "DX"
    data.ImageComments = COMMENT
    write_slice(root / folder / "1-1.dcm", data)
    write_xml(root / folder / f"{subject.number + 501:03}.xml", film_message_of(study, uid, READERS, COMMENT))
    return _metadata(root, subject, folder, study, uid, "DX")


def _message(subject: Subject, sessions: list[list[Annotation]], lungs: np.ndarray) -> Element:
    """The XML message of one CT series, with marks besides nodules."""
    message = message_of(subject.scan, sessions, subject.uid, COMMENT)
    random = np.random.default_rng(mix("marks", subject.seed, subject.scan.patient))
    for reader, session in enumerate(message.iter("readingSession"), start=1):
        _add_marks(session, subject, lungs, 1000 * reader, random)
    return message


def _add_marks(
    session: Element, subject: Subject, lungs: np.ndarray, first_id: int, random: np.random.Generator
) -> None:
    """Nodules below 3 mm and other findings, a point each, somewhere in the lungs."""
    kinds = ["unblindedReadNodule"] * int(random.integers(1, 3)) + ["nonNodule"] * int(random.integers(1, 4))
    filled = np.flatnonzero(lungs.any(axis=(1, 2)))
    for number, kind in enumerate(kinds):
        i = int(random.choice(filled))
        y, x = random.choice(np.argwhere(lungs[i]))
        index = subject.indices[i]
        add_mark(session, kind, first_id + number, subject.scan.z_mm[index], subject.uid("slice", index), (x, y))


def _metadata(
    root: Path, subject: Subject, folder: Path, study_uid: str, series_uid: str, modality: str
) -> dict[str, str]:
    files = sorted((root / folder).glob("*.dcm"))
    sop_class = CTImageStorage if modality == "CT" else DigitalXRayImageStorageForPresentation
    values = (
        series_uid,
        COLLECTION,
        "null",
        "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
        subject.scan.patient,
        study_uid,
        "NA",
        "01-01-2000",
        "SYNTHETIC phantom",
        "lit_medgen",
        modality,
        sop_class.name,
        str(sop_class),
        str(len(files)),
        f"{sum(path.stat().st_size for path in files) / 1e6:.2f} MB",
        f"./{folder.as_posix()}",
        "2000-01-01T00:00:00.0",
    )
    return dict(zip(METADATA.split(","), values, strict=True))
