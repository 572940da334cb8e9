"""The prepared store: volumes on one grid, written once, read by memory map.

    <store>/volumes/<key>.npy     float16 in [0, 1], the slice axis first
    <store>/volumes/<key>.json    SHA-256, affine and cut of that volume
    <store>/manifest.csv          what was accepted: key, person (hashed), session, SHA-256, attributes
    <store>/rejected.csv          what was not, and why
    <store>/preprocessing.json    how it was made

A key is the hash of the raw bytes and of everything done to them, so work already done is found again after an
interruption, and changed settings make a new store beside the old one. Every file is written under a temporary
name, synced and renamed: a file at its final name is whole.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend

from data_modules.preprocessing import Preprocessing
from lit_medgen.batch import AXES
from lit_medgen.errors import InputError, describe
from lit_medgen.files import remove_stale, replacing, write_atomically
from lit_medgen.images import read_image

FORMAT = 1  # raised when the layout above changes, so that old stores are not read as new ones


@dataclass(frozen=True)
class Scan:
    """One raw image as a data set's layout lists it.

    Attributes:
        source: the file, or the files of a DICOM series.
        person: identifier of the person, equal over visits; it is hashed before it is stored.
        session: name of the visit.
        attributes: numbers known about it; NaN where unknown.
    """

    source: Path | list[Path]
    person: str
    session: str = ""
    attributes: dict[str, float] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The file, or the folder of the series."""
        return self.source[0].parent if isinstance(self.source, list) else self.source


@dataclass(frozen=True)
class Rejected:
    """A raw image that was not taken, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One volume of a store."""

    key: str
    person: str
    session: str
    sha256: str
    cut: float
    affine: np.ndarray
    attributes: dict[str, float]


@dataclass(frozen=True)
class StoreAddress:
    """Where a store lies and what makes it: data set name, preprocessing, slice axis."""

    parent: Path
    name: str
    preprocessing: Preprocessing
    axis: str

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that is done to the raw bytes, as plain data."""
        return {"format": FORMAT, "axis": self.axis, **asdict(self.preprocessing)}

    @property
    def stacked(self) -> int:
        """The axis along which slices are stacked; 0 for 2D images, whose axes are left as they are."""
        return AXES[self.axis] if len(self.preprocessing.size) == 3 else 0

    @property
    def folder(self) -> Path:
        """The store's folder: the data set's name and the hash of the recipe."""
        return self.parent / f"{self.name}-{_hash(json.dumps(self.recipe, sort_keys=True).encode())[:12]}"


class Store:
    """A prepared store, opened for reading."""

    def __init__(self, address: StoreAddress) -> None:
        self.folder, self.axis = address.folder, address.stacked
        manifest = self.folder / "manifest.csv"
        if not manifest.exists():
            raise InputError(
                f"{manifest}: no prepared store; run `python -m lit_medgen prepare` with the same config first."
            )
        self.digest = _hash(manifest.read_bytes())
        self.records = [_record(row, self.folder) for row in _rows(manifest)]

    def read(self, record: Record, slices: np.ndarray | None = None) -> np.ndarray:
        """float32 in [-1, 1]: the volume x y z, or n of its slices, n a b with (a, b) the axes left, in x y z order."""
        stored = self._map(record)
        chosen = torch.from_numpy(np.array(stored) if slices is None else stored[slices])
        values = chosen.float().mul_(2).sub_(1).numpy()  # torch widens float16 several times faster than numpy
        return np.moveaxis(values, 0, self.axis) if slices is None else values

    def num_slices(self, record: Record) -> int:
        """Slices of a volume along the store's axis."""
        return len(self._map(record))

    def _map(self, record: Record) -> np.ndarray:
        path = self.path(record)
        try:
            return np.load(path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:  # EOFError: an empty file
            raise InputError(f"{path}: cannot be read ({describe(error)}); run `prepare --verify`.") from error

    def path(self, record: Record) -> Path:
        """The file of a volume."""
        return self.folder / "volumes" / f"{record.key}.npy"


def prepare(
    address: StoreAddress,
    scans: Sequence[Scan],
    rejected: Iterable[Rejected] = (),
    num_jobs: int = -1,
    verify: bool = False,
) -> tuple[list[Record], list[Rejected]]:
    """Writes the store for these scans; returns what was accepted and what was rejected.

    Args:
        address: where and how.
        scans: raw images.
        rejected: what the layout's reader already refused.
        num_jobs: joblib workers, -1 for one per core; a Dask or Ray backend of joblib is used if one is active.
        verify: read every volume already there and compare its SHA-256; a bad one is made again.
    """
    folder = address.folder
    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / "volumes"):
        remove_stale(place)
    _write_changed(folder / "preprocessing.json", json.dumps(address.recipe, indent=2))
    jobs = (delayed(_prepare_one)(address, scan, verify) for scan in scans)
    streams = get_active_backend()[0].supports_return_generator  # Ray's backend does not
    results = Parallel(n_jobs=num_jobs, return_as="generator" if streams else "list")(jobs)
    accepted: dict[str, Record] = {}
    refused = list(rejected)
    for scan, result in zip(scans, _progress(results, len(scans)), strict=True):
        if isinstance(result, Rejected):
            refused.append(result)
        elif result.key in accepted:
            refused.append(Rejected(str(scan.place), "the same image as another file of this data set"))
        else:
            accepted[result.key] = result
    records = sorted(accepted.values(), key=lambda record: (record.person, record.session, record.key))
    _write_table(folder / "rejected.csv", [asdict(row) for row in refused], ["source", "reason"])
    _write_table(folder / "manifest.csv", [_row(record) for record in records], ["key"])
    return records, refused


