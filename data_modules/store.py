"""The prepared store: volumes on one grid, written once, of which any slices are read and nothing else.

    <store>/volumes/<key>.npy     float16 in [-1, 1], the slice axis first (CT slices: int16 HU)
    <store>/volumes/<key>.json    SHA-256, affine and cut of that volume, and how it was moved
    <store>/manifest.csv          what was accepted: key, person (hashed), session, SHA-256, attributes; of raw
                                  heads, the tools that treated them and their versions
    <store>/rejected.csv          what was not, and why
    <store>/keys.json             the keys of raw files by path, size and time, so that they are not read again
    <store>/preprocessing.json    how it was made
    <store>/figures/<key>.png     raw and prepared image, if asked for

A store belongs to one root and one way of listing its images: preparing another changes nothing in it. A key is the
hash of the raw bytes and of everything done to them (but for the versions of tools), so work already done is found
again after an interruption, and changed settings make a new store beside the old one. Stores that differ in the root
alone share their volumes' files by hard links, so a root that has moved is prepared quickly. Every file is written
under a temporary name, synced and renamed: a file at its final name is whole.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from joblib import delayed
from numpy.typing import DTypeLike

from data_modules.parallel import in_parallel
from data_modules.tables import identifier
from data_modules.volume_files import is_whole, take_over
from lit_medgen.axes import AXES
from lit_medgen.errors import NO_SPACE, InputError, RunError, describe, raise_fault_of_machine
from lit_medgen.files import SHOWN, Outputs, remove_stale, write_atomically
from lit_medgen.images.png import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANY_NAME = "surrogatepass"
"""So that names of files and people, which need not be UTF-8, can be hashed."""

FORMAT = 3  # raised when the layout above changes, so that old stores are not read as new ones

FILES = (
    *("preprocessing.json", "manifest.csv", "rejected.csv", "keys.json", "nodules.csv"),
    *("volumes/*.npy", "volumes/*.json", "figures/*.png"),
)


@dataclass(frozen=True)
class Scan:
    """One raw image as a data set's layout lists it.

    Attributes:
        source: the file, or the files of a DICOM series (a list, even of one).
        person: identifier of the person, equal over visits; it is hashed before it is stored.
        session: name of the visit.
        attributes: numbers known about it; NaN where unknown.
    """

    source: Path | list[Path]
    person: str
    session: str = ""
    attributes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "person", identifier(self.person))  # a blank more or less is no other person
        if not self.person:
            raise InputError(f"{self.place}: whose image it is is not known; expected an id of the person.")

    @property
    def place(self) -> Path:
        """The file, or the folder of the series."""
        if isinstance(self.source, list):
            return self.source[0].parent if len(self.source) > 1 else self.source[0]
        return self.source

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        if isinstance(self.source, list):
            return self.source
        partner = partner_of(self.source)
        return [self.source, partner] if partner else [self.source]


def partner_of(path: Path) -> Path | None:
    """The other file of a pair of header (.hdr) and voxels (.img); None if there is none."""
    suffix = {".hdr": ".img", ".img": ".hdr"}.get(path.suffix.lower())
    others = [path.with_suffix(suffix), path.with_suffix(suffix.upper())] if suffix else []
    return next((other for other in others if other.is_file()), None)


class Recipe(Protocol):
    """What makes a store's files of scans; a frozen dataclass, whose fields are part of the store's address."""

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels of what is stored."""

    def write(self, scan: Any, path: Path, stacked: int) -> dict[str, Any]:
        """Writes the volume's .npy file, slices along axis `stacked` first.

        Returns:
            facts: sha256, bytes, cut (of a grid), affine (4 4), tools (if any treated it) and what else is kept; files
            beside it as more: suffix -> sha256 and bytes.

        Raises:
            ValueError: the scan cannot be used.
        """

    def draw(self, scan: Any, path: Path, stacked: int, facts: dict[str, Any]) -> Figure:
        """A figure of the scan as it came and as it is in the file."""


@dataclass(frozen=True)
class Rejected:
    """A raw image that was not taken, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One volume of a store.

    Attributes:
        key: hash of the raw bytes and of all that was done to them.
        person: hash of whose it is.
        session: name of the visit.
        sha256: of the volume's file.
        cut: share of the foreground (brain, or what is not air) that the grid cuts off; NaN if images keep their grid.
        affine: voxel to world, mm.
        attributes: numbers known about it; NaN where unknown.
        tools: what treated a raw head, with versions.
        levels: how many whole numbers the raw volume consists of, if they are as few as in a label map; else 0.
    """

    key: str
    person: str
    session: str
    sha256: str
    cut: float
    affine: np.ndarray
    attributes: dict[str, float]
    tools: str = ""
    levels: int = 0


