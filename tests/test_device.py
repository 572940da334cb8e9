"""Runs tests/on_device.py: everything on a stand-in for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tiny_run import ROOT


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_everything_on_a_stand_in_for_a_gpu(marked: str) -> None:
    """In a process of its own: PyTorch must know the device before a backward pass, and cannot fork after one."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, "tests/on_device.py"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
