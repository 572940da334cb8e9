"""Phantom radiographs written as ChestX-ray14 lies on Kaggle: folders of PNG, the table of 2020, boxes, official lists.

A subject is a drawn chest (`radiographs.py`) with one image or several, of its age at the time; a large heart stays,
other findings come and go. About every fortieth file is RGBA, as a few of the originals are.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import delayed
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_modules.chestxray_tables import BOX, BOX_FINDING, INDEX, NO_FINDING, ORIGINAL
from data_modules.parallel import in_parallel
from data_modules.phantoms.chest_findings import ACUTE, Finding, cardiomegaly
from data_modules.phantoms.radiographs import Exposure, make_body, take
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs
from lit_medgen.seeds import mix

TABLE, BOXES = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
LISTS = {False: "train_val_list.txt", True: "test_list.txt"}
FOLDERS = ("images_001/images", "images_002/images")
BOXED = {"Consolidation": "", "Infiltration": "Infiltrate"}
"""Label -> how the list of boxes spells it; "": it has no boxes of that."""
MAX_IMAGES = 12
DETECTOR_PX = 2500
"""Pixels along each side of what the detector gave, of which the table tells the size."""
COMMENT = "SYNTHETIC phantom drawn by lit_medgen; not acquired from a patient, not for diagnosis."
FEW = 12  # subjects are drawn before other processes have started


@dataclass(frozen=True)
class Subject:
    """One drawn patient of a cohort."""

    number: int  # from 1
    seed: int  # of the cohort
    num_subjects: int

    @property
    def tested(self) -> bool:
        """Whether the test list has this patient; every fifth, and of two or more at least one."""
        return (self.number + self.seed) % min(5, self.num_subjects) == 0 and self.num_subjects > 1

    @property
    def folder(self) -> str:
        """Where the images lie."""
        return FOLDERS[2 * (self.number - 1) // self.num_subjects]

    def random(self, *parts: int | str) -> np.random.Generator:
        """Random numbers of this patient, the same for the same parts."""
        return np.random.default_rng(mix("chestxray", self.seed, self.number, *parts))


def write_chestxray(out: str, num_subjects: int = 100, seed: int = 0, size: int = 256) -> None:
    """Phantom radiographs with findings as ChestX-ray14: folders of PNG, table, boxes, and the two official lists.

    Args:
        out: folder to write to.
        num_subjects: patients, with 1 to 12 images each.
        seed: another seed is another cohort.
        size: pixels of an image along each side.
    """
    if num_subjects < 1:
        raise InputError(f"phantom: --num_subjects is {num_subjects}; give 1 or more.")
    if not 16 <= size <= 2048:
        raise InputError(f"phantom: --size is {size}; give 16 to 2048.")
    root = Path(out)
    outputs = Outputs(
        root, "phantom-chestxray", [*(f"{folder}/*.png" for folder in FOLDERS), TABLE, BOXES, *LISTS.values()]
    )
    outputs.claim()
    outputs.clear()
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    subjects = [Subject(number, seed, num_subjects) for number in range(1, num_subjects + 1)]
    jobs = (delayed(_write_subject)(root, subject, size) for subject in subjects)
    written = list(in_parallel(jobs, num_subjects, "phantom", -1 if num_subjects > FEW else 1))
    rows = [row for each, _ in written for row in each]
    _write(root / TABLE, HEADER, rows)
    _write(root / BOXES, f"{INDEX},{BOX_FINDING},{','.join(BOX)},,,", [row for _, each in written for row in each])
    for tested, name in LISTS.items():
        names = [row[0] for subject, (each, _) in zip(subjects, written, strict=True) for row in each]
        sides = [subject.tested for subject, (each, _) in zip(subjects, written, strict=True) for _ in each]
        chosen = [name for name, side in zip(names, sides, strict=True) if side == tested]
        (root / name).write_text("".join(f"{each}\n" for each in chosen))
    outputs.end()
    print(f"{len(rows)} phantom radiographs of {num_subjects} people in {root}")


def _write_subject(root: Path, subject: Subject, size: int) -> tuple[list[list[str]], list[list[str]]]:
    """Writes the images of a patient; rows of the table and of the list of boxes."""
    random = subject.random()
    heart = float(random.uniform(1.25, 1.4)) if random.random() < 0.15 else float(random.uniform(0.92, 1.05))
    body = make_body(int(random.integers(2**31)), heart)
    age, sex = int(random.integers(18, 90)), "FM"[int(random.integers(2))]
    rows, boxes = [], []
    for k in range(min(int(random.geometric(0.42)), MAX_IMAGES)):
        random = subject.random("image", k)
        name = f"{subject.number:08}_{k:03}.png"
        exposure = Exposure(
            view="AP" if random.random() < 0.4 else "PA",
            side_mm=float(random.uniform(305, 345)),
            shift_mm=(float(random.uniform(-8, 8)), float(random.uniform(-8, 10))),
            seed=int(random.integers(2**31)),
        )
        findings = [cardiomegaly(heart)] if heart > 1.2 else []
        if random.random() < 0.5:
            chosen = random.choice(list(ACUTE), 1 + int(random.random() < 0.25), replace=False)
            findings += [ACUTE[label](body, random) for label in chosen]
        pixels = take(body, exposure, findings, size)
        _write_image(root / subject.folder / name, pixels, (7 * subject.number + k) % 40 == 7)
        labels = "|".join(sorted(finding.label for finding in findings)) or NO_FINDING
        spacing = f"{exposure.side_mm / DETECTOR_PX:.4f}"
        person = [str(k), str(subject.number), str(age + k // 3), sex, exposure.view]
        rows.append([name, labels, *person, str(DETECTOR_PX), str(DETECTOR_PX), spacing, spacing])
        boxes += [[name, *box] for finding in findings if (box := _box(finding, exposure))]
    return rows, boxes


def _box(finding: Finding, exposure: Exposure) -> list[str]:
    """The finding and x, y, width and height of its outline in 1024 x 1024 pixels; nothing where it cannot be seen."""
    label = BOXED.get(finding.label, finding.label)
    if not label or not len(finding.corners):
        return []
    places, _ = exposure.seen(finding.corners)
    low, high = (places.min(0) * ORIGINAL).clip(0, ORIGINAL), (places.max(0) * ORIGINAL).clip(0, ORIGINAL)
    if (high - low).min() < 1:
        return []
    return [label, *(f"{value:.3f}" for value in (*low, *(high - low)))]


def _write_image(path: Path, pixels: np.ndarray, coloured: bool) -> None:
    texts, content = PngInfo(), io.BytesIO()
    texts.add_text("Description", COMMENT)
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    (image.convert("RGBA") if coloured else image).save(content, format="png", pnginfo=texts)
    path.write_bytes(content.getvalue())


def _write(path: Path, header: str, rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(f"{header}\n{text.getvalue()}", newline="")
