"""Checkpoints outlast kills, damage and full disks; nothing in them runs; a run is a function of its command."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning  # noqa: F401 (its log keeps the stderr it is imported under, which must not be one test's own)
import numpy as np
import pytest
import torch
import yaml
from test_resume import assert_equal
from tiny_run import ROOT, TinyRun, one_line

from lit_medgen.__main__ import main
from lit_medgen.callbacks.checkpoints import Checkpoints
from lit_medgen.checkpoints import (
    FACTS,
    LAST,
    RECORD,
    CheckpointFiles,
    _fault,
    fault_of,
    newest,
    read_checkpoint,
    read_config,
    saved,
    sidecar,
    write_checkpoint,
)
from lit_medgen.errors import InputError, NoSpaceError
from lit_medgen.files import remove_stale
from lit_medgen.loading import check_classes
from lit_medgen.loggers import RunLogger

pytestmark = pytest.mark.xdist_group("checkpoints")


def content(step: int, num: int = 64) -> dict[str, Any]:
    """A checkpoint of num floats."""
    return {
        "lit_medgen": {"config": None, "spec": None, "facts": {}, "frozen": {}},
        "global_step": step,
        "state_dict": {"weight": torch.full((num,), float(step)), "index": torch.arange(7)},
    }


def step_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}.ckpt"


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder; of links, where they lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


# Killed while it saves.


def save_for_ever(folder: Path, announce: int, num: int) -> None:
    """Saves one step after the other and says so; keeps two, as the callback does."""
    torch.set_num_threads(1)
    found = newest(folder)
    step = 1 + (0 if found is None else int(read_checkpoint(found)["global_step"]))
    while True:
        write_checkpoint(content(step, num), step_file(folder, step))
        os.write(announce, b"%d\n" % step)
        for old in saved(folder)[2:]:
            CheckpointFiles().remove_checkpoint(old)
        step += 1


def kill_while_saving(folder: Path, temporary: Path, num: int, seconds: float) -> int:
    """Starts a child that saves, kills it; returns the last step it announced, 0 if none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
            save_for_ever(folder, writer, num)
        finally:
            os._exit(1)
    os.close(writer)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    with os.fdopen(reader) as file:
        announced = file.read().split()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    timer.join()
    return int(announced[-1]) if announced else 0


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder for $TMPDIR on another file system than the checkpoints, where a rename would be a copy."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def check_kills(num_kills: int, seed: int, folder: Path, temporary: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """0 corrupt files of so many kills; the next child starts where the last one was killed, as a restarted job."""
    rng = np.random.default_rng(seed)
    highest, num_parts = 0, 0
    for _ in range(num_kills):
        num = int(10 ** rng.uniform(5.5, 6.8))  # 1 to 25 MB
        announced = kill_while_saving(folder, temporary, num, rng.uniform(0.02, 0.3))
        highest = max(highest, announced)
        for path in saved(folder):
            assert fault_of(path) is None
            whole = torch.load(path, weights_only=True)
            assert path.name == step_file(folder, whole["global_step"]).name
            assert bool((whole["state_dict"]["weight"] == whole["global_step"]).all())
        found = newest(folder)
        assert "skipped" not in capfd.readouterr().err
        assert highest == 0 or (found is not None and int(found.stem[5:]) >= highest)
        assert not (folder / LAST).is_symlink() or (folder / LAST).is_file()
        parts = list(folder.glob(".*"))
        assert len(parts) <= 1
        num_parts += len(parts)
        remove_stale(folder, single_writer=True)
        expected = {path.name for path in saved(folder)} | {LAST}
        assert {path.name for path in folder.iterdir()} <= expected | {f"{name}.sha256" for name in expected}
        assert not list(temporary.iterdir())
    # Few enough for a machine that is busy with other things.
    assert highest > num_kills / 10, "hardly a save came to its end"
    assert num_parts > num_kills / 10, "hardly a kill hit a save"


def test_killed_while_saving(tmp_path: Path, other_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_kills(15, 0, tmp_path, other_disk, capfd)


@pytest.mark.slow
def test_killed_while_saving_many_times(tmp_path: Path, other_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_kills(200, 1, tmp_path, other_disk, capfd)


# Damaged files.

NUM_DAMAGED = 1000
DAMAGES = (
    "cut",
    "flipped",
    "empty",
    "missing",
    "directory",
    "no hash, cut",
    "no hash, flipped",
    "hash cut",
    "hash bad",
)


def damage(path: Path, how: str, rng: np.random.Generator) -> None:
    """Damages a checkpoint, or the file with its hash."""
    target = sidecar(path) if how.startswith("hash") else path
    if how.startswith("no hash"):
        sidecar(path).unlink()
    good = target.read_bytes()
    if how.endswith("cut"):
        target.write_bytes(good[: rng.integers(len(good))])
    elif how == "hash bad":
        target.write_bytes(rng.bytes(len(good)))
    elif how == "empty":
        target.write_bytes(b"")
    elif how in ("missing", "directory"):
        target.unlink()
        if how == "directory":
            target.mkdir()
    else:
        changed = bytearray(good)
        for place in rng.choice(len(good), rng.integers(1, 4), replace=False):
            changed[place] ^= 1 << int(rng.integers(8))
        target.write_bytes(changed)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 to 3."""
    folder = tmp_path_factory.mktemp("three")
    for step in range(1, 4):
        write_checkpoint(content(step), step_file(folder, step))
    return folder


