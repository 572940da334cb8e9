"""Sweeps: the W&B file expanded here, interrupted and continued, and the same file for W&B itself."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from killed import run_in_child
from tiny_run import ROOT, TinyRun, one_line

from lit_medgen.__main__ import main
from lit_medgen.errors import InputError
from lit_medgen.sweep_file import command, expand, read
from lit_medgen.sweep_results import pareto_front

SWEEPS = sorted(ROOT.glob("configs/sweeps/*.yaml"))
GRID: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "metrics.sharpness.value", "goal": "minimize"},
    "parameters": {
        "model.init_args.schedule.init_args.max_blur": {"values": [1.0, 24.0]},
        "model.init_args.num_steps": {"values": [1, 2, 3]},
    },
    "command": ["${env}", "python", "-m", "lit_medgen", "fit", "--config", "configs/ihdm.yaml", "${args}"],
}
FILE = Path("sweep.yaml")


def words_after(phantoms: Path, folder: Path) -> list[str]:
    """What makes the shipped experiment tiny, with a report."""
    run = TinyRun(folder, phantoms, ("configs/ihdm.yaml",))
    return [*run.configs, "--config", "configs/with/report.yaml", *run.options]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("fine_figures")
@pytest.mark.slow  # six runs
def test_a_grid_runs_every_combination_and_is_compared(
    tmp_path: Path, phantoms: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(GRID))
    line = ["sweep", str(file), f"--out={out}", "--", *words_after(phantoms, tmp_path)]
    assert main(line) == 0
    rows = table(out)
    assert len(rows) == 6
    assert {(row["model.init_args.schedule.init_args.max_blur"], row["model.init_args.num_steps"]) for row in rows} == {
        (most, steps) for most in ("1.0", "24.0") for steps in "123"
    }
    for row in rows:
        report = json.loads((out / row["run"] / "report" / "report.json").read_text())
        assert float(row["metrics.sharpness.value"]) == report["metrics"]["sharpness"]["value"]
        config = yaml.safe_load((out / row["run"] / "config.yaml").read_text())
        assert str(config["model"]["init_args"]["num_steps"]) == row["model.init_args.num_steps"]
    assert (out / "plot.png").stat().st_size > 5000
    assert main(line) == 2
    assert "holds a sweep already" in capfd.readouterr().err
    assert main([*line[:3], "--resume", *line[3:]]) == 0  # all is done
    assert main([*line[:3], "--resume", *line[3:], "--trainer.max_steps=3"]) == 2
    assert "holds another sweep" in capfd.readouterr().err


@pytest.mark.slow  # two minutes
def test_a_killed_sweep_goes_on(tmp_path: Path, phantoms: Path) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(GRID | {"run_cap": 2}))
    more = [*words_after(phantoms, tmp_path), "--trainer.max_steps=40", "--trainer.val_check_interval=40"]
    line = [sys.executable, "-m", "lit_medgen", "sweep", str(file), f"--out={out}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runner = subprocess.Popen([*line, "--", *more], cwd=ROOT, env=environment)
    checkpoints = out / "run_000" / "checkpoints"
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("*.ckpt"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    time.sleep(0.5)
    reached = max(path.name for path in checkpoints.glob("step_*.ckpt"))
    assert reached < "step_0000040.ckpt"
    time.sleep(1)
    assert max(path.name for path in checkpoints.glob("step_*.ckpt")) == reached  # the run died with its runner
    subprocess.run([*line, "--resume", "--", *more], cwd=ROOT, env=environment, check=True)
    assert [row["run"] for row in table(out)] == ["run_000", "run_001"]
    assert "Restoring states" in (out / "run_000" / "output.txt").read_text()
    straight = TinyRun(tmp_path / "straight", phantoms, ("configs/ihdm.yaml",))
    parameters = ["--model.init_args.schedule.init_args.max_blur=1.0", "--model.init_args.num_steps=1"]
    assert straight.fit("--trainer.max_steps=40", "--trainer.val_check_interval=40", *parameters) == 0
    with next(straight.folder.glob("*/metrics.csv")).open(newline="") as log:
        losses = [row["train/loss"] for row in csv.DictReader(log) if row["train/loss"]]
    assert table(out)[0]["train/loss"] == losses[-1]  # to the same end


def listen_to_ctrl_c() -> None:
    """A shell's background job ignores SIGINT, and all that it starts do, too: tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupted_sweep_saves_its_run(tmp_path: Path, phantoms: Path) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(GRID | {"run_cap": 1}))
    more = [*words_after(phantoms, tmp_path), "--trainer.max_steps=10000", "--trainer.val_check_interval=10000"]
    line = [sys.executable, "-m", "lit_medgen", "sweep", str(file), f"--out={out}", "--", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runner = subprocess.Popen(
        line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    )
    deadline = time.monotonic() + 120
    while not (out / "run_000" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    runner.send_signal(signal.SIGINT)
    try:
        _, printed = runner.communicate(timeout=60)
    finally:
        runner.kill()
    assert runner.returncode == 130
    assert "stopped: SIGINT; what runs was told to save" in printed
    assert "Traceback" not in printed
    assert "--ckpt_path last continues" in (out / "run_000" / "output.txt").read_text()


class Forked:
    """Stands for a process of its own: a fork of this one, which need not import anything."""

    def __init__(self, line: list[str], stdout: Any, **_: Any) -> None:
        self.code = run_in_child(line[line.index("lit_medgen") + 1 :], Path(stdout.name))

    def wait(self) -> int:
        return self.code


def test_a_run_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, phantoms: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_medgen.sweep.subprocess.Popen", Forked)
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(GRID | {"parameters": {"model.init_args.num_steps": {"values": [0, 1]}}}))
    assert main(["sweep", str(file), f"--out={out}", "--", *words_after(phantoms, tmp_path)]) == 1
    printed = capfd.readouterr()
    assert "1 runs failed: run_000 (exit code 2): error: model.init_args.num_steps is 0" in printed.err
    assert [row["run"] for row in table(out)] == ["run_001"]


def test_a_misspelt_metric_ends_the_sweep_after_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that are done at once stand for those of minutes."""

    class Done:
        def __init__(self, line: list[str], **_: Any) -> None:
            place = next(word.partition("=")[2] for word in line if word.startswith("--name="))
            (tmp_path / "out" / place / "metrics.csv").write_text("step,val/loss,train/loss\n0,0.5,0.7\n")

        def wait(self) -> int:
            return 0

    monkeypatch.setattr("lit_medgen.sweep.subprocess.Popen", Done)
    file, line = tmp_path / "sweep.yaml", ["sweep", str(tmp_path / "sweep.yaml"), f"--out={tmp_path / 'out'}"]
    file.write_text(yaml.safe_dump(GRID | {"metric": {"name": "val/los", "goal": "minimize"}}))
    for more in ([], ["--resume"]):
        assert main([*line, *more]) == 2
        message = one_line(capsys)
        assert "'val/los'" in message
        assert "the nearest: val/loss, train/loss" in message
        assert [path.parent.name for path in tmp_path.rglob("done.json")] == ["run_000"]
    file.write_text(yaml.safe_dump(GRID | {"metric": {"name": "val/loss", "goal": "minimise"}}))
    assert main([*line, "--resume"]) == 2
    assert "minimize or maximize" in one_line(capsys)
    file.write_text(yaml.safe_dump(GRID | {"metric": {"name": "val/loss", "goal": "minimize"}}))
    assert main([*line, "--resume"]) == 0
    assert capsys.readouterr().out.count("0.5  run_00") == 6
    assert main([*line, "--resume"]) == 0
    (tmp_path / "out" / "table.csv").write_text("with my notes")
    assert main([*line, "--resume"]) == 2
    assert "table.csv: not written by this verb, or changed since" in one_line(capsys)
    assert (tmp_path / "out" / "table.csv").read_text() == "with my notes"


SCALES = [1.0, 2.0, 4.0, 8.0]
GUIDANCE = {
    "method": "grid",
    "metric": {"name": "metrics.frechet_axial.value", "goal": "minimize"},
    "parameters": {"model.init_args.conditioning.guidance_scale": {"values": SCALES}},
    "command": ["${env}", "python", "-m", "lit_medgen", "evaluate", "--ckpt_path", "last.ckpt", "${args}"],
}
PARETO = {"metrics.frechet_axial.value": "minimize", "agreement.ventricles_ml_r.value": "maximize"}


class Evaluated:
    """Stands for a run of `evaluate`: of four scales, 1 is beaten by 2, 8 by 4."""

    def __init__(self, line: list[str], **_: Any) -> None:
        scale = float(next(word.partition("=")[2] for word in line if "guidance_scale" in word))
        out = Path(next(word.partition("=")[2] for word in line if word.startswith("--out=")))
        distance, r = {1.0: (3.0, 0.2), 2.0: (2.0, 0.4), 4.0: (5.0, 0.8), 8.0: (9.0, 0.7)}[scale]
        report = {
            "metrics": {"frechet_axial": {"value": distance, "ci95": [distance - 1, distance + 1]}},
            "agreement": {"ventricles_ml_r": {"value": r, "ci95": [r - 0.1, r + 0.15]}},
            "own": {"bits": {"value": 3.5, "ci95": None}},
        }
        (out / "report.json").write_text(json.dumps(report))

    def wait(self) -> int:
        return 0


@pytest.fixture
def guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that run a sweep whose runs are done at once."""
    monkeypatch.setattr("lit_medgen.sweep.subprocess.Popen", Evaluated)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(GUIDANCE))
    return ["sweep", str(tmp_path / "sweep.yaml"), f"--out={tmp_path / 'out'}"]