def _prepare_one(address: StoreAddress, scan: Scan, verify: bool) -> Record | Rejected:
    try:
        key = _key(address, scan)
        path = address.folder / "volumes" / f"{key}.npy"
        facts_path = path.with_suffix(".json")
        if not _whole(path, facts_path, verify):
            facts = _write_volume(address, scan, path)
            write_atomically(facts_path, json.dumps(facts))
        facts = json.loads(facts_path.read_text())
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError):
            raise  # a full or broken disk is no fault of this scan
        return Rejected(str(scan.place), describe(error))
    person = _hash(f"person/{scan.person}".encode())[:16]
    return Record(key, person, scan.session, facts["sha256"], facts["cut"], np.array(facts["affine"]), scan.attributes)


def _write_volume(address: StoreAddress, scan: Scan, path: Path) -> dict[str, Any]:
    prepared = address.preprocessing(*read_image(scan.source))
    stored = np.moveaxis(prepared.voxels, address.stacked, 0).astype(np.float16)
    if not stored.any():
        raise ValueError("nothing is left inside the field of view; expected an image")
    with replacing(path, stored.nbytes) as file:
        np.save(file, stored)
    affine = np.eye(4)
    affine[: len(prepared.affine) - 1, : len(prepared.affine) - 1] = prepared.affine[:-1, :-1]
    affine[: len(prepared.affine) - 1, 3] = prepared.affine[:-1, -1]
    return {"sha256": file.sha256, "cut": prepared.cut, "affine": affine.tolist(), "bytes": path.stat().st_size}


def _whole(path: Path, facts_path: Path, verify: bool) -> bool:
    if not (path.exists() and facts_path.exists()):
        return False
    try:
        facts = json.loads(facts_path.read_text())
    except ValueError:
        return False
    return path.stat().st_size == facts["bytes"] and (not verify or _hash(path.read_bytes()) == facts["sha256"])


def _key(address: StoreAddress, scan: Scan) -> str:
    digest = hashlib.sha256(json.dumps(address.recipe, sort_keys=True).encode())
    for path in scan.source if isinstance(scan.source, list) else [scan.source]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _row(record: Record) -> dict[str, Any]:
    fixed = {name: getattr(record, name) for name in ("key", "person", "session", "sha256", "cut")}
    return fixed | {f"attribute.{name}": value for name, value in record.attributes.items()}


def _record(row: dict[str, str], folder: Path) -> Record:
    attributes = {
        name.removeprefix("attribute."): float(value or "nan")
        for name, value in row.items()
        if name.startswith("attribute.")
    }
    facts = json.loads((folder / "volumes" / f"{row['key']}.json").read_text())
    return Record(
        row["key"],
        row["person"],
        row["session"],
        row["sha256"],
        float(row["cut"]),
        np.array(facts["affine"]),
        attributes,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write_table(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    lines: list[str] = []

    class Lines:
        def write(self, line: str) -> None:
            lines.append(line)

    writer = csv.DictWriter(Lines(), names)
    writer.writeheader()
    writer.writerows(rows)
    _write_changed(path, "".join(lines))


def _write_changed(path: Path, text: str) -> None:
    """A store that is complete is only read, so that several runs may use it, from a full disk too."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text)


def _progress(results: Iterable[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    return iter(track(results, description="prepare", total=total))
