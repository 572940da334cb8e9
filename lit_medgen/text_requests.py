"""Requests for images made from texts, which the user names in a file of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lit_medgen.batch import DataSpec, Request, Requests
from lit_medgen.errors import InputError
from lit_medgen.sampling import refuse_unfit_parts, without_conditions
from lit_medgen.text_embeddings import TextEmbeddings, refuse_other_encoder
from lit_medgen.training.generator import Generator

ALL = "all"
"""What stands for every name of the file."""


def open_texts(given: str | None, of_data: str | None, model: Generator, spec: DataSpec) -> TextEmbeddings:
    """The embeddings that texts are taken from: the file that is given, or else that of the data.

    InputError without one, for a model that is not made from texts, and for another encoder than that of its training
    data, whose spec is given.
    """
    refuse_unfit_parts(model, {"text", *model.required})
    path, key = (given, "--text_embeddings") if given else (of_data, "data.init_args.text")
    if path is None:
        raise InputError("--text_embeddings: no file of embeddings; give one that docs/text.md describes.")
    texts = TextEmbeddings(path, key)
    refuse_other_encoder(spec, texts.described_in(spec), f"{key} {path}")
    return texts


def of_every_text(texts: TextEmbeddings, seeds: Sequence[int] | None, num: int | None) -> Requests:
    """A request for each name, again from the first where more seeds are given; `with_texts` reads the texts."""
    names = list(texts.rows)
    requests = without_conditions(seeds or range(len(names) if num is None else num))
    return replace(requests, made_from=[{"text": names[i % len(names)]} for i in range(len(requests))])


def with_texts(requests: Requests, texts: TextEmbeddings, name: str | None, where: Callable[[int], str]) -> Requests:
    """The same requests made from the texts that they name, the first of several of a name.

    Args:
        requests: what else is asked for.
        texts: where the texts are taken from.
        name: the text of those that name none; None: they are made from none.
        where: number of a request -> what names its text, for messages.
    """
    names: list[str | None] = [row.get("text", name) for row in requests.made_from]
    for index, each in enumerate(names):
        if each is not None and each not in texts.rows:
            raise InputError(
                f"{where(index)} {each!r}: no text of that name among the {len(texts.rows)} in {texts.path}; names are "
                "those in its metadata."
            )
    for each in set(names) - {None}:  # all texts, before hours are spent on the images of the first of them
        texts.read(texts.rows[str(each)][0])

    def read(index: int) -> Request:
        request, each = requests.read(index), names[index]
        if each is None:
            return request
        return replace(request, condition=replace(request.condition, text=texts.read(texts.rows[each][0])))

    rows = [row if each is None else {**row, "text": each} for row, each in zip(requests.made_from, names, strict=True)]
    return replace(requests, made_from=rows, parts=requests.parts | {"text"}, read=read)
