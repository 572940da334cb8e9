"""Without a network everything works, and nothing asks for one."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import no_network
import pytest
import torch
from tiny_run import ROOT, TinyRun, one_line
from torch import Tensor, nn

from lit_medgen.errors import InputError
from lit_medgen.files import pinned
from lit_medgen.metrics.torchscript import from_file

ELSEWHERE = "192.0.2.1"
"""An address that is kept for documents: nobody's."""


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection((ELSEWHERE, 443), timeout=1),
        lambda: socket.getaddrinfo("weights.example.org", 443),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (ELSEWHERE, 53)),
        lambda: torch.hub.download_url_to_file("https://weights.example.org/vgg.pt", "/dev/null"),
    ],
)
def test_no_test_can_reach_the_network(reach: object) -> None:
    """Every other test runs behind this same guard, and fails if it so much as asks: `conftest.alone`."""
    with pytest.raises(OSError, match="the tests have no network"):
        reach()  # type: ignore[operator]
    assert no_network.attempts
    no_network.attempts.clear()


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"]).returncode != 0,
    reason="this machine gives no network namespace of one's own",
)
def test_the_main_job_runs_where_there_is_no_network_at_all(tmp_path: Path) -> None:
    """With all its processes, and whatever libraries do in C: in a namespace without so much as a loopback device."""
    data, run = tmp_path / "data", tmp_path / "runs"
    configs = [
        "--config",
        "configs/cdpm.yaml",
        "--config",
        "configs/demo/cdpm.yaml",
        "--config",
        "tests/tiny/cdpm.yaml",
    ]
    places = ["--data.init_args.root", str(data), "--trainer.default_root_dir", str(run), "--trainer.max_steps", "2"]
    checkpoint = ["--ckpt_path", str(run / "cdpm_demo/checkpoints/last.ckpt")]
    for words in (
        ["phantom", "adni", "--out", str(data), "--num_subjects", "6"],
        ["fit", *configs, *places, "--data.init_args.num_workers", "1"],
        ["sample", *checkpoint, "--num", "2", "--out", str(tmp_path / "samples")],
        ["evaluate", *checkpoint, "--num", "2", "--out", str(tmp_path / "report")],
    ):
        alone = ["unshare", "-rn", sys.executable, "-m", "lit_medgen", *words]
        subprocess.run(alone, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "report/report.json").is_file()


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, str]:
    """A file with weights of a network, and its hash."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    path = tmp_path / "mean.pt"
    torch.jit.script(Mean()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_are_taken_by_their_hash(weights: tuple[Path, str]) -> None:
    path, digest = weights
    assert pinned(f"{path}@sha256:{digest}") == pinned(str(path)) == path
    network, _, name, _ = from_file(f"{path}@sha256:{digest[:12]}")
    assert network(torch.zeros(1, 1, 4, 4)).shape == (1, 3)
    assert digest[:12] in name


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("0" * 64, "has the SHA-256 {digest}, not 0000"),
        ("0" * 11, "give 12 to 64 hexadecimal digits"),
        ("not hexadecimal", "give 12 to 64 hexadecimal digits"),
    ],
)
def test_other_weights_are_refused(weights: tuple[Path, str], given: str, told: str) -> None:
    path, digest = weights
    with pytest.raises(InputError, match=told.format(digest=digest)):
        pinned(f"{path}@sha256:{given}")


def test_evaluate_refuses_other_weights_in_one_line(
    weights: tuple[Path, str], trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, digest = weights
    other = f"{path}@sha256:{'0' * 64}"
    assert trained.on_checkpoint("evaluate", "--out", str(tmp_path / "report"), "--features", other) == 2
    assert f"{path} has the SHA-256 {digest}, not" in one_line(capsys)
    assert not (tmp_path / "report").exists()
