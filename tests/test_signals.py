"""Ctrl-C and SIGTERM: one line, 128 + the signal, nothing half-written, whatever they interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import Aim, run_in_child
from tiny_run import ROOT, TinyRun

import data_modules.preparing
from lit_medgen.methods import CDPM
from lit_medgen.training.generator import Generator

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def signalled(owner: Any, name: str, *signals: int) -> Aim:
    """The child signals itself at the first call of a function or method."""

    def aim() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in a shell's background
        function: Callable[..., Any] = getattr(owner, name)
        waiting = list(signals)

        def call(*args: Any, **kwargs: Any) -> Any:
            while waiting:
                os.kill(os.getpid(), waiting.pop())
            return function(*args, **kwargs)

        setattr(owner, name, call)

    return aim


def told(log: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that say that something was stopped; no traceback anywhere."""
    text = log.read_text() + capfd.readouterr().err
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("stopped: ")]


def fit(run: TinyRun) -> list[str]:
    return ["fit", *run.configs, *run.options, f"--trainer.default_root_dir={run.folder}", "--trainer.max_steps=50"]


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT], 130), ([signal.SIGINT] * 3, 130), ([signal.SIGTERM], 143)],
    ids=["Ctrl-C", "three times Ctrl-C", "SIGTERM"],
)
def test_a_step_ends_and_is_saved(
    signals: list[int], code: int, tmp_path: Path, phantoms: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, log = TinyRun(tmp_path, phantoms), tmp_path / "log"
    assert run_in_child(fit(run), log, signalled(CDPM, "training_step", *signals)) == code, log.read_text()
    (line,) = told(log, capfd)
    assert "after step 1; saved as" in line
    assert run.last.resolve().name == "step_0000001.ckpt"
    first = [line for line in log.read_text().splitlines() if "the step ends, then the run saves" in line]
    assert len(first) == 1


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("verb", ["prepare", "fit"])
def test_a_preparation_ends_in_order(
    verb: str, signum: int, tmp_path: Path, phantoms: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, log = TinyRun(tmp_path / "run", phantoms), tmp_path / "log"
    store = tmp_path / "store"
    words = fit(run) if verb == "fit" else ["prepare", *run.configs, *run.options]
    aim = signalled(data_modules.preparing, "_prepare_one", signum, signum)
    assert run_in_child([*words, f"--data.init_args.store_dir={store}"], log, aim) == SIGNALS[signum], log.read_text()
    (line,) = told(log, capfd)
    assert f"stopped: {signal.Signals(signum).name}; {verb} is not done" in line
    assert not list(store.rglob("*.part"))
    assert not list(store.rglob("manifest.csv"))


@pytest.mark.parametrize("signum", SIGNALS)
def test_samples_end_in_order(signum: int, trained: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--ckpt_path", str(trained.last), "--trainer.accelerator=cpu", f"--out={tmp_path / 'out'}"]
    log = tmp_path / "log"
    assert run_in_child(words, log, signalled(Generator, "predict_step", signum)) == SIGNALS[signum], log.read_text()
    assert len(told(log, capfd)) == 1
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("manifest.csv"))


@pytest.mark.parametrize("verb", ["fit", "phantom", "sweep"])
def test_an_import_ends_at_once(verb: str, tmp_path: Path) -> None:
    """A package that signals the process while it is imported stands for the seconds that imports take."""
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    for name in ("lightning", "jsonargparse"):
        (tmp_path / f"{name}.py").write_text(code)
    words = {"phantom": ["adni", "--out", str(tmp_path)], "sweep": ["sweep.yaml"], "fit": []}[verb]
    done = subprocess.run(
        [sys.executable, "-m", "lit_medgen", verb, *words],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        timeout=50,
    )
    assert done.returncode == 130
    assert done.stderr == "stopped: SIGINT; give the same command again.\n"


def test_a_temporary_folder_goes_with_an_import(tmp_path: Path) -> None:
    """As that of `app` while gradio is imported."""
    (tmp_path / "slow.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from lit_medgen.signals import heeding, raise_stop, temporary_folder\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with heeding(raise_stop()), temporary_folder('lit_medgen-', Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a.txt').write_text('of a patient')\n"
        "    import slow"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    folder = tmp_path / "temporary"
    folder.mkdir()
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert "stopped: SIGINT" in ended.stderr
    assert not list(folder.iterdir())


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("seconds", [0, 0.5, 2])
def test_all_processes_of_phantom_end_with_it(seconds: float, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the whole group of processes."""
    runner = subprocess.Popen(
        [sys.executable, "-m", "lit_medgen", "phantom", "adni", "--out", str(tmp_path / "out"), "--num_subjects=200"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "out").is_dir():
        time.sleep(0.05)
    time.sleep(seconds)
    os.killpg(runner.pid, signal.SIGINT)
    _, printed = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert printed.count("\n") == 1
    assert printed.startswith("stopped: SIGINT; ")
    assert not list(tmp_path.rglob("*.part"))
