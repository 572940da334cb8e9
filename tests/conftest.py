"""What several tests share: phantom brains, a trained tiny model, the real sample data."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import no_network
import numpy as np
import pytest
from hypothesis import settings
from tiny_run import ROOT, TinyRun, ukbiobank

from lit_medgen.__main__ import main

os.environ.setdefault("WANDB_MODE", "offline")
no_network.refuse()

# The same examples every time, however slow the machine: a run that fails must fail again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: the garbage collector need not walk over it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real sample data beside the checkout."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"the real sample data is not here: no folder {path}")
    return path


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantom people in ADNI's layout."""
    folder = tmp_path_factory.mktemp("phantoms")
    assert main(["phantom", "adni", "--out", str(folder), "--num_subjects", "6", "--seed", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def ukbiobank_phantoms(phantoms: Path) -> Path:
    """Six phantom people as bulk zips of UK Biobank; read only."""
    return ukbiobank(phantoms)


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Most of the time of a report is the pixels of its figures; their resolution is held by tests/images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_medgen.images.png.DPI", 25)
        yield


@pytest.fixture
def fine_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as users get them, for tests that look at how much is in the file."""
    monkeypatch.setattr("lit_medgen.images.png.DPI", 110)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A test fails that asks for the network, also where what it calls takes the refusal for an answer."""
    yield
    found, no_network.attempts[:] = list(no_network.attempts), []
    assert not found, f"asked for the network: {', '.join(found)}"


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands name configs as in the README, from the root of the checkout."""
    monkeypatch.chdir(ROOT)
    environment = dict(os.environ)
    yield
    # seed_everything leaves its seed behind; the next test must not depend on it.
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> TinyRun:
    """A tiny cDPM after two steps."""
    os.chdir(ROOT)
    run = TinyRun(tmp_path_factory.mktemp("trained"), phantoms)
    assert run.fit() == 0
    return run


@pytest.fixture(scope="session")
def mutant() -> Callable[[bytes, np.random.Generator], bytes]:
    """A function that damages the bytes of a file."""
    return _mutant


def _mutant(content: bytes, random: np.random.Generator) -> bytes:
    """The bytes of a file with one fault: cut off, some bytes overwritten, or a piece missing."""
    damaged = bytearray(content)
    first = int(random.integers(len(content)))
    match int(random.integers(4)):
        case 0:
            return content[:first]
        case 1:
            del damaged[first : first + int(random.integers(1, 64))]
        case 2:  # headers come first, and hold most of the faults
            damaged[first % 400 : first % 400 + 2] = random.bytes(2)
        case _:
            damaged[first : first + 4] = random.bytes(4)
    return bytes(damaged)