@dataclass(frozen=True)
class StoreAddress:
    """Where a store lies and what makes it.

    Attributes:
        parent: folder of all stores.
        name: of the kind of data set.
        preprocessing: what is done to each image.
        axis: along which slices are stacked.
        listing: what decides which images are listed, the root above all; only its hash is kept.
    """

    parent: Path
    name: str
    preprocessing: Recipe
    axis: str
    listing: str = ""

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that is done to the raw bytes, as plain data."""
        steps = {name: value for name, value in asdict(cast(Any, self.preprocessing)).items() if value is not None}
        return {"format": FORMAT, "axis": self.axis, **steps}

    @property
    def stacked(self) -> int:
        """The axis along which slices are stacked; 0 for 2D images, whose axes are left as they are."""
        if len(self.preprocessing.size) == 2:
            return 0
        return AXES[self.axis]

    @property
    def folder(self) -> Path:
        """The store's folder: the data set's name, the hash of the recipe, and that of the listing."""
        listing = f"-{_hash(self.listing.encode(errors=ANY_NAME))[:12]}" if self.listing else ""
        return self.parent / f"{self._shared}{listing}"

    @property
    def others(self) -> list[Path]:
        """The folders of volumes of other stores with this recipe, which may hold the same volumes."""
        found = self.parent.glob(f"{glob.escape(self._shared)}*/volumes")
        return sorted(volumes for volumes in found if volumes.parent != self.folder)

    @property
    def _shared(self) -> str:
        return f"{self.name}-{_hash(json.dumps(self.recipe, sort_keys=True).encode())[:12]}"


class Store:
    """A prepared store, opened for reading."""

    def __init__(self, address: StoreAddress) -> None:
        self.folder, self.axis = address.folder, address.stacked
        size = list(address.preprocessing.size)
        self.shape = (size.pop(self.axis), *size)
        manifest = self.folder / "manifest.csv"
        if not manifest.exists():
            raise InputError(
                f"{manifest}: no prepared store; run `python -m lit_medgen prepare` with the same config first."
            )
        self.digest = _hash(manifest.read_bytes())
        self.records = [_record(row, self.folder) for row in _rows(manifest)]

    def read(self, record: Record, slices: np.ndarray | None = None) -> np.ndarray:
        """float32 in [-1, 1]: the volume x y z, or n of its slices, n a b with (a, b) the axes left, in x y z order."""
        import torch

        stored = read_array(self.path(record), self.shape, np.float16, slices)
        values = torch.from_numpy(stored).float().numpy()  # torch widens faster than numpy
        return np.moveaxis(values, 0, self.axis) if slices is None else values

    @property
    def num_slices(self) -> int:
        """Of every volume, along the store's axis."""
        return self.shape[0]

    def label_map(self, record: Record) -> np.ndarray | None:
        """Classes x y z of a volume; None where there are none."""
        return None

    def path(self, record: Record) -> Path:
        """The file of a volume."""
        return self.folder / "volumes" / f"{record.key}.npy"


