"""Equal time for each model of a comparison, whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_run import ROOT, TinyRun

from benchmarks import baselines, equal_time
from benchmarks.budget import Budget, steps_per_second
from benchmarks.equal_time import ENDLESS, Comparison, Model
from lit_medgen.errors import InputError

RESOLVED: dict[str, Any] = {
    "name": "shipped",
    "trainer": {
        "max_steps": 5000,
        "callbacks": [
            {"class_path": "lit_medgen.callbacks.EMA", "init_args": {"decay": 0.99}},
            {"class_path": "lit_medgen.callbacks.SampleGrid", "init_args": {"every_n_steps": 10}},
        ],
    },
    "model": {
        "init_args": {
            "first_stage": "elsewhere.ckpt",
            "learning_rate_schedule": {
                "class_path": "lit_medgen.training.WarmupCosine",
                "init_args": {"warmup_steps": 100, "total_steps": 5000},
            },
        }
    },
    "data": {"class_path": "data_modules.FolderDataModule", "init_args": {"attributes": ["sex"], "view": None}},
}
FIRST, SECOND, ALONE = Model("first", ()), Model("second", (), "first"), Model("alone", ())


class Machine:
    """A clock, and a trainer whose steps take a second each."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.trainer = SimpleNamespace(global_step=0, should_stop=False)

    def run(self, budget: Budget, num_steps: int = 1000) -> int:
        """Trains until the budget ends it, or for so many steps; returns how many."""
        self.trainer.should_stop = False
        budget.now = lambda: self.seconds
        budget.on_train_start(self.trainer, None)  # type: ignore[arg-type]
        before = self.trainer.global_step
        while self.trainer.global_step < before + num_steps and not self.trainer.should_stop:
            self.seconds += 1
            self.trainer.global_step += 1
            budget.on_train_batch_end(self.trainer, None)  # type: ignore[arg-type]
        return self.trainer.global_step - before


def test_a_budget_is_that_of_all_parts_of_a_run_together() -> None:
    machine = Machine()
    first, second = Budget(10), Budget(10)
    assert machine.run(first, 4) == 4
    machine.seconds += 1000  # while nothing runs
    second.load_state_dict(first.state_dict())
    assert machine.run(second) == 6
    assert second.state_dict() == {"spent": 10, "after_first": 1}


def test_the_first_step_is_not_of_the_pace() -> None:
    assert steps_per_second(11, {"spent": 25.0, "after_first": 5.0}) == 0.5
    assert steps_per_second(1, {"spent": 4.0, "after_first": 4.0}) == 0.25


def test_a_plan_ends_the_learning_rate_with_the_time(tmp_path: Path) -> None:
    found = Comparison(tmp_path, 60, "processor").config_of(SECOND, RESOLVED, tmp_path / "second", 300, 40)
    arguments = found["model"]["init_args"]
    assert arguments["learning_rate_schedule"]["init_args"] == {"warmup_steps": 30, "total_steps": 300}
    assert arguments["first_stage"] == str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert (found["name"], found["trainer"]["max_steps"]) == ("second", 300)
    ema, checkpoints, budget = found["trainer"]["callbacks"]
    assert ema == RESOLVED["trainer"]["callbacks"][0]
    assert checkpoints["init_args"]["every_n_minutes"] <= 1
    assert budget["init_args"] == {"seconds": 40, "clock": "processor"}
    assert RESOLVED["trainer"]["max_steps"] == 5000  # as it was


def test_a_discriminator_comes_in_after_half_of_the_steps(tmp_path: Path) -> None:
    schedule = RESOLVED["model"]["init_args"]["learning_rate_schedule"]
    model = {"discriminator_start": 5000, "discriminator_learning_rate_schedule": schedule}
    content = RESOLVED | {"model": {"init_args": model}}
    comparison = Comparison(tmp_path, 60)
    arguments = comparison.config_of(FIRST, content, tmp_path / "first", 301, 40)["model"]["init_args"]
    assert arguments["discriminator_start"] == 150
    assert arguments["discriminator_learning_rate_schedule"]["init_args"]["total_steps"] == 151
    pilot = comparison.config_of(FIRST, content, tmp_path / "first", ENDLESS, 40)["model"]["init_args"]
    assert pilot["discriminator_start"] == 0  # it is the slow half whose pace is measured


@dataclass(frozen=True)
class Pretended(Comparison):
    """A comparison whose runs take no time: 2 steps a second, of which the first stage needs fewer than it may."""

    commands: list[str] = field(default_factory=list)
    states: dict[str, tuple[int, float]] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)

    def run(self, name: str, words: Sequence[str]) -> None:
        """Notes what would be run; a run that is to be killed gets half of the way."""
        plan = next((Path(word.removeprefix("--config=")) for word in words if word.startswith("--config=")), None)
        is_pilot = plan is not None and plan.parent.name == "pilots"
        self.commands.append(f"pilot {name}" if is_pilot else f"{words[0]} {name}")
        if plan is None:
            return
        steps = 20 if is_pilot else yaml.safe_load(plan.read_text())["trainer"]["max_steps"]
        share = 0.5 if name in self.killed and not is_pilot else 0.8 if name == "first" else 1
        self.states[name] = int(steps * share), steps * share / 2
        if share == 0.5:
            raise KeyboardInterrupt

    def _spent(self, folder: Path) -> tuple[int, dict[str, float]]:  # type: ignore[override]
        steps, seconds = self.states.get(folder.name, (0, 0.0))
        folder.mkdir(parents=True, exist_ok=True)
        if folder.parent.name == "pilots":
            del self.states[folder.name]
        return steps, {"spent": seconds, "after_first": 0.5 if steps else 0.0}


