"""Phantom heads: the MNI152 template, deformed at random, written as a LONI download of ADNI.

Each person is the template (averaged real anatomy, carried by nilearn) under a smooth random deformation of a
few millimetres, with a head size by sex and ventricles that grow with age; each scan adds its own bias field and
noise. True covariates stand in the collection CSV, true ventricle volumes in `phantom_truth.csv` beside it.
"""

from __future__ import annotations

import csv
import datetime
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from joblib import delayed
from scipy import ndimage

from data_modules.parallel import in_parallel
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs
from lit_medgen.images.nifti import write_nifti
from lit_medgen.seeds import mix

SPACING_MM = 2
MAX_SUBJECTS = 9000  # people are told apart by four digits
DESCRIPTION = "MPR; GradWarp; B1 Correction; N3; Scaled"
FOLDER = "MPR__GradWarp__B1_Correction__N3__Scaled"


@dataclass(frozen=True)
class Template:
    """The MNI152 brain on a 2 mm grid."""

    voxels: np.ndarray  # x y z in [0, 1], skull-stripped
    affine: np.ndarray  # 4 4, mm
    ventricles: np.ndarray  # x y z, mask as float in [0, 1]
    distance_mm: np.ndarray  # x y z, to the ventricles
    inwards: np.ndarray  # 3 x y z, unit vectors towards the ventricles, smooth


@lru_cache(maxsize=1)
def template() -> Template:
    """Loads the template and finds its lateral ventricles: dark and connected, in their box of MNI space."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=SPACING_MM)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    voxels /= voxels.max()
    index = np.moveaxis(np.indices(voxels.shape), 0, -1)
    x, y, z = np.moveaxis(index @ image.affine[:3, :3].T + image.affine[:3, 3], -1, 0)
    # The box leaves out the fissure between the hemispheres, which is as dark.
    dark = (voxels < 0.55) & (np.abs(x) < 36) & (y > -46) & (y < 30) & (z > 0) & (z < 28)
    parts, _ = ndimage.label(dark)
    ventricles = parts == np.bincount(parts.flat)[1:].argmax() + 1
    distance = ndimage.distance_transform_edt(~ventricles) * SPACING_MM
    slope = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.5)))
    inwards = -slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-3)
    return Template(voxels, np.asarray(image.affine), ventricles.astype(np.float32), distance, inwards)


@dataclass(frozen=True)
class Person:
    """What stays the same over a phantom person's visits."""

    ptid: str
    sex: str
    age_years: float
    seed: int
    num_visits: int


def people(num: int, seed: int) -> list[Person]:
    """Phantom people of 55 to 90 years; two of five come back, once or twice."""
    random = np.random.default_rng(mix("people", seed))
    rids = random.choice(MAX_SUBJECTS, size=num, replace=False) + 1
    return [
        Person(
            ptid=f"{random.integers(2, 142):03d}_S_{rid:04d}",
            sex=str(random.choice(["F", "M"])),
            age_years=float(random.uniform(55, 90)),
            seed=mix("person", seed, int(rid)),
            num_visits=int(random.choice([1, 2, 3], p=[0.6, 0.25, 0.15])),
        )
        for rid in rids
    ]


def draw(person: Person, age_years: float, scan_seed: int) -> tuple[np.ndarray, float]:
    """Voxels x y z in [0, 1] of one scan, and the true volume of its ventricles in mL."""
    brain = template()
    random = np.random.default_rng(person.seed)
    growth_mm = 0.08 * (age_years - 55) + random.normal(0, 0.5)
    scale = (1.03 if person.sex == "M" else 0.97) * random.normal(1, 0.025, 3)
    source = deformation(growth_mm, scale, random)
    voxels = ndimage.map_coordinates(brain.voxels, source, order=1)
    ventricles_ml = float(ndimage.map_coordinates(brain.ventricles, source, order=1).sum()) * SPACING_MM**3 / 1000
    return scanned(voxels, np.random.default_rng(scan_seed)), ventricles_ml


