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

from lit_medgen.methods import Method

LEAVES = {"__init__", "axes", "batch", "errors", "files", "output", "people", "seeds", "signals", "text_embeddings"}
TEXTS = {"errors", "arguments", "options"}
TRAINING = LEAVES | {"checkpoints", "loading", "diffusion", "images", "metrics", "networks"}
METHODS = TRAINING | {"training"}
USES = METHODS | {"methods", "arguments"}
CALLBACKS = USES | {"sampling", "sample_files", "sample_reading", "requests", "evaluation", "loggers"}
TRAINER = CALLBACKS | {"callbacks", "launchers", "memory", "resuming", "speed", "stopping"}
CLI = TRAINER | {"trainer", "arguments", "help", "mistakes", "options", "trust", "words", "data_modules"}

ARROWS = {
    "data_modules": LEAVES | {"images"},
    "lit_medgen/__init__": {"methods", "training"},
    "lit_medgen/__main__": LEAVES | {"cli", "estimate", "evaluation", "export", "sweep", "data_modules"},
    "lit_medgen/anomalies": CALLBACKS | {"verbs"},
    "lit_medgen/app": USES | {"request_files", "requests", "sample_files", "sample_reading", "sampling"},
    "lit_medgen/arguments": {"errors"},
    "lit_medgen/auditing": CALLBACKS | {"callbacks", "verbs"},
    "lit_medgen/axes": set[str](),
    "lit_medgen/batch": {"axes"},
    "lit_medgen/callbacks": CALLBACKS,
    "lit_medgen/browsing": CALLBACKS | {"app", "verbs"},
    "lit_medgen/cascades": USES | {"requests", "sampling"},
    "lit_medgen/checkpoints": LEAVES | {"exported"},
    "lit_medgen/cli": CLI,
    "lit_medgen/completion_requests": USES | {"request_files"},
    "lit_medgen/detecting": CALLBACKS | {"verbs"},
    "lit_medgen/diffusion": {"batch", "seeds"},
    "lit_medgen/errors": set[str](),
    "lit_medgen/estimate": CLI | {"cli"},
    "lit_medgen/evaluation": USES,
    "lit_medgen/export": USES | {"evaluation", "exported", "requests", "sample_files", "sampling", "trust"},
    "lit_medgen/exported": {"__init__", "errors", "files"},
    "lit_medgen/files": {"errors"},
    "lit_medgen/help": set[str](),
    "lit_medgen/images": LEAVES,
    "lit_medgen/launchers": {"errors"},
    "lit_medgen/loading": LEAVES | {"checkpoints", "trust"},
    "lit_medgen/loggers": LEAVES,
    "lit_medgen/memory": LEAVES,
    "lit_medgen/methods": METHODS,
    "lit_medgen/metrics": LEAVES,
    "lit_medgen/mistakes": TEXTS,
    "lit_medgen/networks": {"batch"},
    "lit_medgen/options": {"errors"},
    "lit_medgen/output": set[str](),
    "lit_medgen/people": set[str](),
    "lit_medgen/resuming": CALLBACKS | {"callbacks"},
    "lit_medgen/request_files": LEAVES | {"images", "sample_reading"},
    "lit_medgen/requests": USES | {"completion_requests", "request_files", "sampling", "text_requests"},
    "lit_medgen/sample_files": LEAVES | {"images"},
    "lit_medgen/sample_reading": LEAVES | {"images", "sample_files"},
    "lit_medgen/sampling": USES,
    "lit_medgen/seeds": {"batch"},
    "lit_medgen/signals": {"errors"},
    "lit_medgen/speed": LEAVES,
    "lit_medgen/stopping": LEAVES,
    "lit_medgen/sweep": LEAVES | {"stopping", "sweep_file", "sweep_results"},
    "lit_medgen/sweep_file": TEXTS | {"trust"},
    "lit_medgen/sweep_results": LEAVES | {"callbacks", "images"},
    "lit_medgen/trainer": TRAINER | {"anomalies", "auditing", "browsing", "detecting", "utility", "verbs"},
    "lit_medgen/text_requests": USES | {"sampling"},
    "lit_medgen/text_embeddings": {"batch", "errors"},
    "lit_medgen/training": TRAINING,
    "lit_medgen/trust": TEXTS,
    "lit_medgen/utility": CALLBACKS | {"verbs"},
    "lit_medgen/verbs": CALLBACKS | {"callbacks", "cascades"},
    "lit_medgen/words": TEXTS | {"checkpoints", "loading", "mistakes", "trust"},
}
"""Package or file -> what it may import of ours besides itself, by the same names (without lit_medgen/)."""

