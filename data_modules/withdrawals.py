"""People who are left out, such as those who withdrew: the list of their ids, and the end of what was made of them.

A store notes for which list it was last cleaned (`left_out.json`). When the list is another, everything of the listed
people goes before anything is read: volumes, figures, their lines in all tables, and, since they may hold anybody, all
that was derived from the store (latents, features). Work on others stays.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_modules.records import drop_people, person_hash, write_changed
from data_modules.sources import ANY_NAME, Rejected, Scan
from data_modules.splits import Split, identity
from data_modules.store import StoreAddress
from data_modules.tables import identifier, named
from lit_medgen.errors import InputError, describe
from lit_medgen.files import as_csv, remove_stale
from lit_medgen.output import say
from lit_medgen.people import sum_of

NOTE = "left_out.json"
VOLUMES, FIGURES = "volumes", "figures"
KEY = re.compile(r"[0-9a-f]{16}")
TABLES = ("rejected.csv", "nodules.csv")
"""Tables of a store besides the manifest."""


@dataclass(frozen=True)
class LeftOut:
    """People of a list.

    Attributes:
        ids: as `Scan.person` names them.
    """

    ids: frozenset[str] = frozenset()
    people: frozenset[str] = field(init=False)
    """What stands in a store for them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", frozenset(map(identifier, self.ids)))
        object.__setattr__(self, "people", frozenset(map(person_hash, self.ids)))

    @property
    def digest(self) -> str:
        """Hash of the list, whatever its order; "" if nobody is on it."""
        return hashlib.sha256("\n".join(sorted(self.people)).encode()).hexdigest()[:16] if self.people else ""

    def named_in(self, text: str) -> bool:
        """Whether an id stands in a text, as a path or a cell of a table, as a whole."""
        return any(each in text and re.search(rf"(?<![^\W_]){re.escape(each)}(?![^\W_])", text) for each in self.ids)

    def set_aside(
        self, scans: Sequence[Scan], refused: Sequence[Rejected]
    ) -> tuple[list[Scan], list[Rejected], list[Scan]]:
        """The scans and rejections of all others, and the scans of those who are left out."""
        kept: list[Scan] = []
        theirs: list[Scan] = []
        for scan in scans:
            (theirs if scan.person in self.ids else kept).append(scan)
        return kept, [row for row in refused if not self.named_in(row.source)], theirs

    def remarks_on(self, theirs: Sequence[Scan]) -> list[str]:
        """How many people are left out, of whom these scans are, in a line without their ids; no line if nobody is."""
        num = len({scan.person for scan in theirs})
        line = f"left out: {len(theirs)} images of {num} people, of {len(self.ids)} who are listed"
        asked = "" if num else "; none of the ids is one of this data set, is it the right file?"
        return [line + asked] if self.ids else []


