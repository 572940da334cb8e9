"""Who may import whom, over the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tiny_run import ROOT

LEAVES = {f"lit_medgen.{name}" for name in ("batch", "seeds", "errors", "files", "signals", "output")}
# Folder -> what it may import of ours, besides itself. The functions of a verb may import what they run.
ARROWS = {
    "lit_medgen/diffusion": {"lit_medgen.batch", "lit_medgen.seeds"},
    "lit_medgen/networks": {"lit_medgen.batch"},
    "lit_medgen/images": LEAVES,
    "lit_medgen/metrics": LEAVES,
    "lit_medgen/training": LEAVES
    | {"lit_medgen.checkpoints", "lit_medgen.diffusion", "lit_medgen.networks", "lit_medgen.images"},
    "lit_medgen/methods": LEAVES
    | {
        "lit_medgen.diffusion",
        "lit_medgen.networks",
        "lit_medgen.metrics",
        "lit_medgen.images",
        "lit_medgen.checkpoints",
        "lit_medgen.training",
    },
    "lit_medgen/callbacks": LEAVES
    | {
        "lit_medgen.images",
        "lit_medgen.metrics",
        "lit_medgen.methods",
        "lit_medgen.training",
        "lit_medgen.checkpoints",
        "lit_medgen.loggers",
    },
    "data_modules": LEAVES | {"lit_medgen.images"},
}
FOREIGN = {
    "lit_medgen/diffusion": {"torch", "einops", "scipy"},
    "lit_medgen/networks": {"torch", "einops"},
}
STANDARD = {"__future__", "abc", "collections", "dataclasses", "functools", "itertools", "math", "typing"}


def imports(path: Path) -> list[str]:
    """Modules imported at the top of a file; those inside functions are choices of a run, not of the design."""
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
    return names


@pytest.mark.parametrize("folder", ARROWS)
def test_arrows(folder: str) -> None:
    allowed = ARROWS[folder] | {folder.replace("/", ".")}
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] in ("lit_medgen", "data_modules"):
                assert any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed), f"{path}: {name}"


@pytest.mark.parametrize("folder", FOREIGN)
def test_mathematics_and_networks_stand_alone(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in FOREIGN[folder] | STANDARD | {"lit_medgen"}, f"{path}: {name}"


def test_data_modules_are_imported_by_the_command_line_alone() -> None:
    for path in (ROOT / "lit_medgen").rglob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert not [name for name in imports(path) if name.startswith("data_modules")], path