def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    monkeypatch.setattr(equal_time, "resolved", lambda _: RESOLVED)
    return Pretended(tmp_path, 60)


def test_a_second_stage_has_what_the_first_one_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparison(tmp_path, monkeypatch)
    made.compare([SECOND, ALONE], [FIRST])
    of = [[f"pilot {name}", f"fit {name}", f"evaluate {name}"] for name in ("first", "second", "alone")]
    assert made.commands == [*of[0][:2], *of[1], *of[2], "compare compare"]
    first, second, alone = (made.done(name) for name in ("first", "second", "alone"))
    assert (first.budget_seconds, first.planned_steps, first.seconds) == (30, 60, 24)
    assert (second.budget_seconds, second.planned_steps) == (36, 72)
    assert second.total_seconds == alone.total_seconds == alone.budget_seconds == 60
    with (tmp_path / "times.csv").open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["first", "second", "alone"]


def test_a_model_alone_is_compared_with_nothing_and_needs_no_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = comparison(tmp_path, monkeypatch)
    made.compare([ALONE], [FIRST])
    assert made.commands == ["pilot alone", "fit alone", "evaluate alone"]


@pytest.mark.parametrize("killed", ["first", "second", "alone"])
def test_a_comparison_goes_on_where_it_was(killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the plan that there is; what is finished is not touched, and a third time there is nothing to do."""
    made = comparison(tmp_path, monkeypatch)
    made.killed.append(killed)
    with pytest.raises(KeyboardInterrupt):
        made.compare([SECOND, ALONE], [FIRST])
    plan, before = (tmp_path / "plans" / f"{killed}.yaml").read_text(), list(made.commands)
    made.killed.clear()
    made.compare([SECOND, ALONE], [FIRST])
    after = made.commands[len(before) :]
    assert after[0] == f"fit {killed}"
    assert not {command for command in before if command != f"fit {killed}"}.intersection(after)
    assert (tmp_path / "plans" / f"{killed}.yaml").read_text() == plan
    made.compare([SECOND, ALONE], [FIRST])
    assert made.commands[len(before) + len(after) :] == ["compare compare"]


def test_models_of_other_data_are_refused() -> None:
    def seen(**arguments: Any) -> dict[str, Any]:
        return {"data": {"class_path": "data_modules.FolderDataModule", "init_args": {"view": None} | arguments}}

    draw = {"class_path": "data_modules.UniformDraw", "init_args": {"max_slices": 4}}
    alike = {"one": seen(batch_size=2), "other": seen(batch_size=4), "sets": seen(batch_size=3, view=draw)}
    equal_time.refuse_other_data(alike)
    with pytest.raises(InputError, match=r"data, size: one has \[8\], but other \[9\]"):
        equal_time.refuse_other_data({"one": seen(size=[8]), "other": seen(size=[9])})
    slices = {"class_path": "data_modules.OneSlice", "init_args": {}}
    with pytest.raises(InputError, match="data, view: one has None, but other"):
        equal_time.refuse_other_data({"one": seen(), "other": seen(view=slices)})


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 3])
def test_models_that_are_shipped_see_the_same_images(dim: int) -> None:
    models = (*baselines.FIRST_STAGES[dim], *baselines.MODELS[dim])
    equal_time.refuse_other_data({model.name: equal_time.resolved(model) for model in models})


def test_a_model_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        baselines.main(["--minutes=1", "--out=x", "--only", "gan"])
    assert "no model 'gan'; choose from wgan, " in capsys.readouterr().err


SCRIPT = """
import sys
from pathlib import Path
from benchmarks.equal_time import Comparison, Model
models = [Model(name, tuple(configs), options=tuple(options)) for name, configs, options in {models}]
Comparison(Path(sys.argv[1]), 4.0, pilot_seconds=1.0, num=4).compare(models, [])
"""


@pytest.mark.slow
def test_a_comparison_that_is_killed_is_finished_by_the_same_command(tmp_path: Path, phantoms: Path) -> None:
    models = []
    for name in ("wgan", "ddpm_2d"):
        run = TinyRun(tmp_path, phantoms, (f"configs/{name}.yaml",))
        options = [*run.options, "--data.init_args.view=data_modules.OneSlice"]
        options += [f"--data.init_args.view.init_args.{key}" for key in ("middle=8", "per_person=2")]
        options += ["--model.init_args.network.init_args.size=[16,16]"] * (name == "wgan")
        models.append((name, run.configs[1::2], options))
    script, out = tmp_path / "compare.py", tmp_path / "out"
    script.write_text(SCRIPT.format(models=models))
    words, environment = [sys.executable, str(script), str(out)], os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(out.glob("ddpm_2d/checkpoints/step_*.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = (out / "done" / "wgan.json").stat().st_mtime_ns
    subprocess.run(words, env=environment, cwd=ROOT, check=True)
    assert (out / "done" / "wgan.json").stat().st_mtime_ns == before
    for name in ("wgan", "ddpm_2d"):
        done = json.loads((out / "done" / f"{name}.json").read_text())
        assert done["steps"] == done["planned_steps"] or 4 <= done["seconds"] < 6
        assert json.loads((out / name / "report" / "report.json").read_text())["num_samples"] == 4
    assert (out / "comparison" / "compare.md").is_file()
