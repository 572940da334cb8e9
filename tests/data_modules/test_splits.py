"""Splits: people, not images, are divided, and nobody changes sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.folder import FolderDataModule
from data_modules.records import Record
from data_modules.splits import SPLITS, Fold, Split, split_of
from data_modules.store import Array, StoreAddress
from data_modules.withdrawals import person_hash
from lit_medgen.errors import InputError

FRACTIONS = (0.7, 0.15, 0.15)
PEOPLE = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12, unique=True)
SEEDS = st.integers(0, 2**31)


@dataclass
class FakeStore:
    """Records without volumes."""

    address: StoreAddress
    records: list[Record] = field(default_factory=list)
    axis: str = "axial"
    channels: tuple[str, ...] = ()

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


FOLDS = st.integers(2, 7)


@given(people=PEOPLE, seed=SEEDS, n=FOLDS, val=st.floats(0, 0.5))
@settings(deadline=None, database=None)
def test_each_person_is_tested_in_one_fold_of_all(people: list[str], seed: int, n: int, val: float) -> None:
    for person in people:
        found = [Fold(k, n).split_of(person, val, seed) for k in range(n)]
        assert found.count("test") == 1
        assert len(set(found) - {"test"}) == 1  # in all other folds on one side


@given(people=PEOPLE, seed=SEEDS)
@settings(deadline=None, database=None)
def test_two_folds_are_complementary(people: list[str], seed: int) -> None:
    tested = [{person for person in people if Fold(k, 2).split_of(person, 0.0, seed) == "test"} for k in (0, 1)]
    trained = [{person for person in people if Fold(k, 2).split_of(person, 0.0, seed) == "train"} for k in (0, 1)]
    assert tested[0] == trained[1]
    assert tested[1] == trained[0]


@given(people=PEOPLE, seed=SEEDS, n=FOLDS, val=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)))
@settings(deadline=None, database=None)
def test_resizing_validation_moves_nobody_out_of_a_test_fold(
    people: list[str], seed: int, n: int, val: tuple[float, float]
) -> None:
    for person in people:
        small, large = (Fold(0, n).split_of(person, share, seed) for share in sorted(val))
        assert (small == "test") == (large == "test")
        assert not (small == "val" and large == "train")


def test_folds_are_equal_on_average() -> None:
    num, n, val = 5000, 5, 0.25
    for k in range(n):
        found = [Fold(k, n).split_of(f"person {i}", val, seed=0) for i in range(num)]
        for split, share in (("test", 1 / n), ("val", val * (1 - 1 / n))):
            assert found.count(split) / num == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / num))


@pytest.mark.parametrize("text", ["", "1", "5 of 5", "0 of 1", "-1 of 5", "0/5", "1 of five", "1.0 of 5", "٠ of ٥"])
def test_a_fold_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"data\.init_args\.fold is .*such as '0 of 5'") as said:
        FolderDataModule(root=".", fold=text)
    assert "\n" not in str(said.value)


def people_of(fold: str, others: list[str], tmp_path: Path, exclude: Path | None = None) -> dict[Split, set[str]]:
    """Those of the splits of a data module, and of its spec, whose identity they are."""
    records = [record(person_hash(f"person {i}"), "") for i in range(40)] + [record(name, "") for name in others]
    module = FolderDataModule(root=".", fold=fold, store_dir=str(tmp_path), exclude=str(exclude) if exclude else None)
    with patch("data_modules.base.Store", lambda address: FakeStore(address, records)):
        module.setup("fit")
    assert len(set(module.spec.people.values())) == 3
    return {split: {r.person for r in found} for split, found in module.records.items()}


def test_folds_of_a_data_module(tmp_path: Path) -> None:
    """A partition of the people into test sets; adding people moves nobody, and leaving some out moves nobody else."""
    folds = [people_of(f"{k} of 3", [], tmp_path) for k in range(3)]
    everybody = set.union(*folds[0].values())
    assert len(everybody) == 40
    assert sum(len(each["test"]) for each in folds) == 40
    assert set.union(*(each["test"] for each in folds)) == everybody
    (tmp_path / "gone.txt").write_text("person 3\nperson 4\n")
    gone = {person_hash("person 3"), person_hash("person 4")}
    more = people_of("1 of 3", ["new", "newer"], tmp_path)
    fewer = people_of("1 of 3", [], tmp_path, tmp_path / "gone.txt")
    for split in SPLITS:
        assert more[split] - {"new", "newer"} == folds[1][split]
        assert fewer[split] == folds[1][split] - gone