def read_ids(path: Path, key: str, numbers: bool = False) -> set[str]:
    """The ids in a text file, one a line; InputError, which names the argument `key`, if it cannot be read.

    Args:
        path: the file.
        key: path of the argument in a config.
        numbers: ids are numbers: quotes, a header, and ids of 0 or less, which stand for people who are nobody any
            more, are passed over; any other line is refused by its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{key}: {path} cannot be read ({describe(error)}); give a text file with an id of a person in each line "
            "(an empty one if there is nobody)."
        ) from error
    cells = [line.strip().rstrip(",;").strip("\"'") if numbers else line.strip() for line in lines]
    if not numbers:
        return {cell for cell in cells if cell}
    first = 1 if cells and re.fullmatch(r"([\w.]*\.)?eid|n_eid", cells[0], re.IGNORECASE) else 0
    bad = [number for number, cell in enumerate(cells, 1) if number > first and cell and number_of(cell) is None]
    if bad:
        raise InputError(
            f"{key}: {path}: {named(bad)}: no id of a person; expected a number in each line, as UK Biobank sends it."
        )
    found = {number_of(cell) for cell in cells[first:] if cell}
    return {str(number) for number in found if number is not None and number > 0}


def number_of(cell: str) -> int | None:
    """The number that an id is: 1000223, 1000223.0, -7; 0 of "redacted"; None of anything else."""
    if cell.casefold() in ("redacted", "withdrawn"):
        return 0
    match = re.fullmatch(r"(-?\d{1,15})(\.0+)?", cell)
    return int(match[1]) if match else None


def facts_of_people(
    people: Mapping[Split, Collection[str]], left_out: LeftOut, side: Callable[[str], Split | None]
) -> dict[str, Any]:
    """Fields of a `DataSpec`: the people of each part, by hashes, and who is left out of it.

    Args:
        people: part -> who is in it.
        left_out: who is left out.
        side: whoever it is -> the part they fall into; None: they may be of any.
    """
    leaving: dict[Split, list[str]] = {split: [] for split in people}
    for person in sorted(left_out.people):
        for split in leaving if (found := side(person)) is None else (found,):
            leaving[split].append(person)
    return {
        "people": {split: identity(those) for split, those in people.items()},
        "people_sums": {split: sum_of(those) for split, those in people.items()},
        "left_out": left_out.digest,
        "leaving": {split: tuple(those) for split, those in leaving.items()},
    }


def clean_all(address: StoreAddress, left_out: LeftOut, root: Path, ids_are_unique: bool) -> None:
    """Removes all that was made of people from the stores of a data set, and says of how many there was something.

    Args:
        address: of one of the stores; the others lie beside it.
        left_out: the people.
        root: folder of the raw data.
        ids_are_unique: whether an id is the same person's in stores of other roots.
    """
    num, others = 0, address.parent.glob(f"{glob.escape(address.name)}-*") if left_out.people else ()
    for folder in sorted({address.folder, *others}):
        theirs = folder == address.folder or ids_are_unique or note(folder).get("root") == _hash_of(root)
        if theirs and (folder / "preprocessing.json").is_file():
            num = max(num, clean(folder, left_out, root))
    if num:
        say(
            f"removed from {address.parent}: all that was made of {num} people who are left out, and what was "
            "derived from the images. Samples made like them (`--like`) and reports made before may show them: "
            "make those again."
        )


def clean(folder: Path, left_out: LeftOut, root: Path) -> int:
    """Removes all that a store holds of people, unless it was cleaned for this list; returns how many it held.

    InputError if something cannot be removed.
    """
    if note(folder).get("people", "") == left_out.digest:
        return 0
    try:
        num = _removed(folder, left_out)
        write_note(folder, left_out, root)
    except OSError as error:
        raise InputError(
            f"{folder}: what was made of people who are left out cannot be removed ({describe(error)}); make the "
            "folder writable, or delete it."
        ) from error
    return num


def note(folder: Path) -> dict[str, str]:
    """For which list (`people`) of which data (`root`) a store was last cleaned; nothing if that is not known."""
    try:
        content: Any = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_note(folder: Path, left_out: LeftOut, root: Path) -> None:
    """Notes for which list a store of the data at `root` is clean."""
    write_changed(folder / NOTE, json.dumps({"root": _hash_of(root), "people": left_out.digest}))


def _hash_of(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode(errors=ANY_NAME)).hexdigest()[:16]


def _removed(folder: Path, left_out: LeftOut) -> int:
    """How many people went. What tells of them, the manifest, goes last, so that a kill leaves nothing behind."""
    people = left_out.people
    if not people:
        return 0
    remove_stale(folder / VOLUMES)
    gone = drop_people(folder, people, dry=True)
    strays = _strays(folder, gone.files, people)
    if gone.people or strays:
        for path in folder.iterdir():  # latents, features and whatever else methods keep here
            if path.is_dir() and path.name not in (VOLUMES, FIGURES):
                path.unlink() if path.is_symlink() else shutil.rmtree(path)
    for path in strays:
        path.unlink(missing_ok=True)
    _drop_rows(folder, left_out)
    _drop_keys(folder / "keys.json", gone.files)
    drop_people(folder, people)
    return gone.people


def _strays(folder: Path, files: Collection[str], people: Collection[str]) -> list[Path]:
    """Volumes and figures of images that are not in the manifest, unless they are known to be of others."""
    found: dict[str, list[Path]] = {}
    for path in [*(folder / VOLUMES).glob("*"), *(folder / FIGURES).glob("*")]:
        key = path.name.partition(".")[0]
        if KEY.fullmatch(key) and key not in files:
            found.setdefault(key, []).append(path)
    return [path for key, paths in found.items() if _of(folder / VOLUMES / f"{key}.json", people) for path in paths]


def _of(facts: Path, people: Collection[str]) -> bool:
    """Whether a volume may be of these people."""
    try:
        content = json.loads(facts.read_text())
        return "person" not in content or content["person"] in people
    except (OSError, ValueError, TypeError):
        return True


def _drop_rows(folder: Path, left_out: LeftOut) -> None:
    for path in (folder / name for name in TABLES):
        if path.is_file():
            rows = csv.DictReader(io.StringIO(path.read_text(), newline=""))
            kept = [
                row
                for row in rows
                if row.get("person") not in left_out.people and not left_out.named_in(row.get("source") or "")
            ]
            write_changed(path, as_csv(kept, list(rows.fieldnames or ())))


def _drop_keys(path: Path, files: Collection[str]) -> None:
    """Of the raw files that need not be read again those whose images stay."""
    try:
        known = json.loads(path.read_text())
        kept = {stamp: key for stamp, key in known.items() if key in files}
    except (OSError, ValueError, AttributeError):
        path.unlink(missing_ok=True)
        return
    write_changed(path, json.dumps(kept, indent=0, sort_keys=True))
