"""Phantom brains as UK Biobank ships them: bulk zips of T1 (field 20252) and T2 FLAIR (20253), and a table.

    <eid>_20252_<instance>_0.zip   T1/T1_brain_to_MNI.nii.gz, T1/T1_unbiased_brain.nii.gz, T1/T1.json; of a scan that
                                   failed quality control T1/unusable/T1_orig_defaced.nii.gz alone
    <eid>_20253_<instance>_0.zip   T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz on the grid of T1_unbiased_brain,
                                   T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz, T2_FLAIR/T2_FLAIR.json
    ukb.csv                        a row for each person (some were never scanned), columns named as by ukbconv
    withdrawals.txt                the id of one person who withdrew after the zips and the table were made

Instance 2 is the first imaging visit, 3 the second, of every fourth person. One scan in twelve is unusable; one person
in twelve has no FLAIR. Grids have 2 mm, not 1 mm; registration to MNI space takes out the size of the head and nothing
else, where UK Biobank's warps the whole brain. The volumes in the table are those of the drawn tissues.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from joblib import delayed

from data_modules.parallel import in_parallel
from data_modules.phantoms.heads import scanned
from data_modules.phantoms.tissues import Anatomy, Build, anatomies, lesions
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs, as_csv, write_atomically
from lit_medgen.images.nifti import nifti_bytes
from lit_medgen.seeds import mix

T1, FLAIR = 20252, 20253
"""Bulk fields."""
INSTANCES = (2, 3)
"""Of the imaging visits."""
MAX_SUBJECTS = 9000
TABLE, WITHDRAWALS = "ukb.csv", "withdrawals.txt"
VOLUMES = {
    25003: ("ventricles", True),
    25004: ("ventricles", False),
    25005: ("grey", True),
    25006: ("grey", False),
    25007: ("white", True),
    25008: ("white", False),
    25009: ("brain", True),
    25010: ("brain", False),
    25781: ("lesions", False),
}
"""Field -> the tissue whose volume it is (mm3), and whether that is normalised for head size (field 25000)."""
FIXED, VISITED = (31, 34, 21022), (53, 54, 21003, 25000, *VOLUMES)
"""Fields of a person, and of a visit; 31 sex, 34 year of birth, 53 date, 54 centre, 21003 and 21022 ages."""
SIDECARS = {
    "T1": {"Manufacturer": "phantom", "RepetitionTime": 2.0, "EchoTime": 0.00201, "InversionTime": 0.88},
    "T2_FLAIR": {"Manufacturer": "phantom", "RepetitionTime": 5.0, "EchoTime": 0.395, "InversionTime": 1.8},
}


@dataclass(frozen=True)
class Participant:
    """What stays the same over the visits of a person, who is the `number`-th of the cohort."""

    number: int
    eid: str
    male: bool
    age_years: float  # at instance 2
    first_visit: datetime.date
    seed: int

    @property
    def instances(self) -> tuple[int, ...]:
        """The visits with a scan, usable or not."""
        return INSTANCES if self.number % 4 == 3 else INSTANCES[:1]

    def usable(self, instance: int) -> bool:
        """Whether the T1 of a visit passed quality control."""
        return not (self.number % 12 == 5 and instance == 2) and not (self.number % 24 == 23 and instance == 3)

    @property
    def has_flair(self) -> bool:
        """Whether FLAIR was acquired."""
        return self.number % 12 != 4

    def age(self, instance: int) -> float:
        """In years at a visit; the second one is 2 to 3 years after the first."""
        return self.age_years + (2 + self.seed % 97 / 97 if instance == 3 else 0)

    def date(self, instance: int) -> datetime.date:
        """The day of a visit: instance 2 or 3."""
        return self.first_visit + datetime.timedelta(days=round(365.25 * (self.age(instance) - self.age_years)))

    def build(self, instance: int) -> Build:
        """The head at a visit: ventricles, atrophy and hyperintensities grow with age, each faster in some people."""
        random, aged = np.random.default_rng(self.seed), self.age(instance) - 44
        size = (0.945 if self.male else 0.91) * random.normal(1, 0.02)
        # Men's heads are longer and narrower, so that the sex can be seen in MNI space too.
        form = np.array([0.98, 1.03, 0.99] if self.male else [1.02, 0.97, 1.01]) * random.normal(1, 0.012, 3)
        growth_mm = float(np.clip(0.2 + 0.06 * aged + random.normal(0, 0.6), -0.5, 3.2))
        atrophy = float(np.clip(0.002 * aged + random.normal(0, 0.03), -0.06, 0.14))
        num = round(min(float(random.lognormal(0.7, 0.5)) * math.exp(aged / 17), 60))
        deformed = mix("deformation", self.seed)
        return Build(deformed, form, float(size), growth_mm, atrophy, lesions(num, random))


def participants(num: int, seed: int) -> list[Participant]:
    """Phantom participants of 45 to 80 years at their first imaging visit."""
    random = np.random.default_rng(mix("ukbiobank", seed))
    eids = random.choice(np.arange(1_000_000, 6_000_000), size=num, replace=False)
    return [
        Participant(
            number,
            str(eid),
            male=bool(random.integers(2)),
            age_years=float(random.uniform(45, 80)),
            first_visit=datetime.date(2014, 5, 1) + datetime.timedelta(days=int(random.integers(2500))),
            seed=mix("participant", seed, int(eid)),
        )
        for number, eid in enumerate(eids)
    ]


def write_ukbiobank(out: str, num_subjects: int = 64, seed: int = 0) -> None:
    """Phantom brains as bulk zips of UK Biobank, T1 and FLAIR, with a table and a list of withdrawals.

    Args:
        out: folder to write to.
        num_subjects: people with scans; every fourth was scanned twice.
        seed: another seed is another cohort.
    """
    if not 1 <= num_subjects <= MAX_SUBJECTS:
        raise InputError(f"phantom: --num_subjects is {num_subjects}; give 1 to {MAX_SUBJECTS}.")
    root = Path(out)
    scanned_people, others = _cohort(num_subjects, seed)
    names = [f"{person.eid}_{field}_{k}_0.zip" for person in scanned_people for field, k in _zips(person)]
    outputs = Outputs(root, "phantom-ukbiobank", [TABLE, WITHDRAWALS, *names])
    outputs.claim()
    outputs.clear()
    jobs = (delayed(_write_person)(root, person) for person in scanned_people)
    rows = list(in_parallel(jobs, num_subjects, "phantom"))
    rows += [_row(person, {}) for person in others]
    write_atomically(root / TABLE, as_csv(sorted(rows, key=lambda row: row["eid"]), list(_columns())))
    gone = [scanned_people[1].eid] if num_subjects > 1 else []  # of one person nobody would be left
    write_atomically(root / WITHDRAWALS, "".join(f"{eid}\n" for eid in gone))
    outputs.end()
    num_scans = sum(len(person.instances) for person in scanned_people)
    print(f"{num_scans} phantom scans of {num_subjects} people in {root}")


def _cohort(num: int, seed: int) -> tuple[list[Participant], list[Participant]]:
    """Those who were scanned, and some who were not but stand in the table."""
    everybody = participants(num + 1 + num // 8, seed)
    return everybody[:num], everybody[num:]


def _zips(person: Participant) -> list[tuple[int, int]]:
    """Field and instance of each zip of a person."""
    fields = (T1, FLAIR) if person.has_flair else (T1,)
    return [(field, instance) for instance in person.instances for field in fields]


def _write_person(root: Path, person: Participant) -> dict[str, str]:
    """Writes the zips of a person; returns the row of the table."""
    drawn = {instance: anatomies(person.build(instance)) for instance in person.instances}
    for field, instance in _zips(person):
        content = (_t1_files if field == T1 else _flair_files)(person, instance, *drawn[instance])
        write_atomically(root / f"{person.eid}_{field}_{instance}_0.zip", _zipped(content))
    return _row(person, {instance: native for instance, (native, _) in drawn.items()})


def _t1_files(person: Participant, instance: int, native: Anatomy, mni: Anatomy) -> dict[str, bytes]:
    """Member -> content of the zip of a T1."""
    random = partial(np.random.default_rng, mix("T1", person.seed, instance))
    if not person.usable(instance):
        # Blurred, as by motion.
        moved = sum(np.roll(native.t1(), shift, axis=1) for shift in (-6, -3, 0, 3, 6)) / 5
        return {"T1/unusable/T1_orig_defaced.nii.gz": _image(scanned(np.asarray(moved), random()), native)}
    return {
        "T1/T1.json": _sidecar("T1"),
        "T1/T1_brain_to_MNI.nii.gz": _image(scanned(mni.t1(), random()), mni),
        "T1/T1_unbiased_brain.nii.gz": _image(scanned(native.t1(), random(), bias=0), native),
    }


def _flair_files(person: Participant, instance: int, native: Anatomy, mni: Anatomy) -> dict[str, bytes]:
    """Member -> content of the zip of a FLAIR."""
    random = partial(np.random.default_rng, mix("FLAIR", person.seed, instance))
    return {
        "T2_FLAIR/T2_FLAIR.json": _sidecar("T2_FLAIR"),
        "T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz": _image(scanned(native.flair(), random(), bias=0), native),
        "T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz": _image(scanned(mni.flair(), random()), mni),
    }


def _image(voxels: np.ndarray, anatomy: Anatomy) -> bytes:
    """A compressed NIfTI with x from right to left, as UK Biobank's are."""
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = voxels.shape[0] - 1
    stored = (voxels[::-1] * 1000).astype(np.int16)
    return nifti_bytes(stored, anatomy.affine @ flipped, "PHANTOM lit_medgen", compressed=True)