@pytest.fixture
def many(three: Path, tmp_path: Path) -> Iterator[Iterator[Path]]:
    """Fresh copies of the three checkpoints, one after the other."""

    def copies() -> Iterator[Path]:
        folder = tmp_path / "copy"
        while True:
            shutil.copytree(three, folder, symlinks=True)
            _fault.cache_clear()  # it goes by name, size and time, which two copies may share
            yield folder
            shutil.rmtree(folder)

    return copies()


def test_falls_back_to_the_newest_that_is_whole(many: Iterator[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    for number in range(NUM_DAMAGED):
        folder, how = next(many), DAMAGES[number % len(DAMAGES)]
        num_bad = 1 + number // len(DAMAGES) % 2
        bad = [step_file(folder, 3 - k) for k in range(num_bad)]
        for path in bad:
            damage(path, how, rng)
        found = newest(folder)
        assert found is not None
        lines = capsys.readouterr().err.splitlines()
        if found not in bad:
            assert found == step_file(folder, 3 - num_bad)
            named = bad
        else:  # a bit that means nothing, e.g. of a date, and no hash to tell; or the last byte of the hash file
            assert how in ("no hash, flipped", "hash cut")
            named = bad[: bad.index(found)]
        assert len(lines) == len(named)
        for line, path in zip(lines, named, strict=True):
            assert line.startswith(f"skipped {path}: ")
            assert len(line) > len(f"skipped {path}: ") + 5
        assert_equal(read_checkpoint(found), content(int(found.stem[5:])))


def test_every_damage_is_seen(many: Iterator[Path]) -> None:
    """Where it must be: `test_falls_back` alone would accept a check that sees nothing in files without a hash."""
    rng, seen = np.random.default_rng(3), 0
    for how in DAMAGES:
        for _ in range(30):
            folder = next(many)
            damage(step_file(folder, 3), how, rng)
            seen += newest(folder) == step_file(folder, 2)
    assert seen >= 30 * (len(DAMAGES) - 2) + 30 * 0.4


@pytest.mark.parametrize("how", DAMAGES)
def test_none_whole_is_an_error_and_no_fresh_start(how: str, many: Iterator[Path]) -> None:
    rng = np.random.default_rng(4)
    for folder in many:
        paths = [step_file(folder, step) for step in range(1, 4)]
        for path in paths:
            damage(path, how, rng)
        if all(map(fault_of, paths)):  # it may hit a bit that means nothing
            break
    with pytest.raises(InputError, match="none of 3 checkpoints is whole"):
        newest(folder)


def test_a_folder_without_checkpoints_is_a_start(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    assert newest(tmp_path) is None
    (tmp_path / LAST).symlink_to("step_0000003.ckpt")  # a run was here
    with pytest.raises(InputError):
        newest(tmp_path)


def test_bytes_that_are_no_checkpoint(many: Iterator[Path]) -> None:
    """Zip files that are whole, with a pickle that is not: they are read as they are, or refused in one line."""
    rng, path, refused = np.random.default_rng(5), step_file(next(many), 3), 0
    sidecar(path).unlink()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(500):
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                changed = bytearray(part)
                if name.endswith("data.pkl"):
                    for place in rng.integers(len(part), size=rng.integers(1, 4)):
                        changed[place] = rng.integers(256)
                archive.writestr(name, bytes(changed))
        try:
            assert isinstance(read_checkpoint(path), dict)
        except InputError:
            refused += 1
    assert refused > 250


# Real runs.


@dataclass
class Reference:
    """A tiny run of three steps and two samples of it, with all its files."""

    run: TinyRun
    files: dict[str, bytes]

    def copy(self, folder: Path, steps: int = 3) -> TinyRun:
        """The run in another folder, set back to as many steps."""
        run = TinyRun(folder, Path())
        shutil.copytree(self.run.folder, folder, symlinks=True, dirs_exist_ok=True)
        run.options = self.run.options
        for step in range(steps + 1, 4):
            CheckpointFiles().remove_checkpoint(step_file(run.last.parent, step))
        link = run.folder / "cdpm" / "checkpoints" / LAST
        link.unlink()
        link.symlink_to(step_file(link.parent, steps).name)
        return run


def fit_and_sample(run: TinyRun) -> None:
    assert run.fit("--trainer.max_steps=3") == 0
    assert run.on_checkpoint("sample", "--num=2", f"--out={run.folder / 'samples'}") == 0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Reference:
    """Made once; tests work on copies."""
    os.chdir(ROOT)
    run = TinyRun(tmp_path_factory.mktemp("reference"), phantoms)
    fit_and_sample(run)
    return Reference(run, snapshot(run.folder))


TIMES = ("_per_second", "memory_gib")


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the columns that depend on the machine."""
    log = io.StringIO(files["cdpm/metrics.csv"].decode(), newline="")
    rows = [{name: row[name] for name in row if not name.endswith(TIMES)} for row in csv.DictReader(log)]
    return files | {"cdpm/metrics.csv": json.dumps(rows).encode()}


def assert_same_files(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    a, b = without_times(a), without_times(b)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    assert sum(name.endswith(".ckpt") for name in a) == 4
    assert sum(name.endswith(".nii.gz") for name in a) == 2


def test_same_command_same_bytes(reference: Reference) -> None:
    shutil.rmtree(reference.run.folder)
    fit_and_sample(reference.run)
    assert_same_files(reference.files, snapshot(reference.run.folder))


@pytest.mark.slow
def test_same_command_same_bytes_in_another_process(tmp_path: Path, phantoms: Path) -> None:
    runs = []
    for seed in "12":  # of the order of sets
        run = TinyRun(tmp_path / "run", phantoms)
        words = [*run.configs, *run.options, f"--trainer.default_root_dir={run.folder}", "--trainer.max_steps=3"]
        checkpoint, out = run.folder / "cdpm" / "checkpoints" / LAST, run.folder / "samples"
        for args in (["fit", *words], ["sample", f"--ckpt_path={checkpoint}", "--num=2", f"--out={out}"]):
            command = [sys.executable, "-W", "ignore", "-m", "lit_medgen", *args, "--trainer.accelerator=cpu"]
            subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed})
        runs.append(snapshot(run.folder))
        shutil.rmtree(run.folder)
    assert_same_files(*runs)


def assert_ends_like(reference: Reference, run: TinyRun) -> None:
    """The same content; its bytes may differ in which equal texts are one object."""
    assert run.last.resolve().name == reference.run.last.resolve().name
    assert fault_of(run.last.resolve()) is None
    assert_equal(*(torch.load(one.last, weights_only=True) for one in (run, reference.run)))


def test_fit_continues_from_the_one_before_a_damaged_one(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reference.copy(tmp_path)
    newest_one = step_file(run.last.parent, 3)
    damage(newest_one, "flipped", np.random.default_rng(6))
    assert run.fit("--trainer.max_steps=3", "--ckpt_path=last") == 0
    printed = capsys.readouterr().err
    assert printed.count(f"skipped {newest_one}: its SHA-256 is not the one beside it") == 1
    assert "Traceback" not in printed
    assert_ends_like(reference, run)
    log = "cdpm/metrics.csv"
    assert without_times(snapshot(tmp_path))[log] == without_times(reference.files)[log]


def test_fit_with_nothing_whole_is_an_error(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reference.copy(tmp_path)
    for path in saved(run.last.parent):
        damage(path, "cut", np.random.default_rng(7))
    before = snapshot(tmp_path)
    assert run.fit("--ckpt_path=last") == 2
    line = one_line(capsys)
    assert "none of 3 checkpoints is whole" in line
    assert str(run.folder) in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("step", [None, 1])
def test_fit_does_not_overwrite_a_run(
    step: int | None, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reference.copy(tmp_path)
    before = snapshot(tmp_path)
    assert run.fit(*([] if step is None else [f"--ckpt_path={step_file(run.last.parent, step)}"])) == 2
    line = one_line(capsys)
    assert "step_0000003.ckpt" in line
    assert "--ckpt_path last" in line
    assert snapshot(tmp_path) == before


# Full disks.


class Disk:
    """A folder whose disk can be filled."""

    def __init__(self, folder: Path, real: bool) -> None:
        self.folder, self.real = folder, real

    @contextmanager
    def full(self, room: int) -> Iterator[None]:
        """So many bytes are left; for all files on a real disk, else for each file."""
        if self.real:
            status, ballast = os.statvfs(self.folder), self.folder / "ballast"
            ballast.write_bytes(bytes(max(status.f_bavail * status.f_frsize - room, 0)))
            try:
                yield
            finally:
                ballast.unlink()
        else:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["limit", "real"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """With `ulimit -f`, and a real one of 16 MB where the tests may mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limit":
        yield Disk(folder, real=False)
        return
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True, check=False, text=True
    )
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mount.stderr.strip()}")
    try:
        yield Disk(folder, real=True)
    finally:
        # A checkpoint that was read is mapped until its last tensor is gone.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_no_space_for_a_checkpoint(disk: Disk, reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    run = reference.copy(disk.folder, steps=2)
    checkpoints = run.last.parent
    before, needed = snapshot(checkpoints), len(reference.files["cdpm/checkpoints/step_0000003.ckpt"])
    with disk.full(needed // 2):
        assert run.fit("--trainer.max_steps=3", "--ckpt_path=last") == 3
    line = one_line(capsys)
    assert str(step_file(checkpoints, 3)) in line
    assert ("ENOSPC" if disk.real else "EFBIG") in line
    named = int(line.partition(" bytes needed")[0].rpartition(" ")[2].replace(",", ""))
    assert 0.5 * needed < named < 1.1 * needed  # most of a tiny one are names
    assert snapshot(checkpoints) == before
    assert newest(checkpoints) == step_file(checkpoints, 2)
    assert run.fit("--trainer.max_steps=3", "--ckpt_path=last") == 0
    assert_ends_like(reference, run)


@pytest.mark.parametrize("num", [1, 300, 20_000, 1_000_000])
def test_no_space_at_any_byte_of_a_checkpoint(num: int, tmp_path: Path) -> None:
    """The archive's end, written when PyTorch closes it, fails like its middle."""
    disk = Disk(tmp_path, real=False)
    write_checkpoint(content(1, num), step_file(tmp_path, 1))
    before, size = snapshot(tmp_path), step_file(tmp_path, 1).stat().st_size
    for room in {0, 1, size // 2, size - 200, size - 1}:
        with disk.full(room), pytest.raises(NoSpaceError, match="step_0000002"):
            write_checkpoint(content(2, num), step_file(tmp_path, 2))
        assert snapshot(tmp_path) == before
    with disk.full(size):
        write_checkpoint(content(2, num), step_file(tmp_path, 2))


def test_no_space_for_the_log(disk: Disk) -> None:
    logger, path = RunLogger(disk.folder / "run"), disk.folder / "run" / "metrics.csv"

    def log(first: int, num: int) -> None:
        for step in range(first, first + num):
            logger.log_metrics({"train/loss": step / 7}, step)
            logger.save()

    log(0, 10)
    before = path.read_bytes()
    with (
        disk.full(0 if disk.real else len(before) + 1000),
        pytest.raises(NoSpaceError, match=r"metrics\.csv: no space"),
    ):
        log(10, 10_000)
    assert path.read_bytes().startswith(before)
    logger = RunLogger(disk.folder / "run")
    logger.rewind(10)
    assert path.read_bytes() == before
    log(10, 1)
    assert path.read_bytes() == before + f"10,{10 / 7}\r\n".encode()


def test_no_space_for_the_store(disk: Disk, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section, grid = (yaml.safe_load(Path(f"tests/tiny/{name}.yaml").read_text())["data"] for name in ("any", "volumes"))
    section["init_args"] |= grid["init_args"]
    section["class_path"] = "data_modules.ADNIDataModule"
    section["init_args"] |= {"root": str(phantoms), "store_dir": str(disk.folder / "store")}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(section))
    with disk.full(40_000 if disk.real else 5_000):
        assert main(["prepare", "--data", str(file)]) == 3
    line = one_line(capsys)
    assert str(disk.folder / "store") in line
    assert "volumes" in line
    assert "bytes needed" in line
    assert not list(disk.folder.rglob("*.part"))
    assert main(["prepare", "--data", str(file), "--verify"]) == 0


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_no_space_for_samples_and_reports(
    verb: str, disk: Disk, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk.folder / "out"
    with disk.full(4096 if disk.real else 500):
        if verb == "sample":
            code = reference.run.on_checkpoint("sample", "--num=2", f"--out={out}")
        else:
            samples = f"--samples={reference.run.folder / 'samples'}"
            code = main(["evaluate", samples, f"--out={out}", "--trainer.accelerator=cpu"])
    assert code == 3
    line = one_line(capsys)
    assert "no space" in line
    assert not (out / "manifest.csv").exists()  # what tells that samples are complete
    assert str(out) in line
    assert not list(out.rglob(".*.part"))


# The log of a resumed run.


def test_rewinding_the_log(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    path.parent.mkdir()
    rows = ["step,train/loss,note", *(f'{step},0.{step}5,"a, ""b"""' for step in range(20))]
    whole = "".join(f"{row}\r\n" for row in rows).encode()
    for step in (0, 1, 7, 19, 20, 100):
        kept = "".join(f"{row}\r\n" for row in rows[: 1 + step]).encode()
        for cut in range(len(f"{rows[-1]}\r\n") + 1):
            path.write_bytes(whole[: len(whole) - cut])
            RunLogger(path.parent).rewind(step)
            full = "".join(f"{row}\r\n" for row in rows[: len(rows) - (cut > 0)]).encode()
            assert path.read_bytes() == min(kept, full, key=len), (step, cut)


def test_a_log_that_needs_no_rewinding_is_not_touched(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run")
    for step in range(3):
        logger.log_metrics({"loss": 0.5}, step)
        logger.save()
    path = tmp_path / "run" / "metrics.csv"
    before = path.stat()
    RunLogger(tmp_path / "run").rewind(3)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# Code in a checkpoint.


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a module `hostile` writes as soon as anybody imports it, or calls what it has."""
    canary, code = tmp_path / "canary", tmp_path / "path" / "hostile.py"
    code.parent.mkdir()
    touch = f"open({str(canary)!r}, 'w').close()"
    code.write_text(f"{touch}\ndef run(*args, **kwargs): {touch}\nclass Optimizer:\n    def __init__(self): {touch}\n")
    monkeypatch.syspath_prepend(str(code.parent))
    yield canary
    sys.modules.pop("hostile", None)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


PLACES = {
    "model": ("model",),
    "network": ("model", "init_args", "network"),
    "optimizer": ("model", "init_args", "optimizer"),
    "sampler": ("model", "init_args", "sampler", "init_args", "num_steps"),
    "data": ("data",),
    "view": ("data", "init_args", "view"),
    "trainer": ("trainer",),
    "callbacks": ("trainer", "callbacks"),
}


@pytest.mark.parametrize("name", ["hostile.run", "hostile.Optimizer", "os.system"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["text", "class_path", "list", "dict_kwargs"])
def test_a_config_that_names_foreign_code_is_refused(
    form: str, place: str, name: str, reference: Reference, tmp_path: Path
) -> None:
    config = read_checkpoint(reference.run.last)["lit_medgen"]["config"]
    check_classes(config, tmp_path)
    *outer, last = PLACES[place]
    inside = config
    for key in outer:
        inside = inside.setdefault(key, {})
    inside[last] = {
        "text": name,
        "class_path": {"class_path": name, "init_args": {}},
        "list": [{"class_path": name}],
        "dict_kwargs": {"class_path": "torch.optim.Adam", "dict_kwargs": {"inner": name}},
    }[form]
    with pytest.raises(InputError):
        check_classes(config, tmp_path)


@pytest.mark.parametrize("table", ["people.csv", "test.csv", "os.system"])
def test_a_table_is_no_class(table: str, reference: Reference, tmp_path: Path) -> None:
    config = read_checkpoint(reference.run.last)["lit_medgen"]["config"]
    config["name"] = "run.v2"
    config["data"]["init_args"] |= {"table": table, "descriptions": ["brain.mask"], "root": "a.b"}
    check_classes(config, tmp_path)


@pytest.mark.parametrize("attack", ["pickle", "text", "class_path"])
@pytest.mark.parametrize("verb", ["sample", "fit last", "evaluate"])
def test_nothing_in_a_checkpoint_runs(
    verb: str, attack: str, reference: Reference, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reference.copy(tmp_path / "run")
    bad = run.last.resolve()
    checkpoint = torch.load(bad, weights_only=True)  # not mapped, since the file is written over
    arguments = checkpoint["lit_medgen"]["config"]["model"]["init_args"]
    if attack == "pickle":
        checkpoint["callbacks"]["EMA"] = Payload(trap)
    else:
        arguments["optimizer"] = "hostile.run" if attack == "text" else {"class_path": "hostile.Optimizer"}
    torch.save(checkpoint, bad)
    sidecar(bad).write_text(f"{hashlib.sha256(bad.read_bytes()).hexdigest()}  {bad.name}\n")  # whole, as far as it says
    code = run.fit("--ckpt_path=last") if verb == "fit last" else run.on_checkpoint(verb, f"--out={tmp_path / 'out'}")
    if verb == "fit last" and attack != "pickle":
        # The user's config says what is built; the checkpoint's is not asked for anything but the method's name.
        assert code in (0, 2)
    else:
        assert code == 2
        assert bad.name in (line := one_line(capsys)) or LAST in line
    assert not trap.exists()
    assert "hostile" not in sys.modules


def test_the_trap_works(trap: Path, tmp_path: Path) -> None:
    """The tests above can fail."""
    torch.save(Payload(trap), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert trap.exists()
    trap.unlink()
    __import__("hostile")
    assert trap.exists()


# The callback.


class FakeRun:
    """A trainer as far as `Checkpoints` knows one, on a clock of its own."""

    def __init__(self, folder: Path, callback: Checkpoints, max_steps: int = -1) -> None:
        self.trainer: Any = SimpleNamespace(
            default_root_dir=folder,
            global_step=0,
            ckpt_path=None,
            max_steps=max_steps,
            should_stop=False,
            is_global_zero=True,
            loggers=[],
            strategy=CheckpointFiles(),
            save_checkpoint=lambda path, weights_only: write_checkpoint(content(self.trainer.global_step), path),
        )
        self.callback, self.steps = callback, list[int]()
        callback.setup(self.trainer, SimpleNamespace(), "fit")  # type: ignore[arg-type]
        callback.on_train_start(self.trainer, SimpleNamespace())  # type: ignore[arg-type]

    def step(self) -> None:
        """One step, and the border after it."""
        self.trainer.global_step += 1
        if self.callback.due(self.trainer):
            self.callback.save(self.trainer)
            self.steps.append(self.trainer.global_step)


@pytest.mark.parametrize(("keep", "kept"), [(2, [8, 10]), (3, [6, 8, 10]), (-1, [2, 4, 6, 8, 10])])
def test_keeps_as_many_as_told(keep: int, kept: list[int], tmp_path: Path) -> None:
    run = FakeRun(tmp_path, Checkpoints(every_n_steps=2, keep=keep))
    for _ in range(11):
        run.step()
    folder = tmp_path / "checkpoints"
    paths = [step_file(folder, step) for step in kept]
    assert set(folder.iterdir()) == {*paths, *map(sidecar, paths), folder / LAST}
    assert newest(folder) == (folder / LAST).resolve() == paths[-1]


def test_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        "lit_medgen.callbacks.checkpoints.time", SimpleNamespace(monotonic=lambda: clock.now), raising=True
    )
    run = FakeRun(tmp_path, Checkpoints(every_n_steps=None, every_n_minutes=2))
    for _ in range(10):
        clock.now += 50
        run.step()
    assert run.steps == [3, 6, 9]
    run.trainer.should_stop = True
    run.step()
    assert run.steps == [3, 6, 9, 11]


def test_saves_at_the_end_and_each_step_once(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, Checkpoints(every_n_steps=4), max_steps=6)
    for _ in range(6):
        run.step()
    assert run.steps == [4, 6]
    before = step_file(tmp_path / "checkpoints", 6).stat().st_ino
    run.callback.save(run.trainer)
    assert step_file(tmp_path / "checkpoints", 6).stat().st_ino == before


def test_more_steps_than_digits(tmp_path: Path) -> None:
    for step in (9_999_999, 10_000_000, 9_999_998):
        write_checkpoint(content(step), step_file(tmp_path, step))
    assert newest(tmp_path) == step_file(tmp_path, 10_000_000)


@pytest.mark.parametrize("options", [{"keep": 1}, {"keep": 0}, {"keep": -2}, {"every_n_steps": None}])
def test_options_that_lose_runs_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Checkpoints"):
        Checkpoints(**options)


def test_keep_1_on_the_command_line(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = '[{"class_path": "lit_medgen.callbacks.Checkpoints", "init_args": {"keep": 1}}]'
    assert TinyRun(tmp_path, phantoms).fit(f"--trainer.callbacks={callbacks}") == 2
    assert "Checkpoints.keep is 1" in one_line(capsys)


def test_a_config_is_kept_for_who_asks_again_until_the_file_is_another(tmp_path: Path) -> None:
    """Another file of the same name, and of the same time: clocks of file systems tick every few milliseconds."""
    path = tmp_path / "step_0000001.ckpt"
    for name in ("a", "b"):
        write_checkpoint({FACTS: dict.fromkeys(RECORD) | {"config": {"name": name}}}, path)
        for each in (path, sidecar(path)):
            os.utime(each, ns=(0, 0))
        found = read_config(path)
        assert found == {"name": name}
        found["name"] = "of who asked first"
        assert read_config(path) == {"name": name}
