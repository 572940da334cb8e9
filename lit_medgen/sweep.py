"""`sweep`: runs a W&B sweep file on this machine, one run after the other, without W&B.

The same file serves `wandb sweep` and `wandb agent`: its command is a verb of ours with `${args}` in place of the
parameters, which become plain keys of the command line. Here

    <out>/sweep.json          what is run, so that a continued sweep is the same sweep
    <out>/run_000/            the run folder of `fit`, or the report of `evaluate`
    <out>/run_000/done.json   its parameters and scores, written when it has ended well
    <out>/table.csv           a row for each run
    <out>/plot.png            the metric against each parameter

A sweep that was interrupted, whatever way, goes on with `--resume`: runs that ended stay, the one that was interrupted
goes on from its newest checkpoint, to the same end.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import numpy as np
from joblib import Parallel, delayed

from lit_medgen.arguments import pairs, read_yaml
from lit_medgen.errors import InputError, Interrupted, MissingDataError, RunError
from lit_medgen.files import Outputs, as_csv, write_atomically
from lit_medgen.signals import Stop
from lit_medgen.stopping import end_with_parent
from lit_medgen.trust import refuse_untrusted

Verb = Literal["fit", "evaluate"]
MACROS = {"${env}", "${interpreter}", "${program}", "${args}"}


def sweep(args: list[str]) -> None:
    """The verb `sweep FILE`; what follows `--` is added to the command of every run."""
    words, more = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    parser = jsonargparse.ArgumentParser(
        prog="lit_medgen sweep", exit_on_error=False, description="Words after -- are added to every run's command."
    )
    parser.add_function_arguments(run_sweep, skip={"more"}, as_positional=True)
    try:
        options = parser.parse_args(["--resume=true" if word == "--resume" else word for word in words])
    except jsonargparse.ArgumentError as error:
        raise InputError(f"sweep: {error}") from error
    run_sweep(**options.as_dict(), more=more)


def run_sweep(
    file: Path,
    out: Path | None = None,
    resume: bool = False,
    num: int | None = None,
    seed: int = 0,
    num_jobs: int = 1,
    more: Sequence[str] = (),
) -> None:
    """Run a W&B sweep file on this machine.

    Args:
        file: the sweep file.
        out: folder of the sweep; None: runs/sweeps/<name of the file>.
        resume: go on with a sweep that was interrupted.
        num: runs of a random sweep; None: the file's run_cap.
        seed: of a random sweep.
        num_jobs: runs at once.
        more: words added to the command of every run.
    """
    content = read(file)
    metric = content.get("metric") or {}
    verb, words = command(content, file)
    runs = expand(content, file, num, seed)
    folder = out or Path("runs", "sweeps", file.stem)
    plan = json.dumps({"verb": verb, "command": words, "more": list(more), "runs": runs}, indent=2)
    run_folders = [folder / f"run_{i:03d}" for i in range(len(runs))]
    _begin(folder, plan, resume, run_folders)
    for row in _done(run_folders):
        refuse_unknown_metric(row, metric, file)
    running: list[subprocess.Popen[bytes]] = []
    check = partial(refuse_unknown_metric, metric=metric, file=file)
    jobs = [
        delayed(_run)(verb, [*words, *more], parameters, run_folder, running, check)
        for parameters, run_folder in zip(runs, run_folders, strict=True)
        if not (run_folder / "done.json").is_file()
    ]
    try:
        failed = [fault for fault in Parallel(num_jobs, prefer="threads")(jobs) if fault]
    except Stop as stop:  # every run saves after its step
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        raise Interrupted(f"{stop}; what runs was told to save; go on with --resume.", 128 + stop.signum) from None
    rows, tables = _done(run_folders), _tables(folder)
    tables.claim()
    _write_table(folder / "table.csv", rows)
    if metric.get("name") and rows:
        _plot(folder / "plot.png", rows, metric["name"])
        _print_best(rows, metric)
    tables.end()
    print(f"{len(rows)} of {len(runs)} runs done; table: {folder / 'table.csv'}")
    if failed:
        raise RunError(f"{len(failed)} runs failed: {'; '.join(failed)}. Mend the cause and go on with --resume.")


def _done(run_folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Parameters and scores of the runs that have ended well."""
    return [json.loads(path.read_text()) for each in run_folders if (path := each / "done.json").is_file()]


def refuse_unknown_metric(row: Mapping[str, Any], metric: Mapping[str, str], file: Path) -> None:
    """InputError if a run that has ended has no score of the sweep's metric: no other will have it."""
    name = metric.get("name")
    if name and name not in row["scores"]:
        near = get_close_matches(name, row["scores"], 3, 0.5) or list(row["scores"])
        raise InputError(
            f"{file}: metric.name is {name!r}, but {row['run']} has no such score; the nearest: {', '.join(near)}. The "
            "run is kept; mend the file and go on with --resume."
        )