@pytest.mark.usefixtures("fine_figures")
def test_two_scores_are_set_against_each_other(guidance: list[str], tmp_path: Path) -> None:
    """The table holds the intervals of what is plotted, and a sweep that is done is plotted again without a run."""
    out = tmp_path / "out"
    assert main(guidance) == 0
    assert not (out / "pareto.png").exists()
    assert "agreement.ventricles_ml_r.value.low" not in table(out)[0]
    assert main([*guidance, "--resume", f"--pareto={json.dumps(PARETO)}", "--plot=[own.bits.value]"]) == 0
    rows = table(out)
    assert [row["model.init_args.conditioning.guidance_scale"] for row in rows] == [str(scale) for scale in SCALES]
    for row, r in zip(rows, (0.2, 0.4, 0.8, 0.7), strict=True):
        assert float(row["agreement.ventricles_ml_r.value"]) == r
        assert float(row["agreement.ventricles_ml_r.value.low"]) == pytest.approx(r - 0.1)
        assert float(row["agreement.ventricles_ml_r.value.high"]) == pytest.approx(r + 0.15)
    assert "own.bits.value.low" not in rows[0]
    assert all((out / name).stat().st_size > 5000 for name in ("plot.png", "pareto.png"))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (['--pareto={"metrics.frechet_axial.value": "minimize"}'], "--pareto is .*give two scores"),
        ([f"--pareto={json.dumps(PARETO | {'own.bits.value': 'minimize'})}"], "--pareto is .*give two scores"),
        (['--pareto={"a": "minimise", "b": "maximize"}'], "pareto"),
        (
            [f"--pareto={json.dumps(PARETO).replace('_ml_r', '_r')}"],
            "--pareto names 'agreement.ventricles_r.value'.*_ml_r",
        ),
        (["--plot=[agreement.ventricles_ml_slope.value]"], "--plot names 'agreement.ventricles_ml_slope.value'"),
    ],
)
def test_scores_that_are_not_there_are_one_line(
    words: list[str], match: str, guidance: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*guidance, *words]) == 2
    assert re.search(match, one_line(capsys))


