"""A real SLURM of one node: its daemons, keys, ports and logs are its own, in a folder of its own."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# The least that schedules, requeues and preempts like a cluster. A requeued job waits until its credential has expired,
# hence cred_expire. Lightning makes a port from a job's number, so two clusters must not both begin at 1. The node
# claims more than it has, so that the shipped job script fits as it is.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
FirstJobId={first}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldDebug=debug
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={kill_wait}
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 Gres=gpu:64
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=graceful Nodes=ALL PriorityTier=1 GraceTime={kill_wait}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


class Job:
    """A submitted job; `id` is `7`, or `7_0` in an array."""

    def __init__(self, cluster: Cluster, id: str, log: Path) -> None:
        self.cluster, self.id, self.log = cluster, id, log

    def facts(self) -> dict[str, str]:
        """What SLURM knows of it."""
        words = self.cluster.call("scontrol", "show", "job", "--oneliner", self.id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        """RUNNING, COMPLETED, ..."""
        return self.facts()["JobState"]

    @property
    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self.facts()["Restarts"])

    def end(self, seconds: float = 600) -> dict[str, str]:
        """Waits until it has ended; returns what SLURM then knows."""
        self.cluster.wait_for(
            lambda: self.facts()["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), seconds, self
        )
        return self.facts()

    def __str__(self) -> str:
        return f"job {self.id}: {self.facts()}\n{self.log.read_text() if self.log.exists() else 'no log'}"


class Cluster:
    """Starts when entered, ends with every process of its jobs when left.

    Args:
        kill_wait: seconds from SIGTERM to SIGKILL.
    """

    def __init__(self, kill_wait: int = 30) -> None:
        self.kill_wait = kill_wait
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with self._undo:
            # Not below pytest's folder: the name of a socket has at most 107 characters.
            self.folder = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="slurm")))
            self._undo.callback(self._end_processes)
            self._start()
            self._undo = self._undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _start(self) -> None:
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.config = self.folder / "slurm.conf"
        self.config.write_text(
            CONFIG.format(
                host=host,
                user=getpass.getuser(),
                folder=self.folder,
                ports=free_ports(2),
                first=1 + secrets.randbelow(9000),
                kill_wait=self.kill_wait,
            )
        )
        for number in range(64):  # SLURM counts the files of GPUs, and opens none
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={self.folder}/gpu[0-63]\n")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {
            "SLURM_CONF": str(self.config),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), SEARCHED]),
        }
        munge = [f"--{name}={self.folder}/munge.{end}" for name, end in MUNGE_FILES.items()]
        # --force: the folder is for this user alone, which munged takes for a mistake.
        self._daemon("munged", "--foreground", "--force", *munge)
        self.wait_for(lambda: (self.folder / "munge.socket").exists(), 10)
        self._daemon("slurmctld", "-D", "-f", str(self.config))
        self._daemon("slurmd", "-D", "-f", str(self.config), "-N", host)
        self.wait_for(lambda: "State=IDLE" in self.call("scontrol", "show", "node", check=False), 60)

    def _daemon(self, name: str, *words: str) -> None:
        path = shutil.which(name, path=SEARCHED)
        assert path is not None
        with (self.folder / f"{name}.out").open("w") as out:
            # SLURM_CONF marks it and all that it starts.
            process = subprocess.Popen(
                [path, *words], env=self.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._undo.callback(process.wait)
        self._undo.callback(process.terminate)

    def _end_processes(self) -> None:
        """Daemons have ended by now; what they started may not have."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        end = time.monotonic() + 10
        while self.processes() and time.monotonic() < end:
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """All processes of this cluster and its jobs."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:  # it has just ended, or belongs to someone else
                continue
        return found

    def submit(self, folder: Path, words: Sequence[str], script: Path, options: Sequence[str] = ()) -> list[Job]:
        """Submits a script with its arguments; one job, or those of an array. The log goes to the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        printed = self.call("sbatch", "--parsable", f"--output={folder}/%x_%j.log", *options, str(script), *words)
        number = printed.strip().split(";")[0]
        shown = self.call("scontrol", "show", "job", "--oneliner", number)
        name = next(word.removeprefix("JobName=") for word in shown.split() if word.startswith("JobName="))
        array = next((option.removeprefix("--array=") for option in options if option.startswith("--array=")), None)
        if array is None:
            return [Job(self, number, folder / f"{name}_{number}.log")]
        first, last = map(int, array.split("-"))
        # The log's %j is known once a task of the array has its own number.
        return [Job(self, f"{number}_{task}", folder / f"{name}_{number}.log") for task in range(first, last + 1)]

    def call(self, *words: str, check: bool = True) -> str:
        """Runs one of SLURM's commands; returns what it printed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout

    def wait_for(self, what: Callable[[], bool], seconds: float, job: Job | None = None) -> None:
        """Until it comes true."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"not within {seconds} s\n{job if job else self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The last words of the daemons."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in paths)


MUNGE_FILES = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def free_ports(num: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
