"""`Record`: what is known of a prepared image; and the two files of a store that say it of all of them.

    manifest.csv   for people to read: a row for each file of images
    facts.npz      for the program: affines, attributes and other numbers of every image, a file's images in a row

The second holds the SHA-256 of the first, so that two that do not belong together are noticed. No other file is read
to open a store, however many images it has.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_modules.sources import ANY_NAME
from data_modules.tables import identifier
from lit_medgen.errors import InputError, describe
from lit_medgen.files import SHOWN, as_csv, write_atomically

MANIFEST, FACTS = "manifest.csv", "facts.npz"
PREFIX = "fact."
UNREADABLE = (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)
"""What a file of facts raises that is damaged, or of another manifest."""


@dataclass(frozen=True)
class Record:
    """One image of a store."""

    key: str  # hash of the raw bytes and of all that was done to them; with the image's number where a file has several
    person: str  # hash of whose it is
    session: str  # name of the visit
    sha256: str  # of the image's file
    cut: float  # share of the foreground (brain, or not air) that the grid cuts off; NaN if images keep their grid
    affine: np.ndarray  # voxel to world, mm, 4 4
    attributes: dict[str, float]  # numbers known about it; NaN where unknown
    tools: str = ""  # what treated a raw head, with versions
    levels: int = 0  # how many whole numbers the raw volume consists of, if as few as in a label map; else 0
    beside: tuple[str, ...] = ()  # names of the arrays that lie beside the image's
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> other numbers, such as the point around which it is cropped; NaN where unknown."""
    index: int | None = None  # number of the image in its file; None if the file holds it alone
    num_images: int = 1  # in the file
    text: str = ""  # hash of the name of its text; "" if it has none
    name: str = ""  # hash of what lists of images call it; "" in stores made before these were kept
    images: tuple[Record, ...] = ()  # of a file that holds several, those; only while a store is made

    @property
    def file(self) -> str:
        """Name of the image's file, without its suffix."""
        return self.key if self.index is None else self.key.rpartition("-")[0]


def person_hash(person: str) -> str:
    """What stands in a store for a person."""
    return sha256(f"person/{person}".encode(errors=ANY_NAME))[:16]


def text_hash(name: str) -> str:
    """What stands in a store for the name of a text, which may be a path that says whose image it is."""
    name = identifier(name)
    return sha256(f"text/{name}".encode(errors=ANY_NAME))[:16] if name else ""


def image_hash(name: str) -> str:
    """What stands in a store for the name of an image, which may be a path that says whose it is."""
    name = identifier(name)
    return sha256(f"image/{name}".encode(errors=ANY_NAME))[:16] if name else ""


