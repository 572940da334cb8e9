"""Which of the texts of a file of embeddings belong to an image.

A text and an image belong together if the text's name is the one that the data set gives (a column of a table), or else
the image's path below the root without its suffix. Where a file has a single name, its texts are everybody's. A store
keeps hashes of names alone: a path may say whose image it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_modules.listing import stem_of
from data_modules.records import Record, text_hash
from data_modules.sources import Scan, Series, source_of
from lit_medgen.errors import InputError
from lit_medgen.output import say
from lit_medgen.text_embeddings import TextEmbeddings

KEY = "data.init_args.text"


class ImageTexts:
    """The texts of images.

    Args:
        path: a file of embeddings; see `lit_medgen.text_embeddings`.
    """

    def __init__(self, path: Path | str) -> None:
        self.embeddings = TextEmbeddings(path, KEY)
        self._absent = torch.full((1, *self.embeddings.size), torch.nan)
        rows = self.embeddings.rows
        self._everybodys = next(iter(rows.values())) if len(rows) == 1 else None
        self._rows: dict[str, list[int]] = {}
        for name, numbers in rows.items():
            self._rows.setdefault(text_hash(name), []).extend(numbers)

    def rows(self, record: Record) -> Sequence[int]:
        """Numbers of the texts of an image; none if it has no text."""
        return self._rows.get(record.text, ()) if self._everybodys is None else self._everybodys

    def read(self, record: Record, choice: int = 0) -> Tensor:
        """1 l d: one of the texts of an image, the first for choice 0; NaN if it has none."""
        rows = self.rows(record)
        return self.embeddings.read(rows[choice % len(rows)]) if rows else self._absent

    def tell_of(self, records: Iterable[Record]) -> None:
        """Says how many images have a text, without names; InputError if none has."""
        there = [bool(self.rows(record)) for record in records]
        if not any(there):
            raise InputError(
                f"{KEY}: none of the {len(self._rows)} names in {self.embeddings.path} is that of an image; give a "
                "text the name of its image's file, with folders below data.init_args.root, without suffix, or that "
                "in the table's column data.init_args.text_column."
            )
        if not all(there):
            say(f"{sum(there)} of {len(there)} images have a text in {self.embeddings.path}; that of others is absent")


def name_of(scan: Scan, root: Path) -> str:
    """The name of an image, and of its text, where the data set gives none: its path below the root without suffix."""
    source = source_of(scan.source)
    folder = isinstance(source, Series) and len(source.slices) > 1
    name = source.path.name if folder else stem_of(source.path)
    parent = source.path.parent
    return (parent.relative_to(root) / name if parent.is_relative_to(root) else Path(name)).as_posix()
