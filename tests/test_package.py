"""What is in the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_run import ROOT


@pytest.mark.slow
def test_wheel_holds_both_packages_and_the_configs_and_no_pictures(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for wanted in (
        "lit_medgen/py.typed",
        "data_modules/adni.py",
        "lit_medgen/app/painter.js",
        "lit_medgen/configs/cdpm.yaml",
        "lit_medgen/configs/demo/cdpm.yaml",
    ):
        assert wanted in names
    assert not [
        name for name in names if name.endswith((".png", ".ckpt", ".ipynb")) or name.startswith(("docs", "tests"))
    ]
