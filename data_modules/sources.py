"""What a data set lists: raw images, each a file, a DICOM series or a member of an archive, and whose they are."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_modules import archives, tars
from data_modules.tables import identifier
from lit_medgen.errors import InputError
from lit_medgen.images import partner_of, read_image

ANY_NAME = "surrogatepass"
"""So that names of files and people, which need not be UTF-8, can be hashed."""
IMAGE, LABEL_MAP = "image", "label_map"
"""Names of sources: the image itself, and the classes of its voxels. Others are images that it can be made from."""


class Source(ABC):
    """Where one raw image comes from."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The file or archive, or the folder of a series: what messages name."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """All files that are read."""

    def contents(self) -> Iterator[bytes]:
        """The raw bytes that decide what the image is."""
        return (path.read_bytes() for path in self.files)

    @abstractmethod
    def read(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Voxels and affine; options, errors and shapes are those of `lit_medgen.images.read_image`."""

    def stamp(self) -> str:
        """Another where a file is another or was written again; OSError if one cannot be reached."""
        facts = [(path, path.stat()) for path in self.files]
        return "".join(f"{path.resolve()} {fact.st_size} {fact.st_mtime_ns}\n" for path, fact in facts)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class File(Source):
    """One file of NIfTI, MGH, PNG or DICOM, or a pair of header (.hdr) and voxels (.img)."""

    file: Path

    @property
    def path(self) -> Path:
        """The file that holds the image."""
        return self.file

    @property
    def files(self) -> list[Path]:
        """The file, and its partner of a pair."""
        partner = partner_of(self.file)
        return [self.file, partner] if partner else [self.file]

    def read(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """The image in the file."""
        return read_image(self.file, **options)


@dataclass(frozen=True)
class Series(Source):
    """The files of a DICOM series, even of one file."""

    slices: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The folder of several files, or the file."""
        return self.slices[0].parent if len(self.slices) > 1 else self.slices[0]

    @property
    def files(self) -> list[Path]:
        """The files of all slices."""
        return list(self.slices)

    def read(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """The volume of the series."""
        return read_image(list(self.slices), **options)


@dataclass(frozen=True)
class Member(Source):
    """A file (`member`) inside an archive, read without extracting."""

    archive: Path
    member: str

    @property
    def path(self) -> Path:
        """The archive that holds the member."""
        return self.archive

    @property
    def files(self) -> list[Path]:
        """The archive that holds the member."""
        return [self.archive]

    def stamp(self) -> str:
        """That of the archive, and the member."""
        return f"{self.member} {super().stamp()}"

    def read(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """The image in the member, unpacked into a folder of the system's for the time it is read."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(self.member).name)
            with path.open("wb") as file:
                file.writelines(self.contents())
            return read_image(path, **options)

    def __str__(self) -> str:
        return f"{self.archive}: {self.member}"


@dataclass(frozen=True)
class ZipMember(Member):
    """A member of a zip archive, as UK Biobank ships T1/T1.nii.gz in 1000223_20252_2_0.zip."""

    def contents(self) -> Iterator[bytes]:
        """The raw bytes of the member alone, so that an archive packed anew holds the same image; in parts."""
        try:
            yield from archives.chunks(self.archive, self.member)
        except KeyError:
            raise ValueError(self.lacking(archives.names(self.archive))) from None

    def lacking(self, names: Collection[str]) -> str:
        """What to say of an archive that has these members, but not the one that is wanted."""
        return f"no '{self.member}' in this archive"


@dataclass(frozen=True)
class TarMember(Member):
    """A member of a tar archive, compressed by gzip or not, whose place in it is known; see `data_modules.tars`."""

    offset: int  # of its first byte in the unpacked archive
    size: int  # bytes

    def contents(self) -> Iterator[bytes]:
        """The raw bytes of the member alone."""
        yield tars.content(self.archive, self.offset, self.size)


Raw = Path | list[Path] | Source
"""How a source may be written: a path is a `File`, a list of paths a `Series`."""


def source_of(raw: Raw) -> Source:
    """The source that a path, a list of paths or a source stands for."""
    if isinstance(raw, list):
        return Series(tuple(raw))
    return File(raw) if isinstance(raw, Path) else raw


@dataclass(frozen=True)
class Scan:
    """One raw image as a data set's layout lists it.

    Attributes:
        source: the file, the files of a DICOM series (a list, even of one), or a member of an archive.
        person: identifier of the person, equal over visits; it is hashed before it is stored.
        session: name of the visit.
        attributes: numbers known about it; NaN where unknown.
        beside: name -> what belongs to the image: "label_map", or another image that it can be made from ("flair").
        text: name of its text; "" if it has none, None for its path below the root without suffix.
        name: what lists of images call it; None for its path below the root without suffix.
        facts: name -> other numbers that the layout knows, such as boxes, as many for every image that has them.
        affine: voxel to world of the stored image, 4 4, mm, where the layout knows it and no file does.
    """

    source: Raw
    person: str
    session: str = ""
    attributes: dict[str, float] = field(default_factory=dict)
    beside: dict[str, Raw] = field(default_factory=dict)
    text: str | None = None
    name: str | None = None
    facts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    affine: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "person", identifier(self.person))  # a blank more or less is no other person
        if not self.person:
            raise InputError(f"{self.path}: whose image it is is not known; expected an id of the person.")
        if IMAGE in self.beside:
            raise InputError(f"{self.path}: `beside` names an '{IMAGE}', which is what `source` is; give another name.")

    @property
    def sources(self) -> dict[str, Source]:
        """Name -> source; the image itself is "image"."""
        return {name: source_of(raw) for name, raw in {IMAGE: self.source, **self.beside}.items()}

    @property
    def path(self) -> Path:
        """The image's file or archive, or the folder of its series."""
        return source_of(self.source).path

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        return [path for source in self.sources.values() for path in source.files]

    def stamp(self) -> str:
        """Changes when a raw file is another or was written again; no path can be read from it. "" if one is lost."""
        try:
            stamps = [f"{name} {source.stamp()}" for name, source in self.sources.items()]
        except OSError:  # it is refused when it is read
            return ""
        return hashlib.sha256("".join(stamps).encode(errors=ANY_NAME)).hexdigest()


@dataclass(frozen=True)
class Rejected:
    """A raw image that was not taken, and why."""

    source: str
    reason: str