def read_array(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, places: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """The array in a .npy file, or some of its parts along the first axis; InputError if the file is not whole."""
    # Not through a memory map: its page faults and header take longer than to read 20 slices of 128 x 128, and a
    # file that was cut off would end the process instead of being an error.
    header = _header(shape, np.dtype(dtype))
    stored = np.empty(shape if places is None else (len(places), *shape[1:]), dtype)
    stride = stored.itemsize * math.prod(shape[1:])
    try:
        # Slices without a buffer, which is a copy more; a volume with one: a bare read ends at 2 GiB.
        with path.open("rb") if places is None else path.open("rb", buffering=0) as file:
            if file.read(len(header)) != header:
                raise ValueError(f"its header is not that of {np.dtype(dtype)} {shape}")
            for part, index in [(stored, 0)] if places is None else zip(stored, places, strict=True):
                file.seek(len(header) + int(index) * stride)
                if file.readinto(part.data) != part.nbytes:
                    raise ValueError("it ends early")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({describe(error)}); run `prepare --verify`.") from error
    return stored


def prepare(
    address: StoreAddress,
    scans: Sequence[Scan],
    rejected: Iterable[Rejected] = (),
    num_jobs: int = -1,
    verify: bool = False,
    figures: bool = False,
) -> tuple[list[Record], list[Rejected]]:
    """Writes the store for these scans; returns what was accepted and what was rejected.

    Args:
        address: where and how.
        scans: raw images.
        rejected: what the layout's reader already refused.
        num_jobs: joblib workers, -1 for one per core; a Dask or Ray backend of joblib is used if one is active.
        verify: read every raw file, and every volume already there, and compare its SHA-256; a bad one is made again.
        figures: draw every image as it came and as it was prepared.
    """
    folder, recipe = address.folder, json.dumps(address.recipe, indent=2)
    described = folder / "preprocessing.json"
    if not described.is_file() or described.read_text(errors="replace") != recipe:  # which proves that it is a store
        Outputs(folder, "prepare", FILES, "move it, or give another data.init_args.store_dir").check()
    try:
        for place in ("volumes", *(["figures"] if figures else [])):
            (folder / place).mkdir(parents=True, exist_ok=True)
            remove_stale(folder / place)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise InputError(
            f"data.init_args.store_dir: cannot make {folder} ({describe(error)}); give a folder that can be written."
        ) from error
    remove_stale(folder)
    write_changed(described, recipe)
    known = {} if verify else _known_keys(folder)
    others = address.others
    stamps = [_stamp(scan) for scan in scans]
    jobs = (
        delayed(_prepare_one)(address, scan, verify, figures, known.get(stamp, ""), others)
        for scan, stamp in zip(scans, stamps, strict=True)
    )
    results = in_parallel(jobs, len(scans), "prepare", num_jobs)
    accepted: dict[str, Record] = {}
    refused = list(rejected)
    keys: dict[str, str] = {}
    for scan, stamp, result in zip(scans, stamps, results, strict=True):
        if isinstance(result, Rejected):
            refused.append(result)
            continue
        if stamp:
            keys[stamp] = result.key
        if result.key in accepted:
            refused.append(Rejected(str(scan.place), "the same image as another file of this data set"))
        else:
            accepted[result.key] = result
    records = sorted(accepted.values(), key=lambda record: (record.person, record.session, record.key))
    _write_table(folder / "rejected.csv", [asdict(row) for row in refused], ["source", "reason"])
    _write_table(folder / "manifest.csv", [_row(record) for record in records], ["key"])
    write_changed(folder / "keys.json", json.dumps(keys, indent=0, sort_keys=True))
    return records, refused


def _known_keys(folder: Path) -> dict[str, str]:
    """What the last preparation left, or nothing."""
    try:
        found = json.loads((folder / "keys.json").read_text())
    except (OSError, ValueError):
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {stamp: key for stamp, key in known if isinstance(key, str) and re.fullmatch(r"[0-9a-f]{16}", key)}


def _stamp(scan: Scan) -> str:
    """Changes when a raw file is another or was written again; no path can be read from it."""
    digest = hashlib.sha256()
    for path in scan.files:
        try:
            facts = path.stat()
        except OSError:  # it is refused when it is read
            return ""
        digest.update(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}\n".encode(errors=ANY_NAME))
    return digest.hexdigest()


def _prepare_one(
    address: StoreAddress, scan: Scan, verify: bool, figures: bool, key: str = "", others: Sequence[Path] = ()
) -> Record | Rejected:
    """Whatever the image itself raises is its rejection; a fault of the machine ends the preparation."""
    try:
        key = key or _key(address, scan)
        path = address.folder / "volumes" / f"{key}.npy"
        facts_path = path.with_suffix(".json")
        if not is_whole(path, verify) and not take_over(path, others, verify):
            facts = address.preprocessing.write(scan, path, address.stacked)
            write_atomically(facts_path, json.dumps(facts))
        facts = json.loads(facts_path.read_text())
        if figures:
            figure = address.preprocessing.draw(scan, path, address.stacked, facts)
            write_figure(address.folder / "figures" / f"{path.stem}.png", figure, dpi=90)
    except RunError:
        raise
    except Exception as error:
        raise_fault_of_machine(error, scan.place, address.folder)
        return Rejected(str(scan.place), _reason(error))
    return Record(
        key,
        _hash(f"person/{scan.person}".encode(errors=ANY_NAME))[:16],
        scan.session,
        facts["sha256"],
        facts.get("cut", np.nan),
        np.array(facts["affine"]),
        scan.attributes,
        facts.get("tools", ""),
        facts.get("levels", 0),
    )


def _reason(error: Exception) -> str:
    """What an image raised, as one line; readers name a bad file by a ValueError, of others the kind says more."""
    kind = "" if type(error) is ValueError or isinstance(error, OSError) else f"{type(error).__name__}: "
    return kind + describe(error)


@lru_cache
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What stands before the numbers in a .npy file."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def _key(address: StoreAddress, scan: Scan) -> str:
    digest = hashlib.sha256(json.dumps(address.recipe, sort_keys=True).encode())
    for path in scan.files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _row(record: Record) -> dict[str, Any]:
    fixed = {name: getattr(record, name) for name in ("key", "person", "session", "sha256", "cut")}
    fixed |= {"tools": record.tools} if record.tools else {}
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
        row.get("tools", ""),
        facts.get("levels", 0),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
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
    write_changed(path, "".join(lines))


def write_changed(path: Path, text: str) -> None:
    """A store that is complete is only read, so that several runs may use it, from a full disk too."""
    content = text.encode(errors=SHOWN)
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