def sha256(content: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """Writes the manifest and the facts of a store; `records` are its files."""
    manifest = table([_row(record) for record in records], ["key"]).encode(errors=SHOWN)
    every = [(row, image) for row, record in enumerate(records) for image in record.images or (record,)]
    images = [image for _, image in every]
    attributes, beside, facts = (
        list(dict.fromkeys(name for image in images for name in getattr(image, names)))
        for names in ("attributes", "beside", "facts")
    )
    lengths = {name: next(len(image.facts[name]) for image in images if name in image.facts) for name in facts}
    arrays: dict[str, Any] = {
        "manifest": sha256(manifest),
        "row": np.array([row for row, _ in every], dtype=np.int32),
        "index": np.array([-1 if image.index is None else image.index for image in images], dtype=np.int32),
        "num_images": np.array([image.num_images for image in images], dtype=np.int32),
        "levels": np.array([image.levels for image in images], dtype=np.int32),
        "text": np.array([image.text for image in images], dtype="S16"),
        "name": np.array([image.name for image in images], dtype="S16"),
        "affine": np.array([image.affine for image in images]).reshape(-1, 4, 4),
        "attribute_names": np.array(attributes, dtype=str),
        "attributes": np.array([[image.attributes.get(name, np.nan) for name in attributes] for image in images]),
        "beside_names": np.array(beside, dtype=str),
        "beside": np.array([[name in image.beside for name in beside] for image in images], dtype=bool),
    }
    for name, length in lengths.items():
        unknown = np.full(length, np.nan)
        arrays[PREFIX + name] = np.array([image.facts.get(name, unknown) for image in images], dtype=np.float64)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_changed(folder / FACTS, content.getvalue())
    write_changed(folder / MANIFEST, manifest)  # last: it says that the store is complete


@dataclass(frozen=True)
class Remainder:
    """What is left of a store without some people: names of files of images; and how many people went."""

    files: set[str]
    people: int


def drop_people(folder: Path, people: Collection[str], dry: bool = False) -> Remainder:
    """Takes people (hashed) out of the manifest and the facts; nothing is written if `dry`.

    A store without a manifest that can be read has no files.
    """
    try:
        names, *rows = csv.reader(io.StringIO((folder / MANIFEST).read_bytes().decode(), newline=""))
        key, person = names.index("key"), names.index("person")
        kept = [k for k, row in enumerate(rows) if row[person] not in people]
        left = Remainder({rows[k][key] for k in kept}, len({row[person] for row in rows} & set(people)))
    except (OSError, ValueError, IndexError):
        kept, names, rows, left = [], [], [], Remainder(set(), 0)
    if dry or (names and len(kept) == len(rows)):
        return left
    if not names:
        for name in (MANIFEST, FACTS):
            (folder / name).unlink(missing_ok=True)
        return left
    manifest = as_csv([dict(zip(names, rows[k], strict=True)) for k in kept], names).encode(errors=SHOWN)
    if facts := _facts_of(folder / FACTS, kept, sha256(manifest)):
        write_changed(folder / FACTS, facts)
    else:
        (folder / FACTS).unlink(missing_ok=True)
    write_changed(folder / MANIFEST, manifest)
    return left


def _facts_of(path: Path, rows: Sequence[int], manifest: str) -> bytes:
    """The content of a file of facts with some rows of the manifest alone; nothing if it cannot be read."""
    try:
        with np.load(path) as kept:
            arrays: dict[str, Any] = {name: kept[name] for name in kept.files}
        chosen = np.isin(arrays["row"], rows)
        whole = ("manifest", "attribute_names", "beside_names")
        arrays = {name: each if name in whole else each[chosen] for name, each in arrays.items()}
    except UNREADABLE:
        return b""
    content = io.BytesIO()
    np.savez(content, **arrays | {"row": np.searchsorted(rows, arrays["row"]).astype(np.int32), "manifest": manifest})
    return content.getvalue()


def read_records(folder: Path) -> tuple[str, list[Record]]:
    """The manifest's SHA-256 and the images of a store; InputError if it is not whole."""
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no prepared store; run `python -m lit_medgen prepare` with the same config first.")
    content = path.read_bytes()
    digest = sha256(content)
    try:
        with np.load(folder / FACTS) as kept:
            arrays = {name: kept[name] for name in kept.files}
        if str(arrays["manifest"]) != digest:
            raise ValueError("it is not of the manifest beside it")
        records = _records(_files(content), arrays)
    except UNREADABLE as error:
        raise InputError(f"{folder / FACTS}: cannot be read ({describe(error)}); run `prepare` again.") from error
    return digest, records


def _files(manifest: bytes) -> list[tuple[str, str, str, str, float, str]]:
    """Key, person, session, SHA-256, cut and tools of every file; its attributes stand in the facts as well."""
    rows = csv.reader(io.StringIO(manifest.decode(), newline=""))
    names = next(rows)
    key, person, session, digest, cut = (names.index(name) for name in ("key", "person", "session", "sha256", "cut"))
    tools = names.index("tools") if "tools" in names else None
    return [
        (row[key], row[person], row[session], row[digest], float(row[cut]), "" if tools is None else row[tools])
        for row in rows
    ]


def _records(files: list[tuple[str, str, str, str, float, str]], arrays: dict[str, Any]) -> list[Record]:
    names, beside_names = arrays["attribute_names"].tolist(), arrays["beside_names"].tolist()
    facts = {name.removeprefix(PREFIX): values for name, values in arrays.items() if name.startswith(PREFIX)}
    beside = [tuple(name for name, there in zip(beside_names, each, strict=True) if there) for each in arrays["beside"]]
    texts, image_names = (
        np.char.decode(arrays[name], "ascii").tolist() if name in arrays else [""] * len(arrays["row"])
        for name in ("text", "name")
    )
    records = []
    columns = (arrays[name].tolist() for name in ("row", "index", "num_images", "levels", "attributes"))
    for k, (row, index, num_images, levels, values) in enumerate(zip(*columns, strict=True)):
        key, person, session, digest, cut, tools = files[row]
        record = Record(
            key if index < 0 else image_key(key, index),
            person,
            session,
            digest,
            cut,
            arrays["affine"][k],
            dict(zip(names, values, strict=True)),
            tools,
            levels,
            beside[k],
            {name: each[k] for name, each in facts.items()},
            None if index < 0 else index,
            num_images,
            texts[k],
            image_names[k],
        )
        records.append(record)
    return records


def image_key(file: str, index: int) -> str:
    """The key of one of several images of a file."""
    return f"{file}-{index:04d}"


def images_of(record: Record, images: Iterable[dict[str, Any]]) -> tuple[Record, ...]:
    """The images of a file from what its recipe says of each: affine, attributes and other numbers."""
    every = list(images)
    return tuple(
        replace(
            record,
            key=image_key(record.key, index),
            affine=np.array(image["affine"]),
            attributes=record.attributes | image["attributes"],
            facts={name: np.array(value) for name, value in image["facts"].items()},
            index=index,
            num_images=len(every),
        )
        for index, image in enumerate(every)
    )


def known_values(records: Sequence[Record]) -> dict[str, set[float]]:
    """Name -> the values of every attribute that is known for anybody."""
    values = {name: {record.attributes[name] for record in records} for name in records[0].attributes}
    known = {name: {value for value in each if np.isfinite(value)} for name, each in values.items()}
    return {name: each for name, each in known.items() if each}


def has_values(record: Record, values: Mapping[str, float], key: str) -> bool:
    """Whether attributes of an image have these values; InputError, naming the key, for an attribute that is none."""
    for name in values:
        if name not in record.attributes:
            there = ", ".join(map(repr, record.attributes)) or "none"
            raise InputError(f"{key}: no attribute {name!r}; the images have {there}.")
    return all(record.attributes[name] == value for name, value in values.items())


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV, these columns first."""
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    return as_csv(rows, names)


def write_changed(path: Path, content: str | bytes) -> None:
    """A store that is complete is only read, so that several runs may use it, from a full disk too."""
    content = content.encode(errors=SHOWN) if isinstance(content, str) else content
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def _row(record: Record) -> dict[str, Any]:
    fixed = {name: getattr(record, name) for name in ("key", "person", "session", "sha256", "cut")}
    fixed |= {"tools": record.tools} if record.tools else {}
    return fixed | {f"attribute.{name}": value for name, value in record.attributes.items()}
