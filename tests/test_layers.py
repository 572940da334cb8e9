"""Who may import whom, over the syntax trees; imports inside functions count like all others."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from tiny_run import ROOT

LEAVES = {"__init__", "axes", "batch", "errors", "files", "output", "seeds", "signals"}
TEXTS = {"errors", "arguments", "options"}
TRAINING = LEAVES | {"checkpoints", "diffusion", "images", "metrics", "networks"}
METHODS = TRAINING | {"training"}
USES = METHODS | {"methods", "arguments"}
CALLBACKS = USES | {"sampling", "sample_files", "requests", "evaluation", "loggers"}
TRAINER = CALLBACKS | {"callbacks", "launchers", "memory", "resuming", "speed", "stopping"}
CLI = TRAINER | {"trainer", "arguments", "help", "mistakes", "options", "trust", "words", "data_modules"}

ARROWS = {
    "data_modules": LEAVES | {"images"},
    "lit_medgen/__init__": {"methods", "training"},
    "lit_medgen/__main__": LEAVES | {"cli", "sweep", "data_modules"},
    "lit_medgen/arguments": {"errors"},
    "lit_medgen/axes": set[str](),
    "lit_medgen/batch": set[str](),
    "lit_medgen/callbacks": CALLBACKS,
    "lit_medgen/checkpoints": LEAVES | {"trust"},
    "lit_medgen/cli": CLI,
    "lit_medgen/diffusion": {"batch", "seeds"},
    "lit_medgen/errors": set[str](),
    "lit_medgen/evaluation": USES,
    "lit_medgen/files": {"errors"},
    "lit_medgen/help": set[str](),
    "lit_medgen/images": LEAVES,
    "lit_medgen/launchers": {"errors"},
    "lit_medgen/loggers": LEAVES,
    "lit_medgen/memory": LEAVES,
    "lit_medgen/methods": METHODS,
    "lit_medgen/metrics": LEAVES,
    "lit_medgen/mistakes": TEXTS,
    "lit_medgen/networks": {"batch"},
    "lit_medgen/options": {"errors"},
    "lit_medgen/output": set[str](),
    "lit_medgen/resuming": CALLBACKS | {"callbacks"},
    "lit_medgen/requests": USES | {"sample_files", "sampling"},
    "lit_medgen/sample_files": LEAVES | {"images"},
    "lit_medgen/sampling": USES,
    "lit_medgen/seeds": {"batch"},
    "lit_medgen/signals": {"errors"},
    "lit_medgen/speed": LEAVES,
    "lit_medgen/stopping": LEAVES,
    "lit_medgen/sweep": CALLBACKS | {"callbacks", "stopping", "trust"},
    "lit_medgen/trainer": TRAINER,
    "lit_medgen/training": TRAINING,
    "lit_medgen/trust": TEXTS,
    "lit_medgen/words": TEXTS | {"checkpoints", "mistakes", "trust"},
}
"""Package or file -> what it may import of ours besides itself, by the same names (without lit_medgen/)."""

LAZY = {
    "data_modules/__init__": "a face: workers of `prepare` start without PyTorch",
    "data_modules/phantoms/__init__": "a verb",
    "lit_medgen/__init__": "a face",
    "lit_medgen/__main__": "verbs",
    "lit_medgen/images/__init__": "a face: not all who read images need pydicom",
    "lit_medgen/sweep": "a verb",
}
"""Files whose functions may import what is ours, and why; each such import gives its reason in a comment."""

FOREIGN = {
    "lit_medgen/diffusion": {"torch", "einops", "scipy"},
    "lit_medgen/networks": {"torch", "einops"},
}
STANDARD = {"__future__", "abc", "collections", "dataclasses", "functools", "itertools", "math", "typing"}


@dataclass(frozen=True)
class Import:
    """One import of a module.

    Attributes:
        file: that imports, below the root, without .py.
        module: that is imported; of a name in a package's face, the package.
        line: its text.
        inside: whether it stands in a function.
        typed: whether only the type checker runs it.
    """

    file: str
    module: str
    line: str
    inside: bool
    typed: bool


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file."""
    text = path.read_text()
    file, lines = str(path.relative_to(ROOT).with_suffix("")), text.splitlines()

    def walk(node: ast.AST, inside: bool, typed: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                module = str(child.module)
                files = [alias.name for alias in child.names if file_of(f"{module}.{alias.name}")]
                names = [f"{module}.{name}" for name in files] or [module]
            for name in names:
                yield Import(file, name, lines[child.end_lineno - 1], inside, typed)  # type: ignore[attr-defined]
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from walk(child, inside or function, typed or typing)

    yield from walk(ast.parse(text), False, False)


def file_of(module: str) -> str | None:
    """The file of a module of ours, below the root, without .py; None for a module of others."""
    path = ROOT / module.replace(".", "/")
    for file in (path / "__init__", path):
        if file.with_suffix(".py").is_file():
            return str(file.relative_to(ROOT))
    return None


def part_of(file: str) -> str:
    """The package or file of `ARROWS` that a file belongs to."""
    first, second, *_ = file.split("/")
    return first if first == "data_modules" else f"{first}/{second}"


OURS = [
    one for folder in ("lit_medgen", "data_modules") for path in (ROOT / folder).rglob("*.py") for one in imports(path)
]


def of_ours() -> Iterator[tuple[Import, str]]:
    """Every import of a file of ours, with that file."""
    for one in OURS:
        if (file := file_of(one.module)) is not None:
            yield one, file


@pytest.mark.parametrize("part", sorted({part_of(one.file) for one in OURS}))
def test_arrows(part: str) -> None:
    allowed = {name if name == "data_modules" else f"lit_medgen/{name}" for name in ARROWS[part]} | {part}
    ours = [(one, part_of(file)) for one, file in of_ours() if part_of(one.file) == part and not one.typed]
    assert not [f"{one.file}: {one.module}" for one, imported in ours if imported not in allowed]


def test_imports_inside_functions_are_those_of_verbs_and_lazy_faces_and_say_why() -> None:
    inside = [one for one, _ in of_ours() if one.inside]
    assert not [f"{one.file}: {one.module}" for one in inside if one.file not in LAZY or "  # " not in one.line]
    assert {one.file for one in inside} == LAZY.keys() - {"data_modules/__init__"}  # which imports by names


def test_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for one, file in of_ours():
        if not one.inside and not one.typed:
            graph.setdefault(one.file, set()).add(file)
    TopologicalSorter(graph).prepare()  # CycleError


@pytest.mark.parametrize("folder", FOREIGN)
def test_mathematics_and_networks_stand_alone(folder: str) -> None:
    for one in OURS:
        if one.file.startswith(folder):
            assert one.module.split(".")[0] in FOREIGN[folder] | STANDARD | {"lit_medgen"}, f"{one.file}: {one.module}"


def test_workers_of_prepare_start_without_pytorch() -> None:
    recipes = [f"data_modules.recipes.{path.stem}" for path in (ROOT / "data_modules/recipes").glob("[!_]*.py")]
    code = f"""
import sys, data_modules.store, {", ".join(recipes)}
print([name for name in ("torch", "lightning", "matplotlib.figure", "nilearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
