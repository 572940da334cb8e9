"""Reader studies: quartets of real and synthetic images as one page that works offline, and the key to them.

    page.html    what readers get: images alone, in an order that tells nothing; answers are saved as a CSV file
    key.csv      which image is what; as private as the scans, and not for readers

A quartet has one to three synthetic images, so that three answers do not tell the fourth; over the study half of all
images are. `lit_medgen.evaluation.readers` scores the answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from lit_medgen.batch import Images
from lit_medgen.errors import InputError
from lit_medgen.evaluation.pictures import as_bytes
from lit_medgen.files import as_csv, write_atomically
from lit_medgen.images.png import as_png

SIZE = 4
FOLDER, PAGE, KEY = "readers", "page.html", "key.csv"
FILES = (f"{FOLDER}/{PAGE}", f"{FOLDER}/{KEY}")
COLUMNS = ("study", "quartet", "place", "synthetic", "image")


@dataclass(frozen=True)
class Shown:
    """An image in its place.

    Attributes:
        synthetic: whether a model made it.
        index: its number among the images of its kind.
    """

    synthetic: bool
    index: int


def chosen(num: int, num_real: int, num_synthetic: int, seed: int = 0) -> list[list[Shown]]:
    """`num` quartets, in random order: a third each of one, two and three synthetic images, no image twice.

    Raises:
        InputError: if there are too few images of a kind.
    """
    random = np.random.default_rng(seed)
    # Thirds of 1 and 3 are equally many, so that half of all images are synthetic whatever num is.
    counts = [1, 3] * (num // 3)
    counts += [2] * (num - len(counts))
    needed = {True: sum(counts), False: SIZE * num - sum(counts)}
    for synthetic, there in ((True, num_synthetic), (False, num_real)):
        if needed[synthetic] > there:
            kind = "samples" if synthetic else "images of test people"
            raise InputError(
                f"--quartets is {num}, of which {needed[synthetic]} images are {kind}, but there are {there}; give "
                f"{num * there // needed[synthetic]}" + (", or a greater --num." if synthetic else ".")
            )
    left = {kind: iter(random.permutation(there)) for kind, there in ((True, num_synthetic), (False, num_real))}
    quartets = []
    for count in random.permutation(counts):
        kinds = random.permutation([True] * count + [False] * (SIZE - count))
        quartets.append([Shown(bool(kind), int(next(left[bool(kind)]))) for kind in kinds])
    return quartets


def write_study(out: Path, quartets: Sequence[Sequence[Shown]], samples: Images, real: Images, colour: bool) -> None:
    """Writes page and key of the quartets into a folder.

    Args:
        out: the folder.
        quartets: which images, as `chosen` gives them.
        samples: n c *s in [-1, 1]; keys are names of their files.
        real: m c *s in [-1, 1].
        colour: whether three channels are red, green and blue.
    """
    shown = [[_png((samples if one.synthetic else real), one.index, colour) for one in four] for four in quartets]
    study = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
    template = files("lit_medgen.evaluation").joinpath("reader_page.html").read_text("utf-8")
    content = json.dumps({"id": study, "quartets": shown})  # hexadecimal and base64: nothing that HTML would read
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PAGE, Template(template).substitute(study=content))
    rows = [
        {
            "study": study,
            "quartet": number,
            "place": place,
            "synthetic": int(one.synthetic),
            "image": (samples if one.synthetic else real).keys[one.index],
        }
        for number, four in enumerate(quartets, 1)
        for place, one in enumerate(four, 1)
    ]
    write_atomically(out / KEY, as_csv(rows, COLUMNS))


def _png(images: Images, index: int, colour: bool) -> str:
    """One image as PNG in base64, with 8 bits and no word about it; of a volume its three middle planes."""
    return base64.b64encode(as_png(as_bytes(images.read([index]), colour)[0])).decode()
