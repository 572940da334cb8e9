"""What several tests share: phantom brains, a trained tiny model, the real sample data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lit_medgen.__main__ import main

ROOT = Path(__file__).parents[1]
os.environ.setdefault("WANDB_MODE", "offline")

Command = Callable[..., int]


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


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands name configs as in the README, from the root of the checkout."""
    monkeypatch.chdir(ROOT)
    environment = dict(os.environ)
    yield
    # seed_everything leaves its seed behind; the next test must not depend on it.
    os.environ.clear()
    os.environ.update(environment)


class TinyRun:
    """The shipped cDPM experiment at the least size, in a folder of its own."""

    def __init__(self, folder: Path, phantoms: Path, configs: tuple[str, ...] = ("configs/cdpm.yaml",)) -> None:
        self.folder = folder
        self.configs = [word for name in (*configs, "tests/tiny/cdpm.yaml") for word in ("--config", name)]
        self.options = [f"--data.init_args.root={phantoms}", f"--data.init_args.store_dir={phantoms / 'store'}"]

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return next(self.folder.glob("*/checkpoints/last.ckpt"))

    def fit(self, *more: str) -> int:
        """Trains two steps unless told otherwise."""
        return main(["fit", *self.configs, *self.options, f"--trainer.default_root_dir={self.folder}", *more])

    def on_checkpoint(self, verb: str, *more: str) -> int:
        """Runs a verb on the newest checkpoint, without any config."""
        return main([verb, "--ckpt_path", str(self.last), "--trainer.accelerator=cpu", *more])


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> TinyRun:
    """A tiny cDPM after two steps."""
    os.chdir(ROOT)
    run = TinyRun(tmp_path_factory.mktemp("trained"), phantoms)
    assert run.fit() == 0
    return run