def test_the_front_holds_what_nothing_beats() -> None:
    """Against the definition, point by point: no other is at least as good in both and better in one."""
    points = np.random.default_rng(0).integers(0, 8, (40, 2)).astype(float)
    for goals in product(("minimize", "maximize"), repeat=2):
        signs = np.array([1 if goal == "minimize" else -1 for goal in goals])
        costs = points * signs
        expected = {i for i, cost in enumerate(costs) if not ((costs <= cost).all(1) & (costs < cost).any(1)).any()}
        found = pareto_front(points.tolist(), goals)  # type: ignore[arg-type]
        assert set(found) == expected
        assert points[found, 0].tolist() == sorted(points[found, 0])
    assert pareto_front([(1.0, float("nan")), (2.0, 1.0)], ("minimize", "minimize")) == [1]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_wandb_takes_every_key(file: Path) -> None:
    """Its schema of 2026 refuses all others, and names of parameters with other signs."""
    content = read(file)
    assert content.keys() <= {"method", "metric", "parameters", "command", "name", "description", "run_cap"}
    assert content["metric"].keys() <= {"name", "goal", "target"}
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) for name in content["parameters"])


def test_random_draws_stay_in_their_range_and_repeat() -> None:
    content = {
        "method": "random",
        "run_cap": 200,
        "parameters": {
            "a": {"min": 2, "max": 4},
            "b": {"min": 0.5, "max": 1.5},
            "c": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
            "d": {"values": ["x", "y"]},
            "e": {"value": 7},
        },
    }
    runs = expand(content, FILE)
    assert runs == expand(content, FILE)
    assert runs != expand(content, FILE, seed=1)
    assert {run["a"] for run in runs} == {2, 3, 4}
    assert all(0.5 <= run["b"] <= 1.5 and 1e-4 <= run["c"] <= 1 for run in runs)
    assert sum(run["c"] < 1e-2 for run in runs) == pytest.approx(100, abs=25)  # even in the logarithm
    assert {run["d"] for run in runs} == {"x", "y"}
    assert {run["e"] for run in runs} == {7}
    assert len(expand(content, FILE, num=3)) == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "bayes"}, "method is 'bayes'"),
        ({"method": "random"}, "run_cap"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "parameters.a"),
        ({"parameters": {"a": {"min": 1}}}, "parameters.a"),
        ({"parameters": {"a": {"values": 3}}}, "values is 3; give a list"),
        ({"method": "random", "run_cap": 1, "parameters": {"a": {"min": "1e-5", "max": 1}}}, "give numbers"),
        (
            {
                "method": "random",
                "run_cap": 1,
                "parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}},
            },
            "above 0",
        ),
        ({"method": "random", "run_cap": 1, "parameters": {"a": {"min": 1}}}, "no 'max'"),
        ({"method": "random", "run_cap": 1, "parameters": {"a": {"distribution": "beta", "min": 1, "max": 2}}}, "beta"),
        ({"command": ["python", "train.py", "${args}"]}, "command is python train.py"),
        ({"command": [*GRID["command"][:-1]]}, "command is"),
        ({"command": [*GRID["command"], "${args_json}"]}, r"without \$\{args_json\}"),
        ({"command": ["python", "-m", "lit_medgen", "sample", "${args}"]}, "runs 'sample'"),
    ],
)
def test_files_that_cannot_run_here_say_why(change: dict[str, Any], match: str) -> None:
    content = GRID | change
    with pytest.raises(InputError, match=match):
        command(content, FILE), expand(content, FILE)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"model.class_path": {"values": ["antigravity.Evil"]}}},
        {"parameters": {"data.init_args.preprocessing.raw_head.strip": {"value": "sh -c id"}}},
        {"command": [*GRID["command"], "--model.class_path=antigravity.Evil"]},
        {"command": [*GRID["command"], "--model", "antigravity.Evil"]},
        {"command": [*GRID["command"], "--trust_config"]},
    ],
)
def test_a_sweep_file_names_no_foreign_class_and_no_command(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(GRID | change))
    assert main(["sweep", str(file), f"--out={tmp_path / 'out'}"]) == 2
    assert "trust_config" in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "a: [", "method: grid", "- 1", "parameters: {}"])
