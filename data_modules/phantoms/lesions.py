"""Phantom FLAIR brains, every second with lesions, and maps of these: to find what a model of brains did not expect.

    <person>_flair.nii.gz      the brain, 2 mm, in MNI space
    <person>_lesions.nii.gz    1 in lesions, 0 elsewhere; of people without lesions 0 everywhere
    participants.tsv           participant_id, age, sex, lesion (0 or 1), lesion_ml

Brains are those of UK Biobank's phantoms. A lesion is a ball of several millimetres in the white matter. Half of the
people with lesions have bright ones, brighter than any tissue, as most are in FLAIR; half have ones that look like grey
matter, which no threshold tells. Read by `FolderDataModule` (configs/anomalies/flair.yaml).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import delayed

from data_modules.parallel import in_parallel
from data_modules.phantoms.heads import scanned
from data_modules.phantoms.tissues import FLAIR, GREY, Anatomy, lesions, registered
from data_modules.phantoms.ukbiobank import MAX_SUBJECTS, Participant, participants
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs, as_csv, write_atomically
from lit_medgen.images.nifti import write_nifti
from lit_medgen.seeds import mix

TABLE = "participants.tsv"
VISIT = 2
MIN_SHARE = 0.5
"""Share of a voxel that is lesion from which its map says so."""
RADII_MM = (4.5, 8.0)
MAX_LESIONS = 4
BRIGHT, ISOINTENSE = 1.0, float(np.interp(GREY, *FLAIR))
"""FLAIR values of lesions: brighter than any tissue, or those of grey matter."""


def write_lesions(out: str, num_subjects: int = 64, seed: int = 0) -> None:
    """Phantom FLAIR brains, every second with lesions, with maps of these and a table.

    Args:
        out: folder to write to.
        num_subjects: people, one scan each.
        seed: another seed is another cohort.
    """
    if not 1 <= num_subjects <= MAX_SUBJECTS:
        raise InputError(f"phantom: --num_subjects is {num_subjects}; give 1 to {MAX_SUBJECTS}.")
    root = Path(out)
    outputs = Outputs(root, "phantom-lesions", [TABLE, "*_flair.nii.gz", "*_lesions.nii.gz"])
    outputs.claim()
    outputs.clear()
    everybody = participants(num_subjects, seed)
    jobs = (delayed(_write_person)(root, person) for person in everybody)
    rows = list(in_parallel(jobs, num_subjects, "phantom"))
    write_atomically(root / TABLE, as_csv(rows, list(rows[0])).replace(",", "\t"))
    outputs.end()
    print(f"{num_subjects} phantom scans in {root}, {sum(row['lesion'] == '1' for row in rows)} with lesions")


def _write_person(root: Path, person: Participant) -> dict[str, str]:
    """Writes the scan and the map of a person; returns the row of the table."""
    random = np.random.default_rng(mix("lesions", person.seed))
    ill, bright = person.number % 2 == 1, person.number % 4 == 1
    balls = lesions(int(random.integers(1, MAX_LESIONS + 1)) if ill else 0, random)
    balls[:, 3] = random.uniform(*RADII_MM, len(balls))
    mni = registered(replace(person.build(VISIT), lesions=balls))
    image = scanned(_flair(mni, BRIGHT if bright else ISOINTENSE), np.random.default_rng(mix("FLAIR", person.seed)))
    marked = mni.lesions > MIN_SHARE
    for name, voxels in (("flair", (image * 1000).astype(np.int16)), ("lesions", marked.astype(np.uint8))):
        write_nifti(root / f"{person.eid}_{name}.nii.gz", voxels, mni.affine, "PHANTOM lit_medgen")
    return {
        "participant_id": person.eid,
        "age": f"{person.age(VISIT):.1f}",
        "sex": "M" if person.male else "F",
        "lesion": str(int(ill)),
        "lesion_ml": f"{marked.sum() * abs(np.linalg.det(mni.affine[:3, :3])) / 1000:.3f}",
    }


def _flair(anatomy: Anatomy, value: float) -> np.ndarray:
    """FLAIR without noise and bias, x y z in [0, 1], whose lesions have this value."""
    healthy = np.interp(anatomy.values, *FLAIR)
    return healthy + anatomy.lesions * (value - healthy)
