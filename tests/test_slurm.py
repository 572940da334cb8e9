"""A run under a real SLURM: whatever stops or restarts its job, it goes on and ends with the same bits."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from slurm.cluster import Cluster, Job, missing
from test_resume import assert_equal, losses
from tiny_run import ROOT, TinyRun

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(missing()), reason=f"no SLURM here: {', '.join(missing())} not found"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment (Linux)"),
]

SCRIPT = ROOT / "configs" / "with" / "slurm.sh"
STEPS = 80
MARGIN = 20  # steps that are left after the last interruption, so that none comes too late
SECONDS = 0.15  # of a step
GRACE_S = 10.0  # from a signal until the checkpoint is there
TASKS = (1, 1, 1, 2)  # of four jobs that are interrupted at once
WAYS = ("signal", "requeue", "signal", "start", "signal")  # how each of them is: 4 x 5 = 20 times


class Training:
    """The shipped job script on the shipped experiment at the least size; saves only when it is stopped."""

    def __init__(
        self, cluster: Cluster, folder: Path, phantoms: Path, tasks: int = 1, seconds: float = SECONDS
    ) -> None:
        self.cluster, self.folder, self.tasks = cluster, folder, tasks
        folder.mkdir(parents=True, exist_ok=True)
        tiny = TinyRun(folder, phantoms)
        self.words = [
            *(
                "--config",
                "tests/tiny/any.yaml",
                "--config",
                "tests/tiny/volumes.yaml",
                "--config",
                "tests/tiny/cdpm.yaml",
                *tiny.options,
                f"--trainer.default_root_dir={folder}",
            ),
            *(f"--trainer.devices={tasks}", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=25"),
            self.callbacks(seconds),
        ]
        self.options = [f"--ntasks-per-node={tasks}", "--cpus-per-task=1", "--gpus-per-node=1"]
        self.job: Job

    def callbacks(self, seconds: float = SECONDS, fail_rank: int = 0, fail_step: int = -1) -> str:
        """The callbacks as one word of the command line; the last such word wins."""
        slow = f'"folder": "{self.folder}", "seconds": {seconds}, "fail_rank": {fail_rank}, "fail_step": {fail_step}'
        return (
            '--trainer.callbacks=[{"class_path": "lit_medgen.callbacks.EMA"}, '
            '{"class_path": "lit_medgen.callbacks.Checkpoints", "init_args": {"every_n_steps": 1000}}, '
            f'{{"class_path": "slurm.slow.Slow", "init_args": {{{slow}}}}}]'
        )

    def submit(self, *words: str, options: tuple[str, ...] = (), script: Path = SCRIPT) -> list[Job]:
        jobs = self.cluster.submit(self.folder, [*self.words, *words], script, [*self.options, *options])
        self.job = jobs[0]
        return jobs

    @property
    def step(self) -> int:
        """Steps taken so far."""
        try:
            return int((self.folder / "step").read_text() or 0)
        except FileNotFoundError:
            return 0

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return next(self.folder.glob("*/checkpoints/last.ckpt"))

    @property
    def log(self) -> str:
        return self.job.log.read_text()

    def wait_for_step(self, step: int) -> None:
        """Until the run is there, and on."""

        def there() -> bool:
            if self.step >= step:
                return True
            assert self.job.state in ("PENDING", "RUNNING", "COMPLETING"), str(self.job)
            return False

        self.cluster.wait_for(there, 600, self.job)

    def saved_after(self, moment: float) -> float:
        """Seconds from a moment to the end of the next save."""
        folder = self.folder / "cdpm" / "checkpoints"

        def times() -> list[float]:
            return [path.stat().st_mtime for path in folder.glob("step_*.ckpt") if path.stat().st_mtime > moment]

        self.cluster.wait_for(lambda: bool(times()), 2 * GRACE_S, self.job)
        return min(times()) - moment

    def check(self, straight: Training) -> None:
        """It ended, with the bits of a run that was left alone."""
        facts = self.job.end()
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), str(self.job)
        assert "Traceback" not in self.log, self.log
        a, b = (torch.load(run.last, weights_only=True) for run in (straight, self))
        assert a["global_step"] == b["global_step"] == STEPS
        for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "loops"):
            assert_equal(a[part], b[part])
        assert losses(straight.folder) == losses(self.folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))  # where slurm.slow is
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(ROOT)
        with Cluster() as cluster:
            yield cluster


class Straight:
    """Runs that were left alone, for one and for two processes; each is made when it is first asked for."""

    def __init__(self, cluster: Cluster, folder: Path, phantoms: Path) -> None:
        self.make = partial(Training, cluster, phantoms=phantoms, seconds=0)
        self.folder, self.runs = folder, dict[int, Training]()

    def start(self, tasks: int = 1) -> None:
        if tasks not in self.runs:
            self.runs[tasks] = self.make(folder=self.folder / str(tasks), tasks=tasks)
            self.runs[tasks].submit()

    def __call__(self, tasks: int = 1) -> Training:
        self.start(tasks)
        assert self.runs[tasks].job.end()["JobState"] == "COMPLETED", str(self.runs[tasks].job)
        return self.runs[tasks]


@pytest.fixture(scope="module")
def straight(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Straight:
    runs = Straight(cluster, tmp_path_factory.mktemp("straight"), phantoms)
    runs(1)  # prepares the store
    return runs


def interrupt(run: Training, way: str, random: np.random.Generator) -> float | None:
    """Interrupts a run once, at a random moment; returns the seconds until it is saved, if it is by then training."""
    restarts, job = run.job.restarts, run.job
    if way == "start":  # at any moment, from the first of its life
        run.cluster.wait_for(lambda: job.state == "RUNNING", 600, job)
        time.sleep(random.uniform(0, 10))
    else:
        time.sleep(random.uniform(0, SECONDS))
    moment = time.time()
    words = ("scancel", "--signal=USR1") if way == "signal" else ("scontrol", "requeue")
    run.cluster.call(*words, job.id)
    seconds = None if way == "start" else run.saved_after(moment)
    run.cluster.wait_for(lambda: job.restarts == restarts + 1, 60, job)
    return seconds


def test_a_run_survives_every_requeue(cluster: Cluster, straight: Straight, tmp_path: Path, phantoms: Path) -> None:
    """USR1 to its tasks, after which it requeues itself, or `scontrol requeue` from outside."""

    def live(number: int) -> list[float | None]:
        random = np.random.default_rng(number)
        run = Training(cluster, tmp_path / str(number), phantoms, TASKS[number])
        run.submit()
        taken = []
        for count, way in enumerate(random.permutation(WAYS), start=1):
            if way != "start":
                before = run.step
                latest = before + (STEPS - MARGIN - before) * count // len(WAYS)
                run.wait_for_step(int(random.integers(before + 1, max(before + 2, latest))))
            taken.append(interrupt(run, way, random))
        assert run.job.end()["Restarts"] == str(len(WAYS)), str(run.job)
        assert run.log.count("the job is requeued") == WAYS.count("signal"), run.log
        run.check(straight(run.tasks))
        return taken

    for tasks in set(TASKS):
        straight.start(tasks)
    start = time.monotonic()
    with ThreadPoolExecutor(len(TASKS)) as pool:
        taken = [seconds for each in pool.map(live, range(len(TASKS))) for seconds in each]
    saves = [seconds for seconds in taken if seconds is not None]
    print(
        f"{len(taken)} requeues, {len(saves)} of them while training; from signal to checkpoint "
        f"{np.median(saves):.2f} s, at most {max(saves):.2f} s; {time.monotonic() - start:.0f} s in all"
    )
    assert max(saves) < GRACE_S


def test_the_time_limit(cluster: Cluster, straight: Straight, tmp_path: Path, phantoms: Path) -> None:
    """--signal=USR1@N, the script's own way."""
    run = Training(cluster, tmp_path, phantoms, seconds=0.9)
    run.submit(options=("--signal=USR1@20", "--time=60"))
    run.wait_for_step(2)
    # SLURM looks at limits every 30 s, and signals early rather than late.
    cluster.call("scontrol", "update", f"JobId={run.job.id}", "EndTime=now+50seconds")
    cluster.wait_for(lambda: run.job.restarts == 1, 120, run.job)
    cluster.call("scontrol", "update", f"JobId={run.job.id}", "TimeLimit=60")
    assert "stopped: SIGUSR1" in run.log
    run.check(straight())
    assert run.job.restarts == 1


