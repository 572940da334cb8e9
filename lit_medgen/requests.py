"""Requests from the command line: attributes, folders of label maps and sources, a table, or the data's own people."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_medgen.batch import Condition, DataSpec, Part, Request, Requests, Split, TrainingData
from lit_medgen.completion_requests import GIVEN, completing, giving, masks_for, refuse_unfit_completion
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.images.resampling import finer_affine
from lit_medgen.request_files import listed_images, read_label_map, read_source
from lit_medgen.sampling import checked_attributes, like_people, refuse_unfit_parts, without_conditions
from lit_medgen.text_requests import ALL, of_every_text, open_texts, with_texts
from lit_medgen.training.generator import Generator

NUM = 8
"""Images that are made where neither their number nor anything that they are made from is given."""
COLUMNS = ("seed", "label_map", "source", "given", "mask", "text")
"""Columns of a table of requests that are no attributes."""
PART_OF: dict[str, Part] = {
    "label_map": "label_map",
    "source": "source",
    "given": "image",
    "mask": "image",
    "text": "text",
}
"""Column -> the part of a condition that it gives."""


@dataclass(frozen=True)
class RequestOptions:
    """What the options of `Verbs.sample` ask for, by their names (`table`: requests); None where one is not given."""

    num: int | None = None
    seeds: Sequence[int] | None = None
    attributes: Mapping[str, float | str | None] | None = None
    label_maps: str | None = None
    sources: str | None = None
    given: Sequence[int] | None = None
    table: str | None = None
    like: Split | None = None
    text: str | None = None
    text_embeddings: str | None = None
    texts_of_data: str | None = None
    """The file of embeddings that the data has, where none is given."""
    masks: str | None = None

    @property
    def completed(self) -> dict[str, Any]:
        """What says which parts of images are given, by the names of a row; empty for no completion."""
        said = {"given": self.given, "mask": self.masks}
        return {name: value for name, value in said.items() if value is not None}

    def __post_init__(self) -> None:
        seeds = self.seeds
        if seeds is not None and (not seeds or len({seed for seed in seeds if 0 <= seed < 2**63}) < len(seeds)):
            raise InputError(
                f"--seeds {list(seeds)}: give at least one seed, from 0 to 2**63 - 1, and each once (or --num)."
            )
        if self.num is not None and self.num < 1:
            raise InputError(f"--num is {self.num}: give at least one seed, so 1 or more.")
        others = (self.num, seeds, self.attributes, self.label_maps, self.sources, self.given, self.like, self.text)
        if self.table and any(other is not None for other in (*others, self.masks)):
            raise InputError("--requests: the table says all that is asked for; leave out the other options.")
        if self.like and (self.label_maps or self.sources):
            raise InputError(f"--like {self.like}: the data's own label maps and sources are taken; give one or other.")
        if self.completed and not (self.sources or self.like):
            says = "--given: says which slices" if self.given is not None else "--masks: say which voxels"
            raise InputError(f"{says} of a source are given; add --sources DIR or --like test.")
        if len(self.completed) > 1:
            raise InputError("--masks: not together with --given; give the mask of all that is to be made anew.")
        if self.text_embeddings and self.text is None and not self.table:
            raise InputError(
                "--text_embeddings: not which of its texts; add --text NAME, or all, or --requests with a column text."
            )
        if self.text == ALL and (self.label_maps or self.sources or self.like):
            raise InputError("--text all: an image for each text, without other files or people; give the name of one.")


def requested(options: RequestOptions, model: Generator, spec: DataSpec, data: TrainingData | None) -> Requests:
    """The requests that options make to a model trained on data of this spec; `like` needs data, set up.

    InputError for what the model cannot make images from. Every file is read once to see that it fits, and again when
    its image is made, so that one is in memory at a time.
    """
    refuse_unfit_completion(options.completed, model, spec)
    text, texts = options.text, None
    if text is not None:
        texts = open_texts(options.text_embeddings, options.texts_of_data, model, spec)
    if options.table:
        requests = _from_table(Path(options.table), model, spec)
    elif options.like:
        if data is None:
            raise InputError(f"--like {options.like}: no data; add --config FILE with a `data` section.")
        requests = _like(options, model, spec, data)
    elif options.label_maps or options.sources:
        requests = _from_folders(options, model, spec)
    elif texts and text == ALL:
        requests = of_every_text(texts, options.seeds, options.num)
    else:
        requests = without_conditions(options.seeds or range(NUM if options.num is None else options.num))
    if options.table and "text" in requests.parts:
        texts = open_texts(options.text_embeddings, options.texts_of_data, model, spec)
    if texts:
        requests = with_texts(requests, texts, text, _naming(options.table))
    if options.attributes:
        requests = showing(requests, checked_attributes(model, options.attributes, spec))
    refuse_unfit_parts(model, requests.parts)
    return requests


def _naming(table: str | None) -> Callable[[int], str]:
    """Number of a request -> the option or the cell that names its text, for messages."""
    return lambda index: f"--requests {table}, row {index + 2}: text" if table else "--text"


def showing(requests: Requests, values: Mapping[str, float]) -> Requests:
    """The same requests, all with these attributes."""

    def read(index: int) -> Request:
        request = requests.read(index)
        attributes = request.condition.attributes | {name: torch.tensor([value]) for name, value in values.items()}
        return replace(request, condition=replace(request.condition, attributes=attributes))

    known = {name: value for name, value in values.items() if value == value}  # NaN is asked for nothing
    made_from = [{**{k: v for k, v in row.items() if k not in values}, **known} for row in requests.made_from]
    return replace(requests, made_from=made_from, parts=requests.parts | {"attributes"}, read=read)


def _like(options: RequestOptions, model: Generator, spec: DataSpec, data: TrainingData) -> Requests:
    """Requests like people of the data, request i like the i-th; of a completion, with parts of their images given."""
    assert options.like is not None
    if options.completed:
        requests = completing(data.requests(options.like), options.given, options.masks, spec)
        requests = requests.only({*model.required, *model.optional}, model.attributes)
    else:
        requests = like_people(model, data, options.like, None)
    if not len(requests):
        raise InputError(
            f"--like {options.like}: there are no {options.like} people; train with other data.init_args.fractions."
        )
    seeds = options.seeds or range(len(requests) if options.num is None else options.num)
    return requests.chosen([seed % len(requests) for seed in seeds], seeds)


# Files.


def _from_folders(options: RequestOptions, model: Generator, spec: DataSpec) -> Requests:
    """One request for each label map or source of a folder; of both, those of the same name belong together."""
    folders = {"label_map": options.label_maps, "source": options.sources}
    files = {name: listed_images(f"--{name}s", Path(folder)) for name, folder in folders.items() if folder}
    names = sorted(next(iter(files.values())))
    for name, listed in files.items():
        if sorted(listed) != names:
            other = sorted(set(names).symmetric_difference(listed))[0]
            raise InputError(
                f"--{name}s {folders[name]}: {other!r} is in one of the two folders only; name files alike."
            )
    rows: list[dict[str, Any]] = [{name: listed[stem] for name, listed in files.items()} for stem in names]
    if options.given is not None:
        rows = [{**row, "given": list(options.given)} for row in rows]
    if options.masks is not None:
        masks = masks_for(options.masks, names)
        rows = [{**row, "mask": mask} for row, mask in zip(rows, masks, strict=True)]
    if options.text is not None:
        rows = [{**row, "text": options.text} for row in rows]
    seeds = options.seeds or range(len(rows) if options.num is None else options.num)
    if options.seeds and len(seeds) == 1:
        seeds = [seeds[0]] * len(rows)
    if options.seeds and len(seeds) < len(rows):
        raise InputError(f"--seeds: {len(seeds)} for {len(rows)} files; give one for all, or one for each.")
    return _of_rows([rows[i % len(rows)] for i in range(len(seeds))], seeds, model, spec)


def _from_table(path: Path, model: Generator, spec: DataSpec) -> Requests:
    """The requests of a CSV file, a row each; paths are relative to it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, names = list(table), [name.strip() for name in table.fieldnames or ()]
    except FileNotFoundError as error:
        raise MissingDataError(f"--requests: no file '{path}'.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"--requests {path}: no CSV file ({describe(error)}).") from error
    if not rows:
        raise InputError(f"--requests {path}: no rows; give a header and a row for each image.")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--requests {path}: two columns are called {repeated[0]!r}; keep one of them.")
    numbered = enumerate(rows, start=2)  # as an editor shows them, below the header
    read = [_read_row(row, f"--requests {path}, row {k}", path.parent, model, spec) for k, row in numbered]
    seeds = [seed for seed, _ in read]
    given = [seed for seed in seeds if seed is not None]
    if given and len(given) < len(seeds):
        raise InputError(f"--requests {path}: some rows have a seed and others none; give all or leave out the column.")
    return _of_rows([row for _, row in read], given or range(len(read)), model, spec)


def _read_row(
    row: Mapping[Any, Any], where: str, folder: Path, model: Generator, spec: DataSpec
) -> tuple[int | None, dict[str, Any]]:
    """The seed of a row of a table, and what the image is made from; InputError for cells that say nothing sensible."""
    if None in row or None in row.values():
        raise InputError(f"{where}: not as many cells as the header has columns.")
    cells = {str(name).strip(): str(cell).strip() for name, cell in row.items()}
    seed = cells.get("seed", "")
    if seed and not (seed.isdecimal() and int(seed) < 2**63):
        raise InputError(f"{where}: seed is {seed!r}; give a whole number from 0 to 2**63 - 1.")
    made_from: dict[str, Any] = {}
    for name in ("label_map", "source", "mask"):
        if cell := cells.get(name):
            made_from[name] = folder / cell
            if not made_from[name].exists():
                raise MissingDataError(f"{where}: no file '{made_from[name]}'; paths are relative to the table.")
    if cell := cells.get("text"):
        made_from["text"] = cell
    if cell := cells.get("given"):
        if not all(word.isdecimal() for word in cell.split()):
            raise InputError(f"{where}: given is {cell!r}; give numbers of slices with blanks between.")
        made_from["given"] = [int(word) for word in cell.split()]
    refuse_unfit_completion(made_from, model, spec, f"{where}: ")
    missing = [column for column, part in PART_OF.items() if part in model.required and column not in made_from]
    if missing or (GIVEN.intersection(made_from) and "source" not in made_from):
        column, rows = (missing[0], "every row") if missing else ("source", "every row with given slices or a mask")
        raise InputError(f"{where}: no {column}, from which this image is made; the table needs one in {rows}.")
    values = {name: cell or None for name, cell in cells.items() if name not in COLUMNS}
    return int(seed) if seed else None, made_from | checked_attributes(model, values, spec, where)


def _of_rows(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], model: Generator, spec: DataSpec) -> Requests:
    """Requests of what each image is made from: paths, given slices, attributes by name."""
    parts: set[Part] = set()
    for row in rows:
        parts |= {"label_map"} if "label_map" in row else set()
        parts |= {"image"} if GIVEN.intersection(row) else {"source"} if "source" in row else set()
        parts |= {"text"} if "text" in row else set()
        parts |= {"attributes"} if any(name in row for name in model.attributes) else set()
    refuse_unfit_parts(model, parts)

    def read(index: int) -> Request:
        return _read(rows[index], seeds[index], model, spec)

    last_of = {id(row): index for index, row in enumerate(rows)}  # with more seeds than files, rows come again
    for index in last_of.values():  # all files, before hours are spent on the images of the first of them
        read(index)
    shown = [
        {name: value.name if isinstance(value, Path) else value for name, value in row.items() if value == value}
        for row in rows
    ]
    return Requests(seeds, shown, frozenset(parts), read)


def _read(row: Mapping[str, Any], seed: int, model: Generator, spec: DataSpec) -> Request:
    """The request of one row; its geometry is that of the source, if that is on the grid, or of the label map.

    Without either it is the grid of the data, so that requests with and without files can be joined.
    """
    attributes = {name: torch.tensor([row[name]], dtype=torch.float32) for name in model.attributes if name in row}
    condition, affine = Condition(attributes=attributes), None
    if path := row.get("label_map"):
        label_map, affine = read_label_map(path, spec)
        condition = replace(condition, label_map=label_map)
    if path := row.get("source"):
        completed = bool(GIVEN.intersection(row))
        expected = replace(spec, sources=(), source_size=()) if completed else model.source_spec(spec)
        source, own = read_source(path, expected)
        if own is not None and (source.shape[2:] == tuple(spec.size) or model.reconstructs):
            affine = finer_affine(own, expected.size, spec.size)
        condition = giving(condition, source, row, spec) if completed else replace(condition, source=source)
    return Request([seed], condition, affine=spec.affine()[None] if affine is None else affine)
