"""1,000 damaged CT slices and 500 damaged XML files: each is prepared as what it says, or refused in one line."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_lidc import SIDE, TinyScan

from data_modules.lidc.lidc import LIDCDataModule
from data_modules.preparing import _prepare_one
from data_modules.recipes.ct_slices import ANNOTATIONS, CTSlices
from data_modules.records import Record
from data_modules.sources import LABEL_MAP, Rejected, Scan
from data_modules.store import StoreAddress
from data_modules.volume_files import array_path

Mutant = Callable[[bytes, np.random.Generator], bytes]


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    folder = TinyScan(num_slices=3, nodule=(1, 1)).write(tmp_path / "raw")
    return Scan(sorted(folder.glob("*.dcm")), "LIDC-IDRI-0001", "", {}, {ANNOTATIONS: folder / "069.xml"})


@pytest.fixture
def address(tmp_path: Path) -> StoreAddress:
    address = StoreAddress(tmp_path / "store", "lidc", CTSlices(size=(SIDE, SIDE), share=1.0), "axial")
    (address.folder / "volumes").mkdir(parents=True)
    return address


def outcome(address: StoreAddress, scan: Scan) -> str | None:
    """Prepares one scan: None if it was taken and is sound, else why it was refused."""
    start = time.monotonic()
    with warnings.catch_warnings(action="ignore"):
        result = _prepare_one(address, scan, verify=False, figures=False, key="", others=[])
    assert time.monotonic() - start < 10
    if isinstance(result, Rejected):
        assert "\n" not in result.reason
        assert len(result.reason) < 600
        return result.reason
    assert_sound(address, result)
    return None


def assert_sound(address: StoreAddress, record: Record) -> None:
    path = address.folder / "volumes" / f"{record.key}.npy"
    images, maps = np.load(path), np.load(array_path(path, LABEL_MAP))
    assert images.dtype == np.int16
    assert images.shape == maps.shape
    assert images.shape[1:] == (SIDE, SIDE)
    assert len(images) in (2, 3)  # a slice that has come to lie on another, with its pixels, is a duplicate
    assert images.min() >= -1024
    assert maps.max() <= 7
    assert np.isfinite(record.affine).all()
    for file in (path, array_path(path, LABEL_MAP), path.with_suffix(".json")):
        file.unlink()


@pytest.mark.parametrize("num", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_slices(num: int, address: StoreAddress, scan: Scan, mutant: Mutant) -> None:
    """Any slice of the series, from the listing of the tree on."""
    assert isinstance(scan.source, list)
    data = LIDCDataModule(str(scan.source[0].parent.parent), CTSlices(size=(SIDE, SIDE)))
    random, refused = np.random.default_rng(0), 0
    contents = [path.read_bytes() for path in scan.source]
    for i in range(num):
        path, content = scan.source[i % 3], contents[i % 3]
        path.write_bytes(mutant(content, random))
        with warnings.catch_warnings(action="ignore"):
            found, rejected = data.scans()
        assert len(found) + len(rejected) >= 1
        assert all("\n" not in one.reason for one in rejected)
        refused += not found or outcome(address, found[0]) is not None
        path.write_bytes(content)
    assert 0.2 * num < refused < num


WORDS = [b"", b"-1", b"1e999", b"nan", b"9" * 11, b"&amp;", b"&bomb;", b"<a>", b"]]>", b"\x00", b"\xff\xfe", b"TRUE"]


def with_a_value_replaced(content: bytes, random: np.random.Generator) -> bytes:
    parts = content.replace(b">", b"<").split(b"<")
    old = parts[int(random.integers(len(parts)))]
    place = content.find(old, int(random.integers(len(content))))
    word = WORDS[int(random.integers(len(WORDS)))]
    return content[:place] + word + content[place + len(old) :] if place >= 0 else content + word


def test_damaged_xml(address: StoreAddress, scan: Scan, mutant: Mutant) -> None:
    xml = scan.beside[ANNOTATIONS]
    assert isinstance(xml, Path)
    random, refused = np.random.default_rng(1), 0
    content = xml.read_bytes()
    for i in range(500):
        change = mutant if i % 2 else with_a_value_replaced
        xml.write_bytes(change(content, random))
        if (reason := outcome(address, scan)) is not None:
            assert reason.startswith("069.xml: "), reason
            refused += 1
    assert 200 < refused < 500
