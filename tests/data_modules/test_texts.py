"""Which text an image has, and which of several a batch, a request and a latent batch hold."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from write_texts import CHANNELS, TOKENS, write_texts

from data_modules import FolderDataModule
from data_modules.recipes.volumes import Preprocessing
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError

PEOPLE = [f"sub-{person:02}" for person in range(12)]
IMAGES = [f"{person}/{person}_ses-{visit}_T1w" for person in PEOPLE for visit in (1, 2)]


def write_table(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests of this file prepare."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def made(cohort: Path, small: Preprocessing, stores: Path) -> Any:
    """Makes a data module of the cohort, set up."""

    def make(text: Path | None, **options: Any) -> FolderDataModule:
        common = {"preprocessing": small, "store_dir": str(stores), "num_jobs": 1, "fractions": (0.5, 0.25, 0.25)}
        data = FolderDataModule(str(cohort), text=text and str(text), **common | options)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def numbers_of(data: FolderDataModule) -> list[tuple[int, ...]]:
    """Numbers of the texts of every image."""
    assert data.texts
    return [tuple(data.texts.rows(record)) for record in data.store.records]


def batches(data: FolderDataModule, split: Any, num: int) -> list[Batch]:
    """The first samples of a split, one by one."""
    dataset = data.dataset(split)
    return [dataset[position, position % len(dataset)] for position in range(num)]


def test_a_text_belongs_to_the_image_of_its_name(made: Any, tmp_path: Path) -> None:
    names = [*IMAGES[1:], IMAGES[5]]  # the first image has none, another two
    table = tmp_path / "table.csv"  # the number of each image, by which it can be told
    rows = [[name.rpartition("/")[2], number] for number, name in enumerate(IMAGES)]
    write_table(table, [["participant_id", "number"], *rows])
    data = made(write_texts(tmp_path / "t", names), table=str(table), attributes=["number"])
    assert len(data.store.records) == len(IMAGES)
    for record, numbers in zip(data.store.records, numbers_of(data), strict=True):
        name = IMAGES[round(record.attributes["number"])]
        assert numbers == tuple(number for number, other in enumerate(names) if other == name)
        text, first = data.texts.read(record), numbers[0] if numbers else None
        expected = torch.full_like(text, torch.nan) if first is None else data.texts.embeddings.read(first)
        np.testing.assert_array_equal(text, expected)


def test_a_table_may_name_the_text(made: Any, tmp_path: Path) -> None:
    table, cells = tmp_path / "table.csv", ["r0", "r1", "n/a"]
    write_table(table, [["participant_id", "report", "number"], *[[p, cells[k % 3], k] for k, p in enumerate(PEOPLE)]])
    texts = write_texts(tmp_path / "t", ["r1", "r0", "sub-02/sub-02_ses-1_T1w"])
    data = made(texts, table=str(table), attributes=["number"], text_column="report")
    found = {(record.attributes["number"] % 3, *numbers_of(data)[k]) for k, record in enumerate(data.store.records)}
    assert found == {(0, 1), (1, 0), (2,)}


def test_a_text_of_a_single_name_is_everybodys(made: Any, tmp_path: Path) -> None:
    data = made(write_texts(tmp_path / "t", ["T1-weighted image of a brain."] * 2))
    assert set(numbers_of(data)) == {(0, 1)}


def test_training_draws_a_text_and_evaluation_takes_the_first(made: Any, tmp_path: Path) -> None:
    data = made(write_texts(tmp_path / "t", ["prompt"] * 3))
    embeddings = data.texts.embeddings

    def drawn(split: Any, num: int) -> list[int]:
        found = [batch.condition.text for batch in batches(data, split, num)]
        every = torch.cat([embeddings.read(row) for row in range(3)])
        return [int((every.nan_to_num() == text.nan_to_num()).flatten(1).all(1).nonzero()) for text in found]

    first = drawn("train", 300)
    assert first == drawn("train", 300)  # of (seed, position) alone
    counts = Counter(first)
    assert all(70 < counts[row] < 130 for row in range(3))  # 100 each, standard deviation 8
    num = len(data.records["train"])
    assert {frozenset(first[index::num]) for index in range(num)} == {frozenset({0, 1, 2})}  # of every image each
    for split in ("val", "test"):
        assert set(drawn(split, 6)) == {0}


def test_batches_of_latents_keep_their_texts(made: Any, tmp_path: Path) -> None:
    data = made(write_texts(tmp_path / "t", ["prompt"] * 3))
    with_images = batches(data, "train", 10)
    data.read_latents(lambda batch: torch.zeros(len(batch.key), 2))
    for batch, other in zip(batches(data, "train", 10), with_images, strict=True):
        assert batch.image.numel() == 0
        np.testing.assert_array_equal(batch.condition.text, other.condition.text)


def test_requests_and_spec_know_of_texts(made: Any, tmp_path: Path) -> None:
    data = made(write_texts(tmp_path / "t", ["prompt"]))
    requests = data.requests("test", 2)
    assert "text" in requests.parts
    condition = requests.joined([0, 1]).condition
    assert condition.text is not None
    assert condition.text.shape == (2, TOKENS, CHANNELS)
    assert data.spec.text_encoder == "toy"
    assert data.spec.text_size == (TOKENS, CHANNELS)
    np.testing.assert_array_equal(data.text_null(), data.texts.embeddings.null)
    bare = made(None)
    assert "text" not in bare.requests("test", 2).parts
    assert bare.text_null() is None
    assert bare.dataset("train")[0, 0].condition.text is None
    assert bare.digest == data.digest  # images, and latents of them, are the same
    assert "text" in data.order()
    assert "text" not in bare.order()


def test_a_store_names_no_text(made: Any, stores: Path, tmp_path: Path) -> None:
    made(write_texts(tmp_path / "t", IMAGES))
    content = b"".join(path.read_bytes() for path in stores.rglob("*") if path.is_file())
    assert b"T1w" not in content


def test_texts_of_other_images_are_refused(made: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the 2 names") as refusal:
        made(write_texts(tmp_path / "t", ["sub-77/a", "sub-78/b"]))
    assert "sub-77" not in str(refusal.value)
    with pytest.raises(InputError, match=r"text_column: a column of no table"):
        made(None, text_column="report")
