"""Splits by lists of people or images: files of the user, a column of a table, the official lists of a data set.

A name in a list is an id of a person, or else the name of an image. Who is in the list of a part belongs to it; a part
without a list is taken from everybody else by the hash of `splits`. Of people who are named by images alone, the images
that no list names are left out, and so is everybody in no list where every part has one. Messages give lines of lists,
never a name, which may be a patient's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_modules.listing import stem_of
from data_modules.records import image_hash, person_hash
from data_modules.splits import SPLITS, Split, split_of
from data_modules.tables import named
from lit_medgen.errors import InputError, describe

KEY = "data.init_args.split_files"
PARTS: dict[str, tuple[Split, ...]] = {
    **{part: (part,) for part in SPLITS},
    "train_val": ("train", "val"),
}
"""What a list may be of -> the parts among which its people are divided."""


@dataclass(frozen=True)
class NameList:
    """A list of people or images.

    Attributes:
        source: where it stands, for messages: key of the config and file.
        lines: name -> the line that it stands on, from 1.
    """

    source: str
    lines: Mapping[str, int]


@dataclass(frozen=True)
class Sides:
    """Who belongs to which part, by lists.

    Attributes:
        lists: key of `PARTS` -> its list.
        named: person (hashed) -> the key of the list that names them or an image of theirs.
        by_images: people who are named by their images alone.
        images: hashed names of the images that are listed.
        fractions: shares of train, validation and test people, where a hash decides between parts.
        seed: of that hash.
        unknown: key -> lines of names that are nobody's here, and of no image.
    """

    lists: Mapping[str, NameList]
    named: Mapping[str, str]
    by_images: Collection[str]
    images: Collection[str]
    fractions: Sequence[float]
    seed: int
    unknown: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def rest(self) -> tuple[Split, ...]:
        """The parts that have no list."""
        return tuple(part for part in SPLITS if not any(part in PARTS[key] for key in self.lists))

    def split_of(self, person: str) -> Split | None:
        """The part of a person (hashed); None for whoever is in no list while every part has one."""
        parts = PARTS[self.named[person]] if person in self.named else self.rest
        if len(parts) < 2:
            return parts[0] if parts else None
        shares = [share if part in parts else 0.0 for part, share in zip(SPLITS, self.fractions, strict=True)]
        if not (total := sum(shares)):
            return "train" if "train" in parts else None
        return split_of(person, [share / total for share in shares], self.seed)

    def has(self, person: str, image: str) -> bool:
        """Whether an image (its name, hashed) of a person is one of those that are used."""
        return person not in self.by_images or image in self.images or not image

    def split_of_absent(self, person: str) -> Split | None:
        """The part of somebody of whom nothing is there any more; None if it cannot be known."""
        return None if any(self.unknown.values()) and person not in self.named else self.split_of(person)


def read_lists(files: Mapping[str, str], root: Path) -> dict[str, NameList]:
    """Key of `PARTS` -> the list in a text file, a name a line; InputError if one cannot be read or is empty.

    Args:
        files: key -> path of the file, also below the root.
        root: folder of the raw data.
    """
    lists = {}
    for key, file in files.items():
        path = Path(file) if Path(file).is_file() else root / file
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{KEY}.{key}: {file} cannot be read ({describe(error)}); give a text file with an id of a person, or "
                "the path of an image below data.init_args.root, in each line."
            ) from error
        names: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if name := line.strip():
                names.setdefault(name, number)
        if not names:
            raise InputError(f"{KEY}.{key}: {file} is empty; give names, one a line, or leave the list out.")
        lists[key] = NameList(f"{KEY}.{key}: {file}", names)
    return lists


def refuse_keys(files: Mapping[str, str], fold: str | None) -> None:
    """InputError for lists of unknown or overlapping parts, or beside a fold, which divides people by itself."""
    unknown = [key for key in files if key not in PARTS]
    if unknown or not files:
        given = f"names {unknown[0]!r}" if unknown else "is empty"
        raise InputError(f"{KEY} {given}; give files for some of {', '.join(PARTS)}.")
    if "train_val" in files and {"train", "val"} & files.keys():
        raise InputError(f"{KEY}: train_val is train and val together; give it, or those two.")
    if fold is not None:
        raise InputError(f"{KEY} and fold, '{fold}', exclude each other; leave one out.")


def divide(
    lists: Mapping[str, NameList],
    members: Iterable[tuple[str, str]],
    gone: Collection[str],
    person_id: Callable[[str], str],
    person_of_image: Callable[[str], str | None],
    fractions: Sequence[float],
    seed: int,
) -> Sides:
    """Who belongs to which part; InputError if a list names nobody here, or two name one person.

    Args:
        lists: key of `PARTS` -> its list.
        members: whose each image is and what its name is, both hashed.
        gone: people (hashed) who are left out, of whom a list may still tell.
        person_id: an id as it stands in a list -> as `Scan.person` names people.
        person_of_image: the id of the person whom an image's name tells of; None where a name does not.
        fractions: see `Sides`.
        seed: see `Sides`.
    """
    members = list(members)
    people, owner = {person for person, _ in members} | set(gone), {image: person for person, image in members}
    found: dict[str, dict[str, int]] = {key: {} for key in lists}  # key -> person -> line
    whole: set[str] = set()
    images: set[str] = set()
    unknown: dict[str, list[int]] = {key: [] for key in lists}
    for key, each in lists.items():
        for name, line in each.lines.items():
            person, hashes = person_hash(person_id(name)), [image_hash(name), image_hash(image_name(name))]
            image = next((each for each in hashes if each in owner), hashes[-1])
            if person in people:
                whole.add(person)
            elif teller := person_of_image(name):
                person = person_hash(teller)
                images.add(image)
            elif image in owner:
                person = owner[image]
                images.add(image)
            else:
                unknown[key].append(line)
                continue
            found[key].setdefault(person, line)
        if not found[key].keys() & people:
            raise InputError(
                f"{each.source}: none of its {len(each.lines)} names is that of a person or an image of this data set; "
                "give ids as the data set names people, or paths of images below data.init_args.root, one a line."
            )
    _refuse_shared(lists, found)
    named_by = {person: key for key, those in found.items() for person in those}
    return Sides(lists, named_by, named_by.keys() - whole, images, fractions, seed, unknown)


def image_name(name: str) -> str:
    """The name of an image as lists and data set compare it: a path below the root without the image's suffix."""
    path = Path(name.removeprefix("./"))
    return (path.parent / stem_of(path)).as_posix() if path.name else name


