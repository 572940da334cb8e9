"""`sweep`: runs a W&B sweep file on this machine, one run after the other, without W&B.

The same file serves `wandb sweep` and `wandb agent`: its command is a verb of ours with `${args}` in place of the
parameters, which become plain keys of the command line. Here

    <out>/sweep.json          what is run, so that a continued sweep is the same sweep
    <out>/run_000/            the run folder of `fit`, or the report of `evaluate`; called as the file's `name` says if
                              that holds parameters, as in cdpm_fold{fold}
    <out>/run_000/done.json   its parameters and scores, written when it has ended well
    <out>/table.csv           a row for each run
    <out>/plot.png            the metric, and other scores, against each parameter
    <out>/pareto.png          with --pareto: two scores against each other

A sweep that was interrupted, whatever way, goes on with `--resume`: runs that ended stay, the one that was interrupted
goes on from its newest checkpoint, to the same end.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from joblib import Parallel, delayed

from lit_medgen.errors import InputError, Interrupted, RunError, with_nearest
from lit_medgen.files import Outputs, write_atomically
from lit_medgen.signals import Stop
from lit_medgen.stopping import end_with_parent
from lit_medgen.sweep_file import Verb, command, expand, read, run_names
from lit_medgen.sweep_results import FILES, Chosen, Goal, scores, write_results


def sweep(args: list[str]) -> None:
    """The verb `sweep FILE`; what follows `--` is added to the command of every run."""
    words, more = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    parser = jsonargparse.ArgumentParser(
        prog="lit_medgen sweep",
        exit_on_error=False,
        allow_abbrev=False,
        description="Words after -- are added to every run's command.",
    )
    parser.add_function_arguments(run_sweep, skip={"more"}, as_positional=True)
    try:
        options = parser.parse_args(["--resume=true" if word == "--resume" else word for word in words])
    except jsonargparse.ArgumentError as error:
        raise InputError(f"sweep: {with_nearest(str(error), parser)}") from error
    run_sweep(**options.as_dict(), more=more)


def run_sweep(
    file: Path,
    out: Path | None = None,
    resume: bool = False,
    num: int | None = None,
    seed: int = 0,
    num_jobs: int = 1,
    plot: Sequence[str] = (),
    pareto: dict[str, Goal] | None = None,
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
        plot: scores that are plotted against the parameters besides the file's metric.
        pareto: two scores that are plotted against each other with their Pareto front, and what is best, e.g.
            '{"metrics.frechet_axial.value": "minimize", "agreement.ventricles_ml_r.value": "maximize"}'.
        more: words added to the command of every run.
    """
    content = read(file)
    chosen = Chosen(file, content.get("metric") or {}, plot, pareto or {})
    verb, words = command(content, file)
    runs = expand(content, file, num, seed)
    folder = out or Path("runs", "sweeps", file.stem)
    plan = json.dumps({"verb": verb, "command": words, "more": list(more), "runs": runs}, indent=2)
    run_folders = [folder / name for name in run_names(content, runs, file)]
    _begin(folder, plan, resume, run_folders)
    for row in _done(run_folders):
        chosen.refuse_unknown(row)
    running: list[subprocess.Popen[bytes]] = []
    jobs = [
        delayed(_run)(verb, [*words, *more], parameters, run_folder, running, chosen)
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
    write_results(folder, rows, chosen)
    tables.end()
    print(f"{len(rows)} of {len(runs)} runs done; table: {folder / 'table.csv'}")
    if failed:
        raise RunError(f"{len(failed)} runs failed: {'; '.join(failed)}. Mend the cause and go on with --resume.")


def _done(run_folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Parameters and scores of the runs that have ended well."""
    return [json.loads(path.read_text()) for each in run_folders if (path := each / "done.json").is_file()]


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
    return Outputs(folder, "sweep", FILES)


def _run(
    verb: Verb,
    words: Sequence[str],
    parameters: Mapping[str, Any],
    run_folder: Path,
    running: list[subprocess.Popen[bytes]],
    chosen: Chosen,
) -> str:
    """One run in its own process, noted in `running`, which has the chosen scores; what went wrong, or nothing."""
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
    row = {"run": run_folder.name, **parameters, **scores(run_folder)}
    write_atomically(run_folder / "done.json", json.dumps(row))
    chosen.refuse_unknown(row)
    return ""