LAZY = {
    "data_modules/__init__": "a face: workers of `prepare` start without PyTorch",
    "data_modules/phantoms/__init__": "a verb",
    "data_modules/recipes/raw_heads": "SimpleITK is slow to load",
    "lit_medgen/__init__": "a face",
    "lit_medgen/__main__": "verbs",
    "lit_medgen/browsing": "gradio is an extra",
    "lit_medgen/images/__init__": "a face: not all who read images need pydicom",
    "lit_medgen/sweep_results": "a verb",
}
"""Files whose functions may import what is ours, and why; each such import gives its reason in a comment."""

FOREIGN = {
    "lit_medgen/diffusion": {"torch", "einops", "scipy"},
    "lit_medgen/networks": {"torch", "einops"},
}
STANDARD = {"__future__", "abc", "collections", "copy", "dataclasses", "functools", "itertools", "math", "typing"}


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


FILES = [path for folder in ("lit_medgen", "data_modules") for path in (ROOT / folder).rglob("*.py")]
OURS = [one for path in FILES for one in imports(path)]


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
import sys, data_modules.preparing, {", ".join(recipes)}
print([name for name in ("torch", "lightning", "matplotlib.figure", "nilearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


FOREIGN_OBJECTS = {
    "lit_medgen/cli": "the parsers of verbs, which jsonargparse makes",
    "lit_medgen/images/dicom_writer": "pydicom's data sets",
    "lit_medgen/resuming": "arguments of Lightning's callbacks",
    "lit_medgen/speed": "PyTorch's switches, the layout of weights",
}
"""Files that set attributes of objects that are not theirs, and whose they are."""


def test_no_attribute_is_set_from_outside() -> None:
    """What an object must know of others it takes by a method or an argument: nobody sets its attributes."""
    found = {(str(path.relative_to(ROOT).with_suffix("")), name) for path in FILES for name in set_outside(path)}
    assert not {name for name in found if name[0] not in FOREIGN_OBJECTS}
    assert {file for file, _ in found} == FOREIGN_OBJECTS.keys()


def set_outside(path: Path) -> Iterator[str]:
    """Attributes that functions of a file set on what they did not make themselves, e.g. `model.spec`."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        targets, own = list[ast.expr](), {"self", "cls"}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                targets.append(ast.Attribute(node.args[0], "..."))
            elif isinstance(node, ast.Assign):
                targets += [
                    each for one in node.targets for each in (one.elts if isinstance(one, ast.Tuple) else [one])
                ]
            elif isinstance(node, ast.NamedExpr | ast.AugAssign | ast.AnnAssign):
                targets.append(node.target)
        own |= {target.id for target in targets if isinstance(target, ast.Name)}
        for target in targets:
            root = target
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(target, ast.Attribute) and not (isinstance(root, ast.Name) and root.id in own):
                yield ast.unparse(target)


def test_nobody_asks_of_what_class_a_method_is() -> None:
    """`Method` and `Generator` are contracts; all else is asked by their attributes and hooks."""
    kinds = {kind.__name__ for kind in kinds_of(Method) if kind.__module__.startswith("lit_medgen.")}
    kinds -= {"Method", "Generator"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                assert not names & kinds, f"{path}: {ast.unparse(node)}"


def kinds_of(parent: type) -> set[type]:
    """A class and all classes that inherit from it."""
    return {parent}.union(*(kinds_of(child) for child in parent.__subclasses__()))