def test_a_cancelled_run_is_saved_and_continues_when_submitted_again(
    cluster: Cluster, straight: Straight, tmp_path: Path, phantoms: Path
) -> None:
    run = Training(cluster, tmp_path, phantoms, tasks=2)
    run.submit()
    run.wait_for_step(10)
    assert "TresPerTask=cpu:1" in cluster.call("scontrol", "show", "step", f"{run.job.id}.0")  # not left to srun
    moment = time.time()
    cluster.call("scancel", run.job.id)
    assert run.saved_after(moment) < GRACE_S
    facts = run.job.end()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("CANCELLED", "143:0", "0"), str(run.job)
    assert "stopped: SIGTERM" in run.log
    assert "Traceback" not in run.log
    run.submit()
    run.check(straight(2))


@pytest.mark.parametrize("partition", ["low", "graceful"])
def test_a_preempted_run_starts_again(
    partition: str, cluster: Cluster, straight: Straight, tmp_path: Path, phantoms: Path
) -> None:
    """At once, or with a time of grace, in which a job that ends is not requeued by SLURM."""
    run = Training(cluster, tmp_path / "run", phantoms)
    run.submit(options=(f"--partition={partition}",))
    run.wait_for_step(10)
    wait = tmp_path / "wait.sh"
    wait.write_text("#!/bin/bash\nsleep 1\n")
    moment = time.time()
    [urgent] = cluster.submit(tmp_path, [], wait, ["--partition=high", "--exclusive"])
    assert run.saved_after(moment) < GRACE_S
    assert urgent.end()["JobState"] == "COMPLETED"
    run.check(straight())
    assert run.job.restarts == 1


