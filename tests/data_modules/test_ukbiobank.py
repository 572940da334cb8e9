"""`UKBiobankDataModule`: bulk zips, tables in three naming schemes, visits of a person, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_ukbiobank import EIDS, module, write_ukbiobank

from data_modules.records import person_hash


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_ukbiobank(tmp_path_factory.mktemp("ukb") / "bulk", flair=True)


def attributes(root: Path, store: Path, **options: Any) -> dict[tuple[str, str], dict[str, float]]:
    """Person (hashed) and visit -> what the store knows of them."""
    accepted, _ = module(root, store, **options).prepare()
    return {(record.person, record.session): record.attributes for record in accepted}


def test_zips_are_read_as_they_are(root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    data = module(root, tmp_path)
    data.prepare_data()
    data.setup("fit")
    assert len(data.store.records) == 9
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert data.anatomy == "brain"
    known = {record.person: record.attributes for record in data.store.records if record.session == "2"}
    third = known[person_hash(EIDS[2])]
    assert third == {"sex": 0.0, "age_years": 52.0, "ventricles_ml": 32.0, "brain_ml": 1400.002}
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (1, 1, 10, 12, 9)
    assert data.spec.codes == ("sex",)


def test_visits_of_a_person_stay_together_and_have_their_own_age(root: Path, tmp_path: Path) -> None:
    found = attributes(root, tmp_path)
    first = person_hash(EIDS[0])
    assert found[first, "2"]["age_years"] == 50
    assert found[first, "3"]["age_years"] == 53
    assert found[first, "3"]["sex"] == 0
    assert math.isnan(found[first, "3"]["ventricles_ml"])