def deformation(growth_mm: float, scale: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Where in the template each voxel of a head is looked up: 3 x y z, in voxels.

    Args:
        growth_mm: how far the walls of the ventricles have moved outwards.
        scale: 3, size of the head relative to the template along x, y, z.
        random: what makes this head another than everybody else's.
    """
    brain = template()
    wanted = np.indices(brain.voxels.shape).astype(np.float32)
    middle = (np.array(brain.voxels.shape).reshape(3, 1, 1, 1) - 1) / 2
    source: np.ndarray = middle + (wanted - middle) / scale.reshape(3, 1, 1, 1)
    source += np.stack([smooth_field(brain.voxels.shape, 5, random) for _ in range(3)]) * 3.0 / SPACING_MM
    # Near the ventricles, look further inside them: they and what lies around them move outwards.
    # Never further than 1 mm inside, or the view would reach the tissue on their other side.
    shift_mm = np.minimum(growth_mm * np.exp(-brain.distance_mm / 15), brain.distance_mm + 1)
    source += brain.inwards * shift_mm / SPACING_MM
    return source


def scanned(voxels: np.ndarray, random: np.random.Generator, bias: float = 0.08) -> np.ndarray:
    """A head x y z in [0, 1] as a scanner shows it: with noise, and under a bias field unless `bias` is 0."""
    field = np.exp(bias * smooth_field(voxels.shape, 3, random)) if bias else 1.0
    noisy = voxels * field + (voxels > 0.02) * random.normal(0, 0.015, voxels.shape)
    return noisy.clip(0, None).astype(np.float32)


def smooth_field(shape: tuple[int, ...], knots: int, random: np.random.Generator) -> np.ndarray:
    """A smooth random field of unit variance at its knots: x y z."""
    field = random.normal(size=(knots,) * len(shape))
    for length in shape:  # a spline is separable: one small matrix for each axis, and the next axis comes first
        field = np.tensordot(field, spline(knots, length), axes=(0, 1))
    return field.astype(np.float32)


@lru_cache
def spline(knots: int, length: int) -> np.ndarray:
    """Weights of the knots of a cubic spline at every point: length knots."""
    return ndimage.zoom(np.eye(knots), (length / knots, 1), order=3, mode="nearest", grid_mode=True)


def write_adni(out: str, num_subjects: int = 64, seed: int = 0) -> None:
    """Phantom brains as a LONI download of ADNI, with the collection CSV.

    Args:
        out: folder to write to.
        num_subjects: people; some have several visits.
        seed: another seed is another cohort.
    """
    if not 1 <= num_subjects <= MAX_SUBJECTS:
        raise InputError(f"phantom: --num_subjects is {num_subjects}; give 1 to {MAX_SUBJECTS}.")
    root = Path(out)
    outputs = Outputs(root, "phantom-adni", ["ADNI/**/*", "ADNI_phantoms.csv", "phantom_truth.csv"])
    outputs.claim()
    outputs.clear()
    jobs = (delayed(_write_person)(root, person, number) for number, person in enumerate(people(num_subjects, seed)))
    rows = [row for person_rows in in_parallel(jobs, num_subjects, "phantom") for row in person_rows]
    _write_csv(root / "ADNI_phantoms.csv", [collection for collection, _ in rows])
    _write_csv(root / "phantom_truth.csv", [truth for _, truth in rows])
    outputs.end()
    print(f"{len(rows)} phantom scans of {num_subjects} people in {root}")


def _write_person(root: Path, person: Person, number: int) -> list[tuple[dict[str, str], dict[str, str]]]:
    rows = []
    for visit in range(person.num_visits):
        age = person.age_years + visit
        image_id = f"{40000 + 10 * number + visit}"
        date = datetime.date(2006, 1, 1) + datetime.timedelta(days=7 * (number % 50) + 365 * visit)
        voxels, ventricles_ml = draw(person, age, mix("scan", person.seed, visit))
        folder = root / "ADNI" / person.ptid / FOLDER / f"{date:%Y-%m-%d}_08_00_00.0" / f"I{image_id}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"ADNI_{person.ptid}_MR_{FOLDER}_Br_{date:%Y%m%d}080000000_S{20000 + number}_I{image_id}.nii"
        write_nifti(folder / name, (voxels * 1000).astype(np.int16), template().affine, "PHANTOM lit_medgen")
        group = "CN" if ventricles_ml < 25 else "MCI" if ventricles_ml < 35 else "AD"
        collection = {
            "Image Data ID": f"I{image_id}",
            "Subject": person.ptid,
            "Group": group,
            "Sex": person.sex,
            "Age": f"{age:.0f}",
            "Visit": "sc" if visit == 0 else f"m{12 * visit:02d}",
            "Modality": "MRI",
            "Description": DESCRIPTION,
            "Type": "Processed",
            "Acq Date": f"{date.month}/{date.day}/{date.year}",
            "Format": "NiFTI",
            "Downloaded": "",
        }
        truth = {"Image Data ID": f"I{image_id}", "age_years": f"{age:.2f}", "ventricles_ml": f"{ventricles_ml:.2f}"}
        rows.append((collection, truth))
    return rows


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
