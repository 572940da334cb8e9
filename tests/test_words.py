"""How the code reads: the field's words for names, and docstrings that are sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import ROOT

FILES = [path for folder in ("lit_medgen", "data_modules") for path in sorted((ROOT / folder).rglob("*.py"))]
TEXTS = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "configs").rglob("*.*"), *FILES]
FOREIGN_NAMES = {
    r"critic": "discriminator",
    r"making_of": "trajectory",
    r"^_?(most|least)_|^_?(MOST|LEAST)(_|$)": "max_ or min_",
    r"^_?[tT]old$": "what it holds; conditioning, of attributes",
}
"""Names that the field does not use -> those that it does."""
MIN_WORDS = 4
PLOTTING = {"matplotlib", "PIL"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that a file defines: of functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def docstrings(node: ast.AST, name: str = "the module") -> Iterator[tuple[str, str]]:
    """The first paragraph of every public docstring of a file, with the name of what it describes."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
        text := ast.get_docstring(node)
    ):
        yield name, " ".join(text.split("\n\n")[0].split())
    for child in ast.iter_child_nodes(node) if isinstance(node, ast.Module | ast.ClassDef) else ():
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from docstrings(child, child.name)


def fault(sentence: str) -> str:
    """What is wrong with the first sentence of a docstring; "" for nothing."""
    first = sentence.split()[0]
    # A symbol, a shape (b c *s), a call or a name of the code may stand first; a word of English begins as a sentence.
    if first.isalpha() and first.islower() and len(first) > 2:
        return "begins with a small letter"
    if len(sentence.split()) < MIN_WORDS:
        return f"has less than {MIN_WORDS} words"
    return "" if sentence.endswith((".", ":")) else "ends without a full stop"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_are_the_fields(path: Path) -> None:
    for name in names(ast.parse(path.read_text())):
        for pattern, better in FOREIGN_NAMES.items():
            assert not re.search(pattern, name), f"{name}: write {better}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_docstrings_are_sentences(path: Path) -> None:
    faults = [
        f"{name}: {what}: {text}" for name, text in docstrings(ast.parse(path.read_text())) if (what := fault(text))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_plots_does_not_draw(path: Path) -> None:
    """To draw is to take at random."""
    tree = ast.parse(path.read_text())
    imported = {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not imported & PLOTTING or not [name for name in functions if re.match(r"_?draw", name)]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_texts_use_the_fields_words(path: Path) -> None:
    if path.suffix in (".md", ".yaml", ".py", ".sh"):
        assert not re.search(r"\bcritics?\b|\bmaking[ _]of\b", path.read_text(), flags=re.IGNORECASE)


@pytest.mark.parametrize(
    ("sentence", "right"),
    [
        ("Hinge loss of the discriminator.", True),
        ("b c *s in [-1, 1]: one image for each seed.", True),
        ("alpha_t and sigma_t, shaped to multiply images.", True),
        ("Hinge.", False),
        ("what every size must divide by.", False),
        ("Hinge loss of the discriminator", False),
    ],
)
def test_the_rule_tells_sentences_from_notes(sentence: str, right: bool) -> None:
    assert (not fault(sentence)) == right
