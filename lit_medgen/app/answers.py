"""What the page answers when something is pressed or turned: the state of a visitor in, the next state out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from lit_medgen.app.desk import Desk, Made, Wishes
from lit_medgen.app.maps import LabelMap, decoded, empty_body, read_map, uploaded
from lit_medgen.app.views import planes, shades, side_by_side, window_of, windows
from lit_medgen.errors import InputError
from lit_medgen.files import write_atomically
from lit_medgen.images.origin import STATEMENTS
from lit_medgen.images.png import as_png

KEPT_S = 3600
"""Files of earlier images are removed after so many seconds."""


def whole(number: int | None, name: str) -> int:
    """The number of an input; InputError if it was left empty."""
    if number is None:
        raise InputError(f"no {name}; give a whole number.")
    return int(number)


@dataclass(frozen=True)
class Session:
    """What one visitor has at hand.

    Attributes:
        label_map: that is painted; None for models that take none.
        index: the axial slice of it that the browser has.
        source: folder of the image that others are made from.
        made: the images of the last press of the button.
        shown: the one that is looked at.
    """

    label_map: LabelMap | None = None
    index: int = 0
    source: Path | None = None
    made: tuple[Made, ...] = ()
    shown: int = 0

    @property
    def looked_at(self) -> Made:
        """The image that is looked at; InputError before there is one."""
        if not self.made:
            raise InputError("nothing made yet; press Make first.")
        return self.made[self.shown]

    def with_map(self, label_map: LabelMap) -> Session:
        """The session with another map, of which the browser has the middle slice."""
        return replace(self, label_map=label_map, index=label_map.num_slices // 2)

    def painted(self, slice_sent: str, desk: Desk) -> Session:
        """The session with what the browser has painted on its slice."""
        assert self.label_map is not None
        return replace(self, label_map=self.label_map.painted(self.index, decoded(slice_sent, desk.spec)))


@dataclass(frozen=True)
class Look:
    """How an image is looked at.

    Attributes:
        at: the voxel x y z through which the slices of a volume go.
        channel: number of the channel; colours are seen together.
        window: its name, see `views`.
        level: of a window of the visitor's own, in the units of the data.
        width: of the same.
    """

    at: Sequence[int]
    channel: int
    window: str
    level: float
    width: float


class Answers:
    """What the page answers, for every visitor.

    Args:
        desk: makes images and files.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk, self.spec = desk, desk.spec
        parts = desk.model.required
        self.takes_map, self.takes_source = "label_map" in parts, "source" in parts

    def start(self) -> Session:
        """The session of a new visitor."""
        return Session().with_map(empty_body(self.spec)) if self.takes_map else Session()

    # What images are made from.

    def empty(self, session: Session) -> Session:
        """The session with a map of a body without nodules."""
        return session.with_map(empty_body(self.spec))

    def map_of_data(self, session: Session, number: int | None) -> Session:
        """The session with a map of the data."""
        return session.with_map(self.desk.map_of_data(whole(number, "number of a map")))

    def opened(self, session: Session, path: str) -> Session:
        """The session with the map of an uploaded file, which is not kept."""
        return session.with_map(read_map(uploaded(path, self._folder("map"), "map"), self.spec))

    def turned(self, session: Session, slice_sent: str, index: int) -> Session:
        """The session whose browser gets another slice of the map, once what it painted is taken."""
        return replace(session.painted(slice_sent, self.desk), index=int(index))

    def sourced(self, session: Session, path: str) -> Session:
        """The session with an uploaded image to make others from; InputError for one that does not fit."""
        folder = self._folder("source")
        file = uploaded(path, folder, "source")
        try:
            self.desk.requests(Wishes(0, source=folder))
        except InputError as error:
            file.unlink()
            raise InputError(str(error).replace(str(file), file.name)) from error
        return replace(session, source=folder)

    def _folder(self, of: str) -> Path:
        return Path(mkdtemp(prefix=f"{of}-", dir=self.desk.folder))

    def _folder_of_files(self) -> Path:
        """A new folder for files of an image; old ones go, which the server has copied long ago."""
        for folder in self.desk.folder.glob("files-*"):
            if time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder)
        return self._folder("files")

    # Images.

    def make(self, session: Session, wishes: Wishes, num: int) -> Iterator[tuple[Session, str]]:
        """The session with so many images, from the seed of the wishes on, and what is said of them; after each one."""
        if self.takes_source and session.source is None:
            raise InputError(f"{type(self.desk.model).__name__} makes images from a source; open one first.")
        wishes = replace(wishes, label_map=session.label_map, source=session.source)
        start, session = time.perf_counter(), replace(session, made=(), shown=0)
        for made in self.desk.make_several(wishes, num):
            session = replace(session, made=(*session.made, made))
            seconds = time.perf_counter() - start
            yield session, f"{len(session.made)} of {num} made, {seconds:.1f} s. {self.caption(session)}"

    def caption(self, session: Session) -> str:
        """What is said of the image that is looked at."""
        made = session.looked_at
        return f"{made.name}: {STATEMENTS[made.origin]}"

    def chosen(self, session: Session, number: int) -> Session:
        """The session that looks at another of its images."""
        return replace(session, shown=number)

    def thumbnails(self, session: Session) -> list[tuple[np.ndarray, str]]:
        """The middle of each image in the whole range, with its seed."""
        middle = [length // 2 for length in self.spec.size]
        whole = next(iter(windows(self.spec).values()))
        found = []
        for made in session.made:
            first, *_ = planes(made.values(self.spec), self.spec, middle, 0)
            found.append((shades(first, whole), f"seed {made.seed}"))
        return found

    def pictures(self, session: Session, look: Look) -> list[np.ndarray]:
        """The slices that are looked at, uint8, rows columns or rows columns 3."""
        window = window_of(look.window, self.spec, look.level, look.width)
        seen = planes(session.looked_at.values(self.spec), self.spec, look.at, look.channel)
        return [shades(plane, window) for plane in seen]

    def picture_file(self, session: Session, pictures: Sequence[np.ndarray]) -> Path:
        """A PNG of the pictures as they are seen, which says what they are."""
        made = session.looked_at
        path = self._folder_of_files() / f"{made.name}.png"
        write_atomically(path, as_png(side_by_side(pictures), STATEMENTS[made.origin]))
        return path

    def files(self, session: Session) -> tuple[Path, Path]:
        """NIfTI and DICOM of the image that is looked at."""
        made = session.looked_at
        folder = self._folder_of_files()
        return self.desk.file(made, "nifti", folder), self.desk.file(made, "dicom", folder)