def test_files_that_are_no_sweeps(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    assert main(["sweep", str(file)]) == 2
    assert str(file) in one_line(capsys)
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert "no file" in one_line(capsys)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_name_keys_that_exist(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = read(file)
    verb, words = command(content, file)
    runs = expand(content, file)
    assert len(runs) >= 5
    keys = [f"--{key}={value}" for key, value in runs[0].items()]
    if verb == "fit":
        with pytest.raises(SystemExit) as exit_:
            main(["fit", *words, *keys, "--print_config"])
        assert exit_.value.code == 0
        printed = capsys.readouterr().out
        for key, value in runs[0].items():
            assert re.search(rf"{key.rpartition('.')[2]}: {value}\b", printed)


@pytest.mark.slow
def test_the_command_that_wandb_makes_runs(tmp_path: Path, phantoms: Path) -> None:
    """The file read and its macros filled in by W&B's own functions, as its agent does it."""
    pytest.importorskip("wandb")
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    file = ROOT / "configs/sweeps/blur_schedule.yaml"
    content: Any = load_sweep_config(str(file))
    words = create_sweep_command(content["command"])
    assert words.pop() == "${args}"
    words = ["/usr/bin/env" if word == "${env}" else sys.executable if word == "python" else word for word in words]
    tiny = [*words_after(phantoms, tmp_path), f"--trainer.default_root_dir={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_SWEEP_ID": "sweep"}
    for name, run in zip("ab", expand(content, file)[1:3], strict=True):
        arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in run.items()}})["args"]
        subprocess.run([*words, *tiny, *arguments], cwd=ROOT, env=environment | {"WANDB_RUN_ID": name}, check=True)
        config = yaml.safe_load((tmp_path / f"ihdm_{name}" / "config.yaml").read_text())
        for key, value in run.items():
            found = config
            for part in key.split("."):
                found = found[part]
            assert found == value
        assert (tmp_path / f"ihdm_{name}" / "report" / "report.json").is_file()