def read(file: Path) -> dict[str, Any]:
    """The content of a sweep file; InputError if the file is none."""
    if not file.is_file():
        raise MissingDataError(f"sweep: no file '{file}'; give a sweep file, e.g. configs/sweeps/blur_schedule.yaml.")
    content = read_yaml(file)
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        raise InputError(f"{file}: no `parameters`; a sweep file has method, metric, command, parameters.")
    metric = content.get("metric") or {}
    if not isinstance(metric, dict) or metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise InputError(f"{file}: metric is {metric!r}; give name, and as goal minimize or maximize.")
    given = [(key, choice) for key, spec in content["parameters"].items() for choice in _texts(spec)]
    words = [str(word) for word in content.get("command") or []]
    given += [(option.removeprefix("--"), value) for option, value in pairs(words) if option.startswith("--")]
    refuse_untrusted([{key.rpartition(".")[2]: value} for key, value in given], file)
    if "--trust_config" in words:
        raise InputError(f"{file}: command has --trust_config, which is yours to give: after --, on the command line.")
    return content


def _texts(spec: Any) -> list[Any]:
    """What a parameter may become; of a file that is no sweep, whatever is there."""
    if not isinstance(spec, dict):
        return [spec]
    values = spec.get("values")
    return [value for name, value in spec.items() if name != "values"] + (
        values if isinstance(values, list) else [values]
    )


def command(content: Mapping[str, Any], file: Path) -> tuple[Verb, list[str]]:
    """The verb and its words, without the parameters; InputError if it is not a command of ours."""
    words = [str(word) for word in content.get("command") or []]
    unknown = [word for word in words if word.startswith("${") and word not in MACROS]
    module = [i for i, word in enumerate(words[:-1]) if (words[i - 1], word) == ("-m", "lit_medgen")]
    if unknown or not module or words.count("${args}") != 1:
        raise InputError(
            f"{file}: command is {' '.join(words) or 'missing'}; expected ${{env}} python -m lit_medgen fit ... "
            + (f"${{args}}, without {unknown[0]}." if unknown else "${args}.")
        )
    verb, *rest = [word for word in words[module[0] + 1 :] if word != "${args}"]
    if verb not in ("fit", "evaluate"):
        raise InputError(f"{file}: command runs {verb!r}; a sweep runs fit or evaluate.")
    return verb, rest  # type: ignore[return-value]


