"""Phantom retinas: colour pictures of the back of the eye (RGB PNG), with a table; to try images of three channels.

    <person>.png       red, green and blue, 8 bits; black around the round field of view
    participants.tsv   participant_id, eye (L or R), disc_px: diameter of the optic disc, pixels

The fundus is orange-red, the optic disc yellow on the nasal side, vessels dark red arcs from the disc, and the macula a
dark spot on the other side. Read by `FolderDataModule` with `preprocessing.channels` [red, green, blue].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_modules.records import table
from lit_medgen.errors import InputError
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.images.png import write_png
from lit_medgen.seeds import mix

TABLE = "participants.tsv"
MAX_SUBJECTS = 9999
SIDE = 64
"""Pixels of a side."""
FUNDUS, DISC, VESSEL, MACULA = (
    np.array(colour) / 255 for colour in ((196, 92, 40), (246, 214, 130), (120, 24, 20), (140, 52, 22))
)
"""Colours: red, green and blue."""
NUM_VESSELS = 3
"""Pairs of vessels, above and below the line from disc to macula."""


def write_retinas(out: str, num_subjects: int = 64, seed: int = 0) -> None:
    """Phantom colour pictures of retinas, and a table.

    Args:
        out: folder to write to.
        num_subjects: people, one eye each.
        seed: another seed is another cohort.
    """
    if not 1 <= num_subjects <= MAX_SUBJECTS:
        raise InputError(f"phantom: --num_subjects is {num_subjects}; give 1 to {MAX_SUBJECTS}.")
    root = Path(out)
    outputs = Outputs(root, "phantom-retinas", [TABLE, "*.png"])
    outputs.claim()
    outputs.clear()
    rows = []
    for person in range(num_subjects):
        name, random = f"eye-{person:04d}", np.random.default_rng(mix("retina", seed, person))
        is_left, disc_px = bool(random.integers(2)), float(random.uniform(7, 11))
        write_png(root / f"{name}.png", _retina(is_left, disc_px, random), "PHANTOM lit_medgen")
        rows.append({"participant_id": name, "eye": "L" if is_left else "R", "disc_px": f"{disc_px:.1f}"})
    write_atomically(root / TABLE, table(rows, list(rows[0])).replace(",", "\t"))
    outputs.end()
    print(f"{num_subjects} phantom retinas in {root}")


def _retina(is_left: bool, disc_px: float, random: np.random.Generator) -> np.ndarray:
    """Columns rows colours in [0, 1]."""
    x, y = np.meshgrid(np.arange(SIDE) - SIDE / 2 + 0.5, np.arange(SIDE) - SIDE / 2 + 0.5, indexing="ij")
    nasal = -1 if is_left else 1  # of the patient's left eye the nose is on the left of the picture
    centre = np.array([nasal * random.uniform(11, 15), random.uniform(-2, 2)])
    radius = np.hypot(x, y)
    image = FUNDUS * random.uniform(0.85, 1.1) * (1.08 - 0.4 * (radius / (SIDE / 2)) ** 2)[..., None]
    dark = np.exp(-((x + nasal * random.uniform(6, 9)) ** 2 + (y - centre[1]) ** 2) / 18)
    image = _over(image, MACULA, 0.8 * dark)
    for bend in random.uniform(0.35, 1.1, NUM_VESSELS):
        for side in (-1, 1):
            along = nasal * (centre[0] - x)  # from the disc towards the macula and beyond
            height = side * bend * 3.2 * np.sqrt(along.clip(0)) + random.normal(0, 0.4)
            width = 0.5 + 0.5 * np.exp(-along.clip(0) / 20)
            line = np.exp(-(((y - centre[1] - height) / width) ** 2)) * (along > 0)
            image = _over(image, VESSEL, 0.85 * line)
    away = np.hypot(x - centre[0], y - centre[1])
    image = _over(image, DISC, 1 / (1 + np.exp(2 * (away - disc_px / 2))))
    image = image + random.normal(0, 0.012, image.shape)
    return np.asarray((image * (radius < SIDE / 2 - 1.5)[..., None]).clip(0, 1))


def _over(image: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A colour laid over an image in these shares."""
    covered: np.ndarray = image + (colour - image) * share[..., None]
    return covered