def test_each_task_of_an_array_goes_on_by_itself(cluster: Cluster, tmp_path: Path, phantoms: Path) -> None:
    """As the script's comment says."""
    script = tmp_path / "array.sh"
    task = "--name=cdpm_$SLURM_ARRAY_TASK_ID --seed_everything=$SLURM_ARRAY_TASK_ID"
    script.write_text(SCRIPT.read_text().replace('"$@"', f'"$@" {task}'))
    run = Training(cluster, tmp_path / "run", phantoms)
    jobs = run.submit(options=("--array=0-1",), script=script)
    folders = [run.folder / f"cdpm_{task}" for task in range(2)]
    for job, folder in zip(jobs, folders, strict=True):
        cluster.wait_for((folder / "metrics.csv").exists, 600, job)
        cluster.call("scancel", "--signal=USR1", job.id)
    ends = []
    for job, folder in zip(jobs, folders, strict=True):
        facts = job.end()
        assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), str(job)
        first, last = sorted((folder / "checkpoints").glob("step_*.ckpt"))
        assert 0 < int(first.stem.removeprefix("step_")) < STEPS
        ends.append(torch.load(last, weights_only=True))
        assert ends[-1]["global_step"] == STEPS
        with (folder / "metrics.csv").open(newline="") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
        assert steps == list(range(STEPS))
    a, b = (end["state_dict"] for end in ends)
    assert any(not torch.equal(a[name], b[name]) for name in a)  # each with a seed of its own


def test_the_failure_of_one_task_ends_the_job(cluster: Cluster, tmp_path: Path, phantoms: Path) -> None:
    run = Training(cluster, tmp_path, phantoms, tasks=2)
    run.submit(run.callbacks(fail_rank=1, fail_step=3))
    facts = run.job.end()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0"), str(run.job)
    assert "RuntimeError: planted fault" in run.log


def test_the_wandb_run_stays_the_same(cluster: Cluster, tmp_path: Path, phantoms: Path) -> None:
    run = Training(cluster, tmp_path, phantoms)
    run.submit("--config", "configs/with/wandb.yaml", f"--trainer.logger.init_args.save_dir={tmp_path}")
    run.wait_for_step(10)
    id = (tmp_path / "cdpm" / "wandb_id").read_text()
    cluster.call("scancel", "--signal=USR1", run.job.id)
    facts = run.job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), str(run.job)
    assert (tmp_path / "cdpm" / "wandb_id").read_text() == id
    lives = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(lives) == 2
    assert all(name.endswith(id) for name in lives), lives