def _sidecar(modality: str) -> bytes:
    return json.dumps({"MagneticFieldStrength": 3, "Phantom": "lit_medgen", **SIDECARS[modality]}, indent=1).encode()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    """An archive of these files, the same for the same content."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2015, 1, 1, 0, 0, 0)), data)
    return content.getvalue()


def _columns() -> dict[str, tuple[int, int]]:
    """Name of each column of the table, after the person's -> field and instance."""
    cells = [(field, 0) for field in FIXED] + [(field, instance) for field in VISITED for instance in INSTANCES]
    return {"eid": (0, 0)} | {f"{field}-{instance}.0": (field, instance) for field, instance in cells}


def _row(person: Participant, natives: Mapping[int, Anatomy]) -> dict[str, str]:
    """The row of a person; volumes are measured in scans that passed quality control."""
    recruited = person.age_years - 8
    born = person.first_visit.year - int(person.age_years)
    row = {"eid": person.eid, "31-0.0": str(int(person.male)), "34-0.0": str(born), "21022-0.0": str(int(recruited))}
    for instance, native in natives.items():
        centre = 11025 + person.number % 3
        cells = {53: f"{person.date(instance)}", 54: str(centre), 21003: str(int(person.age(instance)))}
        if person.usable(instance):
            scaling = person.build(instance).size ** -3
            volumes = native.volumes_mm3()
            volumes["brain"] = volumes["grey"] + volumes["white"]
            cells[25000] = f"{scaling:.6f}"
            for field, (tissue, normalised) in VOLUMES.items():
                cells[field] = f"{volumes[tissue] * (scaling if normalised else 1):.2f}"
        row |= {f"{field}-{instance}.0": cell for field, cell in cells.items()}
    return row