def lines_about(sides: Sides, left: Iterable[tuple[str, str]], tells_absent: bool) -> list[str]:
    """What to say of lists: names that are nobody's, and images (person, name) that are in none; never who.

    Args:
        sides: who belongs where.
        left: whose each image is that is left out, and its name; both hashed.
        tells_absent: whether names that are nobody's are worth a line.
    """
    lines = [
        f"{sides.lists[key].source}: {len(numbers)} of {len(sides.lists[key].lines)} names are of no person or image "
        f"here, the first in line {numbers[0]}"
        for key, numbers in sides.unknown.items()
        if numbers and tells_absent
    ]
    left = list(left)
    nobody = {person for person, _ in left if person not in sides.named}
    images = sum(person in sides.named for person, _ in left)
    parts = [f"{len(nobody)} people who are in none"] if nobody else []
    parts += [f"{images} images that none names, of people whose others are listed"] if images else []
    sources = ", ".join(each.source for each in sides.lists.values())
    return [*lines, *([f"lists ({sources}) leave out {' and '.join(parts)}"] if parts else [])]


def _refuse_shared(lists: Mapping[str, NameList], found: Mapping[str, Mapping[str, int]]) -> None:
    """InputError for people who are in two lists."""
    keys = list(found)
    for number, first in enumerate(keys):
        for second in keys[number + 1 :]:
            if both := sorted(found[first][person] for person in found[first].keys() & found[second].keys()):
                raise InputError(
                    f"{lists[first].source}: {len(both)} people ({named(both)}) are in the list of {second} as well, "
                    f"{lists[second].source}; expected lists that share nobody: keep each person in one."
                )
