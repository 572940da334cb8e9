"""Damaged bulk zips and tables of UK Biobank: each loads what it held, or what is valid, or is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_ukbiobank import EIDS, T1, nifti, write_ukbiobank, write_zip

from data_modules.tables import Numbers
from data_modules.ukbiobank import BulkMember
from data_modules.ukbiobank_table import of_people
from lit_medgen.errors import InputError

Mutant = Callable[[bytes, np.random.Generator], bytes]


def check_zips(num: int, folder: Path, mutant: Mutant) -> int:
    """Reads damaged zips; how many were refused."""
    path = write_zip(folder / f"{EIDS[0]}_20252_2_0.zip", {T1: nifti(folder, 0), "T1/T1.json": b"{}"})
    content, (voxels, affine) = path.read_bytes(), BulkMember(path, T1).read()
    refused = 0
    for seed in range(num):
        path.write_bytes(mutant(content, np.random.default_rng(seed)))
        try:
            found = BulkMember(path, T1).read()
        except ValueError as error:
            refused += 1
            line = " ".join(str(error).split())
            assert 10 < len(line) < 500
        else:
            np.testing.assert_array_equal(found[0], voxels)
            np.testing.assert_array_equal(found[1], affine)
    return refused


def check_tables(num: int, root: Path, mutant: Mutant) -> int:
    """Reads damaged tables; how many were refused. No cell has a checksum, so another digit is another number."""
    path = root / "ukb.csv"
    content, refused = path.read_bytes(), 0
    for seed in range(num):
        path.write_bytes(mutant(content, np.random.default_rng(seed)))
        try:
            known = of_people(root, "ukb.csv", [path], "normalised", Numbers())
        except InputError as error:
            refused += 1
            line = str(error)
            assert "\n" not in line
            assert line.startswith(str(path))
            assert not any(eid in line for eid in EIDS)
            continue
        for person in known.rows:
            assert int(person) > 0
            for name, value in known.of(person, "2").items():
                low, high = {"sex": (0, 1), "age_years": (0, 120)}.get(name, (0, 10_000))
                assert math.isnan(value) or low <= value <= high
    return refused


def test_damaged_zips_and_tables(tmp_path: Path, mutant: Mutant) -> None:
    """Five hundred files."""
    assert check_zips(250, tmp_path / "zips", mutant) > 100
    assert check_tables(250, write_ukbiobank(tmp_path / "root", 4), mutant) > 10


@pytest.mark.slow
def test_many_damaged_zips_and_tables(tmp_path: Path, mutant: Mutant) -> None:
    assert check_zips(2500, tmp_path / "zips", mutant) > 1000
    assert check_tables(2500, write_ukbiobank(tmp_path / "root", 4), mutant) > 100