def expand(content: Mapping[str, Any], file: Path, num: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The parameters of every run: all combinations (grid), or `num` random ones (random)."""
    method, parameters = content.get("method"), content["parameters"]
    for key, spec in parameters.items():
        if not isinstance(spec, dict) or "parameters" in spec:
            raise InputError(f"{file}: parameters.{key}: give value, values or a distribution.")
    if method == "grid":
        choices = {key: _choices(key, spec, file) for key, spec in parameters.items()}
        runs = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
        return runs[: num or content.get("run_cap")]
    if method == "random":
        cap = num or content.get("run_cap")
        if not cap:
            raise InputError(f"{file}: a random sweep needs an end: run_cap in the file, or --num.")
        random = np.random.default_rng(seed)
        return [{key: _random_value(key, spec, random, file) for key, spec in parameters.items()} for _ in range(cap)]
    raise InputError(f"{file}: method is {method!r}; grid and random run here, others need `wandb sweep`.")


def _choices(key: str, spec: Mapping[str, Any], file: Path) -> list[Any]:
    if "values" in spec:
        if not isinstance(spec["values"], list) or not spec["values"]:
            raise InputError(f"{file}: parameters.{key}: values is {spec['values']!r}; give a list.")
        return list(spec["values"])
    if "value" in spec:
        return [spec["value"]]
    raise InputError(f"{file}: parameters.{key}: a grid needs values or value.")


def _random_value(key: str, spec: Mapping[str, Any], random: np.random.Generator, file: Path) -> Any:
    """A random value of one of W&B's distributions."""
    if "values" in spec or "value" in spec:
        choices = _choices(key, spec, file)
        return choices[int(random.integers(len(choices)))]
    try:
        low, high = spec["min"], spec["max"]
    except KeyError as error:
        raise InputError(f"{file}: parameters.{key}: no {error}; give values, or min and max.") from error
    if not all(isinstance(bound, int | float) for bound in (low, high)) or low > high:
        raise InputError(f"{file}: parameters.{key}: min is {low!r} and max {high!r}; give numbers (1.0e-5, not 1e-5).")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = spec.get("distribution", "int_uniform" if whole else "uniform")
    match distribution:
        case "int_uniform":
            return int(random.integers(low, high + 1))
        case "uniform":
            return float(random.uniform(low, high))
        case "log_uniform_values" if low > 0:
            return float(math.exp(random.uniform(math.log(low), math.log(high))))
    raise InputError(
        f"{file}: parameters.{key}: distribution is {distribution!r} from {low}; int_uniform, uniform and "
        "log_uniform_values above 0 run here, others need `wandb sweep`."
    )


def _begin(folder: Path, plan: str, resume: bool, run_folders: Sequence[Path]) -> None:
    """Writes the plan, which proves that the folder is the sweep's.

    InputError if another sweep lies there, or this one and it is not to go on, or what no sweep wrote.
    """
    there = folder / "sweep.json"
    if there.is_file():
        if not resume:
            raise InputError(f"{folder}: holds a sweep already; go on with --resume, or give another --out.")
        if there.read_text(errors="replace") != plan:
            raise InputError(f"{folder}: holds another sweep (file, seed or command differ); give another --out.")
    else:
        Outputs(folder, "sweep", ["sweep.json", *(run_folder.name for run_folder in run_folders)]).check()
    _tables(folder).check()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(there, plan)


def _tables(folder: Path) -> Outputs:
    """What is written at the end; the user may have changed it since."""
    return Outputs(folder, "sweep", ["table.csv", "plot.png"])


def _run(
    verb: Verb,
    words: Sequence[str],
    parameters: Mapping[str, Any],
    run_folder: Path,
    running: list[subprocess.Popen[bytes]],
    check: Callable[[Mapping[str, Any]], None],
) -> str:
    """One run in its own process, noted in `running`, its scores seen by `check`; what went wrong, or nothing."""
    keys = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in parameters.items()]
    where = [f"--out={run_folder}"]
    if verb == "fit":
        where = [f"--trainer.default_root_dir={run_folder.parent}", f"--name={run_folder.name}", "--ckpt_path=last"]
    line = [sys.executable, "-m", "lit_medgen", verb, *words, *keys, *where]
    print(f"{run_folder.name}: {shlex.join(keys)}", flush=True)
    run_folder.mkdir(parents=True, exist_ok=True)
    with (run_folder / "output.txt").open("a") as output:
        # A runner that is killed takes its run along: two processes in one run folder would spoil it.
        process = subprocess.Popen(line, stdout=output, stderr=output, preexec_fn=end_with_parent)
        running.append(process)
        code = process.wait()
    if code in (130, 143):
        raise Interrupted(f"{run_folder.name} was stopped; go on with --resume.", code)
    if code:
        last = (run_folder / "output.txt").read_text().splitlines() or [""]
        return f"{run_folder.name} (exit code {code}): {last[-1]}"
    row = {"run": run_folder.name, **parameters, "scores": scores(run_folder)}
    write_atomically(run_folder / "done.json", json.dumps(row))
    check(row)
    return ""


def scores(run_folder: Path) -> dict[str, float]:
    """What a run folder or report says at its end: name -> value, as W&B would have it."""
    by_name: dict[str, float] = {}
    if (run_folder / "metrics.csv").is_file():
        with (run_folder / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                by_name |= {name: float(value) for name, value in row.items() if value}
    from lit_medgen.callbacks.report import logged  # heavy, and not needed to refuse a file

    for report in run_folder.glob("**/report.json"):
        by_name |= logged(json.loads(report.read_text()))
    return by_name


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    flat = [{name: value for name, value in (row | row["scores"]).items() if name != "scores"} for row in rows]
    write_atomically(path, as_csv(flat, list(dict.fromkeys(name for row in flat for name in row))))


def _print_best(rows: Sequence[Mapping[str, Any]], metric: Mapping[str, str]) -> None:
    name = metric["name"]
    scored = [row for row in rows if name in row["scores"]]
    for row in sorted(scored, key=lambda row: row["scores"][name], reverse=metric.get("goal") == "maximize"):
        settings = ", ".join(
            f"{key.rpartition('.')[2]} {value}" for key, value in row.items() if key not in ("run", "scores")
        )
        print(f"{row['scores'][name]:.4g}  {row['run']}: {settings}")


def _plot(path: Path, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """The metric against every parameter that varies."""
    from lit_medgen.images.plots import save_sweep  # numpy and pillow, which a sweep that is refused does not need

    names = [name for name in rows[0] if name not in ("run", "scores")]
    varied = [name for name in names if len({json.dumps(row[name]) for row in rows}) > 1]
    values = [row["scores"].get(metric, math.nan) for row in rows]
    save_sweep(path, {name: [row[name] for row in rows] for name in varied or names[:1]}, values, metric)
