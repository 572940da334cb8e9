"""Equal time for each model of a comparison: pilots, plans, trainings that go on where they were, evaluations.

`benchmarks.baselines` says which models, and what is made of them where.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.budget import Clock, steps_per_second
from lit_medgen.__main__ import main as lit_medgen
from lit_medgen.checkpoints import newest, read_checkpoint
from lit_medgen.errors import InputError, RunError
from lit_medgen.files import write_atomically
from lit_medgen.stopping import end_with_parent

ROOT = Path(__file__).parents[1]
ALIKE = {"attributes": ["age", "sex"]}
"""Arguments of the data module that are made alike: which attributes are known changes no image."""
OWN = {*ALIKE, "batch_size", "num_workers", "num_jobs", "axis"}
"""Arguments of the data module in which models may differ: how many images a step sees, and of cDPM which slices."""
ENDLESS = 10**7
"""Steps of a pilot, which its budget ends."""


@dataclass(frozen=True)
class Model:
    """A model of a comparison.

    Attributes:
        name: of its run.
        configs: that describe it, in order.
        first_stage: name of the model that its first stage is; "" if it has none.
        options: of the command line, after the configs.
    """

    name: str
    configs: tuple[str, ...]
    first_stage: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """What a model was given, and took.

    Attributes:
        model: its name.
        first_stage: the name of its first stage.
        budget_seconds: of its own training.
        seconds: that its own training took.
        total_seconds: with those of its first stage.
        planned_steps: that the budget was expected to be enough for.
        steps: that were trained.
        clock: what seconds were counted by.
    """

    model: str
    first_stage: str
    budget_seconds: float
    seconds: float
    total_seconds: float
    planned_steps: int
    steps: int
    clock: Clock


@dataclass(frozen=True)
class Comparison:
    """How models are compared.

    Attributes:
        out: the folder of all that is made.
        seconds: that each model is trained.
        clock: what these are counted by.
        pilot_seconds: of the pilot, beside them.
        num: samples of each model; None: as many as there are test people.
        batch_size: samples made at once.
    """

    out: Path
    seconds: float
    clock: Clock = "wall"
    pilot_seconds: float = 20.0
    num: int | None = None
    batch_size: int = 8

    # What is given to each.

    def config_of(self, model: Model, resolved: Mapping[str, Any], folder: Path, num_steps: int, seconds: float) -> Any:
        """The config of a run that lasts so many steps or seconds, whatever ends first.

        Args:
            model: what is trained.
            resolved: its config as shipped, every key with its value.
            folder: of the run.
            num_steps: that the learning rate is planned for; a discriminator comes in after half of them.
            seconds: of the budget.
        """
        config = deepcopy(dict(resolved))
        arguments, start = config["model"]["init_args"], 0
        if "discriminator_start" in arguments:
            arguments["discriminator_start"] = start = 0 if num_steps == ENDLESS else num_steps // 2
        for name, schedule in arguments.items():
            if name.endswith("learning_rate_schedule") and schedule and "total_steps" in schedule.get("init_args", {}):
                own = num_steps - start if name.startswith("discriminator") else num_steps
                warmup = min(schedule["init_args"]["warmup_steps"], own // 10)
                schedule["init_args"] |= {"total_steps": own, "warmup_steps": warmup}
        if model.first_stage:
            arguments["first_stage"] = str(self.checkpoint(model.first_stage))
        data = config["data"]["init_args"]
        data |= {name: value for name, value in ALIKE.items() if name in data}
        config["name"] = folder.name
        config["trainer"] |= {
            "default_root_dir": str(folder.parent),
            "max_steps": num_steps,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "callbacks": [*_averages(config["trainer"]["callbacks"]), *self._callbacks(seconds)],
        }
        return config

    def _callbacks(self, seconds: float) -> list[dict[str, Any]]:
        """What saves a run and ends it."""
        minutes = {"every_n_steps": None, "every_n_minutes": min(1.0, seconds / 600)}
        budget = {"seconds": seconds, "clock": self.clock}
        return [
            {"class_path": "lit_medgen.callbacks.Checkpoints", "init_args": minutes},
            {"class_path": "benchmarks.budget.Budget", "init_args": budget},
        ]

    # One model.

    def train(self, model: Model, resolved: Mapping[str, Any], seconds: float) -> Done:
        """Trains a model unless it is done; `seconds` are those of its own training."""
        record, plan = self.out / "done" / f"{model.name}.json", self.out / "plans" / f"{model.name}.yaml"
        if record.is_file():
            return Done(**json.loads(record.read_text()))
        if not plan.is_file():
            num_steps = max(2, int(self._pilot(model, resolved) * seconds))
            config = self.config_of(model, resolved, self.out / model.name, num_steps, seconds)
            plan.parent.mkdir(exist_ok=True)
            write_atomically(plan, yaml.safe_dump(config, sort_keys=False))
        num_steps = yaml.safe_load(plan.read_text())["trainer"]["max_steps"]
        steps, state = self._spent(self.out / model.name)
        if steps < num_steps and state["spent"] < seconds:
            self.run(model.name, ["fit", "--trust_config", f"--config={plan}", "--ckpt_path=last"])
            steps, state = self._spent(self.out / model.name)
        before = self.done(model.first_stage).seconds if model.first_stage else 0.0
        spent = state["spent"]
        done = Done(model.name, model.first_stage, seconds, spent, spent + before, num_steps, steps, self.clock)
        record.parent.mkdir(exist_ok=True)
        write_atomically(record, json.dumps(asdict(done)))
        return done

    def _pilot(self, model: Model, resolved: Mapping[str, Any]) -> float:
        """Steps per second of a model, with its discriminator from the first step on."""
        folder, plan = self.out / "pilots" / model.name, self.out / "pilots" / f"{model.name}.yaml"
        plan.parent.mkdir(exist_ok=True)
        config = self.config_of(model, resolved, folder, ENDLESS, self.pilot_seconds)
        write_atomically(plan, yaml.safe_dump(config, sort_keys=False))
        self.run(model.name, ["fit", "--trust_config", f"--config={plan}", "--ckpt_path=last"])
        rate = steps_per_second(*self._spent(folder))
        shutil.rmtree(folder)
        return rate

    def evaluate(self, model: Model) -> Path:
        """The folder of a model's report, which is written unless it is there."""
        report, record = self.out / model.name / "report", self.out / "done" / f"{model.name}_report"
        if not record.is_file():
            words = ["evaluate", f"--ckpt_path={self.checkpoint(model.name)}", f"--out={report}", "--strips=false"]
            num = [] if self.num is None else [f"--num={self.num}"]
            self.run(model.name, [*words, *num, f"--batch_size={self.batch_size}"])
            record.touch()
        return report

    def done(self, name: str) -> Done:
        """What a finished model took."""
        return Done(**json.loads((self.out / "done" / f"{name}.json").read_text()))

    def checkpoint(self, name: str) -> Path:
        """The newest checkpoint of a model."""
        return self.out / name / "checkpoints" / "last.ckpt"

    @staticmethod
    def _spent(folder: Path) -> tuple[int, dict[str, float]]:
        """Steps of a run so far, and the state of its budget."""
        path = newest(folder / "checkpoints")
        if path is None:
            return 0, {"spent": 0.0, "after_first": 0.0}
        content = read_checkpoint(path)
        return content["global_step"], content["callbacks"]["Budget"]

    def run(self, name: str, words: Sequence[str]) -> None:
        """Runs a verb in a process of its own; RunError, with the last line it printed, if that fails."""
        log = self.out / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name}: {' '.join(words)}", flush=True)
        with log.open("a") as output:
            # Two processes in one run folder would spoil it: one that is killed takes the other along.
            line = [sys.executable, "-m", "lit_medgen", *words]
            code = subprocess.run(line, stdout=output, stderr=output, cwd=ROOT, preexec_fn=end_with_parent).returncode
        if code:
            last = (log.read_text().splitlines() or [""])[-1]
            raise RunError(f"{name} (exit code {code}, {log}): {last}; mend the cause and give the same command again.")

    # All of them.

    def compare(self, models: Sequence[Model], first_stages: Sequence[Model]) -> None:
        """Trains and evaluates all models, and writes the table of times and, of several, the comparison."""
        needed = [stage for stage in first_stages if any(model.first_stage == stage.name for model in models)]
        configs = {model.name: resolved(model) for model in (*needed, *models)}
        refuse_other_data(configs)
        self.out.mkdir(parents=True, exist_ok=True)
        for stage in needed:
            self.train(stage, configs[stage.name], self.seconds / 2)
        reports = []
        for model in models:
            before = self.done(model.first_stage).seconds if model.first_stage else 0.0
            self.train(model, configs[model.name], self.seconds - before)
            reports.append(self.evaluate(model))
        self.write_times([*needed, *models])
        if len(models) > 1:
            words = *map(str, reports), f"--out={self.out / 'comparison'}"
            self.run("compare", ["compare", *words, "--names", *(model.name for model in models)])

    def write_times(self, models: Iterable[Model]) -> None:
        """The table of what each model was given, and took."""
        rows = [asdict(self.done(model.name)) for model in models]
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.out / "times.csv", text.getvalue())


def _averages(callbacks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the callbacks of a config those that average weights."""
    return [callback for callback in callbacks if callback["class_path"].endswith(".EMA")]


def resolved(model: Model) -> dict[str, Any]:
    """Every key of a model's config with its value."""
    printed = io.StringIO()
    words = [f"--config={ROOT / config}" for config in model.configs]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        lit_medgen(["fit", *words, *model.options, "--print_config"])
    content: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return content


def refuse_other_data(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """InputError if models do not read the same images of the same people."""
    (first, expected), *others = configs.items()
    for name, config in others:
        for key in ("class_path", *expected["data"]["init_args"]):
            ours, theirs = _seen(expected["data"], key), _seen(config["data"], key)
            if key not in OWN and ours != theirs:
                raise InputError(f"data, {key}: {first} has {ours}, but {name} {theirs}; let both have the same.")


def _seen(data: Mapping[str, Any], key: str) -> Any:
    """What decides which images a model sees: the value of a key; sets of slices are seen as whole volumes."""
    value = data.get(key, data["init_args"].get(key))
    is_set = key == "view" and value and value["class_path"].endswith("Draw")
    return None if is_set or (key == "view" and value and value["class_path"].endswith(".Volume")) else value
