"""A data worker that dies, hangs or meets a damaged file ends the run with one line that names the file."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_equal, losses
from tiny_run import TinyRun, one_line
from torch.multiprocessing import get_context
from torch.utils.data import get_worker_info

from data_modules.loader import StoreDataset
from data_modules.order import Sample
from lit_medgen.batch import Batch
from lit_medgen.errors import InputError, MissingDataError, NonFiniteError
from lit_medgen.training.method import Method

POSITION = 5
"""Of the training sample that things happen to."""

Deed = Callable[[Path], None]


class Scene:
    """A tiny run in whose loader something happens at one sample; the sample's file is written down."""

    def __init__(self, folder: Path, phantoms: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.note, self.monkeypatch = TinyRun(folder, phantoms), folder / "victim", monkeypatch
        self.store = folder / "store"
        shutil.copytree(store, self.store)

    @property
    def victim(self) -> str:
        return self.note.read_text()

    def at(self, position: int, deed: Deed) -> None:
        """Does it when the training sample at a position is read; workers inherit this."""
        read = StoreDataset.read

        def deadly(dataset: StoreDataset, sample: Sample) -> Batch:
            if sample[0] == position and dataset.seed == 3:  # of training, in tests/tiny/any.yaml
                self.note.write_text(dataset.name(sample))
                deed(Path(dataset.name(sample)))
            return read(dataset, sample)

        self.monkeypatch.setattr(StoreDataset, "read", deadly)

    def fit(self, num_workers: int, *more: str) -> int:
        """A run that takes the sample, from a store of its own."""
        return self.run.fit(
            "--trainer.max_steps=5",
            f"--data.init_args.num_workers={num_workers}",
            f"--data.init_args.store_dir={self.store}",
            *more,
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """The prepared data of a tiny run; read only."""
    run = TinyRun(tmp_path_factory.mktemp("prepared"), phantoms)
    store = run.folder / "store"
    assert run.fit("--trainer.max_steps=1", f"--data.init_args.store_dir={store}") == 0
    return store


@pytest.fixture
def scene(tmp_path: Path, phantoms: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, phantoms, store, monkeypatch)


def files(line: str) -> set[str]:
    """The files of the store that a line names."""
    return set(re.findall(r"[^\s,;']+\.npy", line))


class Killing:
    """A worker that dies when it is told to, of which the training process waits for the end."""

    def __init__(self) -> None:
        context = get_context("fork")
        self.told, self.pid = context.Event(), context.Value("i", 0)

    def deed(self, path: Path) -> None:
        self.pid.value = os.getpid()
        assert self.told.wait(60)
        die(path)

    def __call__(self) -> None:
        self.told.set()
        deadline = time.monotonic() + 60
        while not self.dead():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def dead(self) -> bool:
        pid = self.pid.value
        return pid != 0 and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker(num_workers: int, scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.at(POSITION, die)
    assert scene.fit(num_workers) == 1
    line = one_line(capfd)
    assert "a data worker died" in line
    assert any(text in line for text in ("exited unexpectedly", "connection broke off"))
    assert files(line) == {scene.victim}


def test_a_worker_killed_while_another_hands_over_a_batch(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    """The other worker must not be left in the middle: it would print a traceback."""
    kill, connect = Killing(), socket.socket.connect

    def connect_and_kill(end: socket.socket, address: Any) -> None:
        connect(end, address)
        if not kill.told.is_set():
            kill()

    scene.monkeypatch.setattr(socket.socket, "connect", connect_and_kill)
    scene.at(2, kill.deed)  # the first of the second worker, so what comes meanwhile is of the first
    assert scene.fit(2) == 1
    line = one_line(capfd)
    assert "a data worker died" in line
    assert files(line) == {scene.victim}
    assert kill.told.is_set()


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(), FileNotFoundError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch(
    error: Exception, scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The socket that batches come through is closed then, and PyTorch says nothing of a worker."""

    def closed(loader: Any) -> Any:
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", closed)
    assert scene.fit(1) == 1
    line = one_line(capfd)
    assert f"a data worker died (its connection broke off: {type(error).__name__})" in line


def test_a_worker_killed_in_the_middle_of_a_step(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    """The step is taken to its end, and the next batch tells of it."""
    kill, step, taken = Killing(), Method.training_step, []

    def step_and_kill(method: Method, *args: Any) -> Any:
        kill()
        loss = step(method, *args)
        taken.append(loss)
        return loss

    scene.monkeypatch.setattr(Method, "training_step", step_and_kill)
    scene.at(4, kill.deed)  # one of those that the worker reads ahead
    assert scene.fit(1) == 1
    line = one_line(capfd)
    assert "a data worker died" in line
    assert files(line) == {scene.victim}
    assert len(taken) == 1


def test_a_worker_that_hangs(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.at(0, lambda path: time.sleep(1000))
    start = time.monotonic()
    assert scene.fit(1, "--data.init_args.worker_timeout_s=2") == 1
    assert time.monotonic() - start < 40
    line = one_line(capfd)
    assert "a data worker hangs" in line
    assert files(line) == {scene.victim}


def fail(path: Path) -> None:
    raise RuntimeError("planted fault")


def test_a_worker_that_fails(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.at(POSITION, fail)
    assert scene.fit(1) == 1
    line = one_line(capfd)
    assert "a data worker failed" in line
    assert "RuntimeError: planted fault" in line
    assert files(line) == {scene.victim}


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def spoil(path: Path) -> None:
    """No NumPy file any more, of the same size."""
    with path.open("r+b") as file:
        file.write(bytes(64))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("damage", [truncate, empty, spoil, Path.unlink], ids=lambda deed: deed.__name__)
def test_a_damaged_file(num_workers: int, damage: Deed, scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.at(POSITION, damage)
    assert scene.fit(num_workers) == 2
    line = one_line(capfd)
    assert line.startswith(f"error: {scene.victim}: cannot be read (")
    assert line.endswith("run `prepare --verify`.")
    assert files(line) == {scene.victim}
    assert len(line) < 600


def test_prepare_mends_the_damaged_file(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    with scene.monkeypatch.context():
        assert scene.fit(0) == 0
    whole = {path: path.read_bytes() for path in scene.store.glob("*/volumes/*.npy")}
    truncate(min(whole))
    assert scene.fit(0, "--ckpt_path=last", "--trainer.max_steps=6") == 0
    assert {path: path.read_bytes() for path in scene.store.glob("*/volumes/*.npy")} == whole


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing_and_outlive_validation(
    num_workers: int, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation every two steps, in between the same workers go on."""
    read, notes = StoreDataset.read, tmp_path / "notes"
    notes.mkdir()

    def noted(dataset: StoreDataset, sample: Sample) -> Batch:
        if dataset.seed == 3:
            worker = get_worker_info()
            (notes / f"{sample[0]}").write_text(f"{worker.id if worker else '-'} {os.getpid()}")
        return read(dataset, sample)

    runs = []
    for folder, workers in (("alone", 0), ("workers", num_workers)):
        if workers:
            monkeypatch.setattr(StoreDataset, "read", noted)
        run = TinyRun(tmp_path / folder, phantoms)
        assert run.fit("--trainer.max_steps=6", f"--data.init_args.num_workers={workers}") == 0
        runs.append(run)
    a, b = (torch.load(run.last, weights_only=True) for run in runs)
    for part in ("state_dict", "optimizer_states", "callbacks"):
        assert_equal(a[part], b[part])
    assert losses(runs[0].folder) == losses(runs[1].folder)
    read_by = {note.read_text() for note in notes.iterdir()}
    assert len(read_by) == num_workers
    assert len(list(notes.iterdir())) >= 12
    assert f"- {os.getpid()}" not in read_by


@pytest.mark.parametrize("kind", [InputError, MissingDataError, NonFiniteError])
def test_our_errors_survive_the_way_out_of_a_worker(kind: type[Exception]) -> None:
    """PyTorch makes the error anew from one text."""
    again = kind(str(kind("a file: what was found")))
    assert type(again) is kind
    assert str(again) == "a file: what was found"
