"""Splits: people, not images, are divided, and nobody changes sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.folder import FolderDataModule
from data_modules.records import Record
from data_modules.splits import SPLITS, Split, split_of
from data_modules.store import Array, StoreAddress

FRACTIONS = (0.7, 0.15, 0.15)
PEOPLE = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12, unique=True)
SEEDS = st.integers(0, 2**31)


@dataclass
class FakeStore:
    """Records without volumes."""

    address: StoreAddress
    records: list[Record] = field(default_factory=list)
    axis: str = "axial"

    @property
    def arrays(self) -> dict[str, Array]:
        return self.address.preprocessing.arrays(0)


def record(person: str, session: str) -> Record:
    return Record(f"{person}/{session}", person, session, "", 0.0, np.eye(4), {})


def split_records(records: list[Record], seed: int) -> dict[Split, list[Record]]:
    """What a data module makes of them; a pretended person without images stands in training."""
    anchor = next(name for i in range(10_000) if split_of(name := f"anchor {i}", FRACTIONS, seed) == "train")
    module = FolderDataModule(root=".", fractions=FRACTIONS, seed=seed)
    with patch("data_modules.base.Store", lambda address: FakeStore(address, [*records, record(anchor, "")])):
        module.setup("fit")
    return {split: [r for r in found if r.person != anchor] for split, found in module.records.items()}


@given(people=PEOPLE, seed=SEEDS, data=st.data())
@settings(deadline=None, database=None)
def test_no_person_is_in_two_splits_and_no_image_is_lost(people: list[str], seed: int, data: st.DataObject) -> None:
    visits = data.draw(st.lists(st.tuples(st.sampled_from(people), st.text(max_size=8)), min_size=1, max_size=40))
    splits = split_records([record(person, session) for person, session in visits], seed)
    owners = [{r.person for r in splits[split]} for split in SPLITS]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len({person for person, _ in visits})
    assert sum(len(found) for found in splits.values()) == len(visits)


@given(people=PEOPLE, others=PEOPLE, seed=SEEDS)
@settings(deadline=None, database=None)
def test_adding_people_moves_nobody(people: list[str], others: list[str], seed: int) -> None:
    before = split_records([record(person, "") for person in people], seed)
    after = split_records([record(person, "") for person in [*others, *people]], seed)
    for split in SPLITS:
        assert {r.person for r in before[split]} <= {r.person for r in after[split]}


@given(people=PEOPLE, seed=SEEDS, test=st.floats(0, 0.5), val=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)))
@settings(deadline=None, database=None)
def test_resizing_validation_never_moves_test_people(
    people: list[str], seed: int, test: float, val: tuple[float, float]
) -> None:
    for person in people:
        small, large = (split_of(person, (1 - test - v, v, test), seed) for v in sorted(val))
        assert (small == "test") == (large == "test")
        assert not (small == "val" and large == "train")  # a larger validation split keeps whom it has


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.1), (0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.9, 0.1, 0.0)]
)
def test_shares_are_met_on_average(fractions: tuple[float, float, float]) -> None:
    num = 5000
    found = [split_of(f"person {i}", fractions, seed=0) for i in range(num)]
    for split, share in zip(SPLITS, fractions, strict=True):
        assert found.count(split) / num == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / num))


def test_another_seed_is_another_split() -> None:
    first, second = ([split_of(f"person {i}", FRACTIONS, seed) for i in range(200)] for seed in (0, 1))
    assert first != second


def test_a_split_is_the_same_on_every_machine() -> None:
    found = [split_of(f"person {i}", FRACTIONS, seed=0) for i in (0, 1, 2, 3, 13, 18)]
    assert found == ["train", "test", "test", "train", "val", "val"]  # another result moves people of runs already made


@pytest.mark.parametrize("name", ["", "0", "sub-01", "Ünal/§", "x" * 500])
def test_any_name_has_a_place(name: str) -> None:
    assert split_of(name, FRACTIONS, seed=0) in SPLITS
