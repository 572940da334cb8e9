"""Files of text embeddings: what is stored is read, and every fault of a file is one line that names it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from write_texts import CHANNELS, ENCODER, SHA256, TOKENS, tensors, write_texts

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.text_embeddings import MAX_TOKENS, TextEmbeddings, refuse_other_encoder

NAMES = ["a/one", "two", "a/one", "three"]
KEY = "data.init_args.text"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_stored_is_read(tmp_path: Path, dtype: type) -> None:
    stored = tensors(len(NAMES))
    file = write_texts(tmp_path / "t", NAMES, tokens=stored["tokens"].astype(dtype))
    texts = TextEmbeddings(file, KEY)
    assert (texts.encoder, texts.encoder_sha256, texts.size) == (ENCODER, SHA256, (TOKENS, CHANNELS))
    assert texts.rows == {"a/one": [0, 2], "two": [1], "three": [3]}
    for row in range(len(texts)):
        text = texts.read(row)
        assert text.shape == (1, TOKENS, CHANNELS)
        assert text.dtype == torch.float32
        expected = np.where(stored["mask"][row][:, None], stored["tokens"][row].astype(np.float32), np.nan)
        np.testing.assert_array_equal(text[0], expected)
    np.testing.assert_array_equal(texts.null[:1], stored["null"][:1].astype(np.float32))
    assert texts.null[1:].isnan().all()


def test_a_copy_for_another_process_reads_the_same(tmp_path: Path) -> None:
    texts = TextEmbeddings(write_texts(tmp_path / "t", NAMES), KEY)
    copy = pickle.loads(pickle.dumps(texts))
    for row in range(len(texts)):
        np.testing.assert_array_equal(copy.read(row), texts.read(row))
    assert copy.digest == texts.digest


def test_another_text_is_another_file(tmp_path: Path) -> None:
    stored = tensors(len(NAMES))
    other = stored["tokens"].copy()
    other[0, 0, 0] += 1
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"tokens": other},
        {"mask": np.ones_like(stored["mask"])},
        {"null": stored["null"] + 1},
        {"encoder": "other"},
        {"encoder_sha256": "2" * 64},
        {"names": json.dumps([*NAMES[:3], "four"])},
    )
    digests = {TextEmbeddings(write_texts(tmp_path / "t", NAMES, **change), KEY).digest for change in changes}
    assert len(digests) == len(changes)


def test_a_token_that_is_not_finite_is_found_when_it_is_read(tmp_path: Path) -> None:
    values = tensors(len(NAMES))["tokens"]
    values[1, 0, 0], values[0, 2, 0] = np.inf, np.nan  # the second is padding
    texts = TextEmbeddings(write_texts(tmp_path / "t", NAMES, tokens=values), KEY)
    assert texts.read(0)[0, 0].isfinite().all()
    for read in (lambda: texts.read(1), texts.verify):
        with pytest.raises(InputError, match="text number 1: 1 numbers of its tokens are NaN or infinite"):
            read()


STORED = tensors(len(NAMES))
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "tensor": ({"null_mask": None}, "no tensor 'null_mask'"),
    "type": ({"tokens": STORED["tokens"].astype(np.float64)}, "tokens is stored as F64"),
    "mask type": ({"mask": STORED["mask"].astype(np.uint8)}, "mask is stored as U8"),
    "axes": ({"tokens": STORED["tokens"][0]}, "tokens has shape"),
    "null": ({"null": STORED["null"][:2]}, "null has shape"),
    "mask": ({"mask": STORED["mask"][:3]}, "mask has shape"),
    "no text": ({"tokens": STORED["tokens"][:0], "mask": STORED["mask"][:0], "names": "[]"}, "0 texts"),
    "huge": (
        {
            "tokens": np.zeros((4, MAX_TOKENS + 1, 1), np.float16),
            "mask": np.ones((4, MAX_TOKENS + 1), bool),
            "null": np.zeros((MAX_TOKENS + 1, 1), np.float16),
            "null_mask": np.ones(MAX_TOKENS + 1, bool),
        },
        "4097 tokens",
    ),
    "empty": ({"mask": np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)}, "text number 2 has no token"),
    "null NaN": ({"null": np.full_like(STORED["null"], np.nan)}, "NaN"),
    "encoder": ({"encoder": " "}, "no 'encoder'"),
    "hash": ({"encoder_sha256": None}, "no 'encoder_sha256'"),
    "short hash": ({"encoder_sha256": "12ab"}, "64 hexadecimal"),
    "names": ({"names": None}, "no 'names'"),
    "JSON": ({"names": "a, b"}, "no JSON"),
    "deep JSON": ({"names": "[" * 100_000}, "no JSON"),
    "list": ({"names": '{"a": 1}'}, "no JSON list"),
    "numbers": ({"names": "[1, 2, 3, 4]"}, "no JSON list"),
    "few names": ({"names": '["a"]'}, "1 names for 4 texts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    changed, words = FAULTS[fault]
    path = write_texts(tmp_path / "t.safetensors", NAMES, **changed)
    with pytest.raises(InputError) as refusal:
        TextEmbeddings(path, KEY)
    line = str(refusal.value)
    assert words in line
    assert line.startswith(f"{KEY}: {path}: ")
    assert "docs/text.md" in line
    assert "\n" not in line


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "t"):
        with pytest.raises(MissingDataError, match="no file"):
            TextEmbeddings(path, KEY)


def test_damaged_files_are_read_or_refused(
    tmp_path: Path, mutant: Callable[[bytes, np.random.Generator], bytes]
) -> None:
    """500 mutants of the whole file, and of its header alone, where more of it is read."""
    random = np.random.default_rng(0)
    path = write_texts(tmp_path / "t", NAMES)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    lines = []
    for number in range(500):
        damaged = mutant(content[:header], random) + content[header:] if number % 2 else mutant(content, random)
        path.write_bytes(damaged)
        try:
            texts = TextEmbeddings(path, KEY)
            shapes = {texts.read(row).shape for row in range(len(texts))}
            assert shapes == {(1, *texts.size)}
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 300
    assert not any("\n" in line for line in lines)


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    bare = DataSpec(1, (8, 8), (1.0, 1.0))
    trained = TextEmbeddings(write_texts(tmp_path / "t", NAMES), KEY).described_in(bare)
    refuse_other_encoder(trained, trained, KEY)
    refuse_other_encoder(trained, replace(trained, text_size=(TOKENS - 1, CHANNELS)), KEY)
    for change, words in (
        ({"text_encoder": "other"}, "by other (000"),
        ({"text_encoder_sha256": "2" * 64}, "2222"),
        ({"text_encoder": ""}, "by no encoder"),
        ({"text_size": (TOKENS, CHANNELS + 1)}, "of 3 channels"),
        ({"text_size": (TOKENS + 1, CHANNELS)}, "texts of 4 tokens"),
    ):
        with pytest.raises(InputError) as refusal:
            refuse_other_encoder(trained, replace(trained, **change), f"{KEY} FILE")  # type: ignore[arg-type]
        assert words in str(refusal.value)
        assert str(refusal.value).startswith(f"{KEY} FILE: ")


def test_the_spec_keeps_its_encoder(tmp_path: Path) -> None:
    spec = TextEmbeddings(write_texts(tmp_path / "t", NAMES), KEY).described_in(DataSpec(1, (8, 8), (1.0, 1.0)))
    assert DataSpec.from_plain(json.loads(json.dumps(spec.plain()))) == spec


def test_the_spec_keeps_the_names_of_categories() -> None:
    spec = DataSpec(1, (8, 8), (1.0, 1.0), category_names={"scanner": ("GE", "Philips")})
    assert DataSpec.from_plain(json.loads(json.dumps(spec.plain()))) == spec
    before = {name: value for name, value in spec.plain().items() if name != "category_names"}
    assert DataSpec.from_plain(before) == DataSpec(1, (8, 8), (1.0, 1.0))  # of a checkpoint that knows no categories
