"""The table of `compare` as Markdown, CSV and LaTeX: rows are models, columns scores, a few of them in each part."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from lit_medgen.evaluation.markdown import table
from lit_medgen.evaluation.ranked import COSTS, Cell, Line, Table
from lit_medgen.files import as_csv
from lit_medgen.metrics.base import Best

MAX_COLUMNS = 5
"""Scores in a part of a table, so that it fits a page."""
MARKS: Mapping[Best, str] = {"lower": "↓", "higher": "↑", "real": "→ real"}
LATEX_MARKS: Mapping[Best, str] = {"lower": r"$\downarrow$", "higher": r"$\uparrow$", "real": r"$\to$ real"}
LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"{{{character}}}" for character in "[]*"},  # after \\ of the row before, an option of it
}
"""Characters that mean something in LaTeX -> what prints them."""
CAPTION = (
    "Scores with 95\\,\\% jackknife intervals over people. Bold: best, with an interval that meets no other model's. "
    "Real vs real: real images in the place of samples."
)


SPECIAL = re.compile(r"&(?=[a-zA-Z#])|[\\`*<>\[\]|~$#]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])")
"""What Markdown may take for a mark; an underscore within a word is none."""


def number(value: float) -> str:
    """A value with four digits; a count with all of them."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def parts_of(scores: Sequence[str]) -> list[list[str]]:
    """The scores in groups of at most `MAX_COLUMNS`, as equal in size as they can be."""
    if not scores:
        return []
    num = math.ceil(len(scores) / MAX_COLUMNS)
    ends = [round(len(scores) * (i + 1) / num) for i in range(num)]
    return [list(scores[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def as_markdown(content: Table) -> list[list[str]]:
    """The lines of every part of the table; the last says what an image costs."""
    parts = []
    for scores in parts_of(list(content.columns)):
        head = ["model", *(f"{literal(score)} {MARKS[content.columns[score]]}" for score in scores)]
        parts.append(table(head, [[literal(line.name), *_cells(line, scores, _in_markdown)] for line in content.lines]))
    if costs := _costs(content):
        models = [line for line in content.lines if line.kind == "model"]
        rows = [[literal(line.name), *(_cost(line, cost) for cost in costs)] for line in models]
        parts.append(table(["model", *costs], rows))
    return parts


def as_comma_separated(content: Table) -> str:
    """A row for each model, for real images and for each null; of each score value, low and high end, and `best`.

    `best` is 1 for the model whose interval says so, else 0; numbers have all their digits.
    """
    ends = ("", ".low", ".high", ".best")
    columns = ["name", "kind", *COSTS, *(f"{score}{end}" for score in content.columns for end in ends)]
    rows = []
    for line in content.lines:
        row: dict[str, object] = {"name": line.name, "kind": line.kind, **line.costs}
        for score, cell in line.cells.items():
            values = [cell.value, *(cell.interval or ("", "")), int(cell.best) if line.kind == "model" else ""]
            row |= {f"{score}{end}": value for end, value in zip(ends, values, strict=True)}
        rows.append(row)
    return as_csv(rows, columns)


def as_latex(content: Table) -> str:
    r"""A `table*` with a tabular for each part; the preamble needs `\usepackage{booktabs}`."""
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table*}", r"\centering\footnotesize", rf"\caption{{{CAPTION}}}"]
    for scores in parts_of(list(content.columns)):
        head = [f"{escaped(score)} {LATEX_MARKS[content.columns[score]]}" for score in scores]
        groups = groupby(content.lines, lambda line: line.kind == "model")
        body = [[[escaped(line.name), *_cells(line, scores, _in_latex)] for line in group] for _, group in groups]
        lines += _tabular(["Model", *head], body)
    if costs := _costs(content):
        models = [line for line in content.lines if line.kind == "model"]
        rows = [[escaped(line.name), *(_cost(line, cost) for cost in costs)] for line in models]
        lines += _tabular(["Model", *map(escaped, costs)], [rows])
    return "\n".join([*lines, r"\end{table*}", ""])


def escaped(text: str) -> str:
    """Text as LaTeX prints it: what it would take for a command, or join to a dash, is escaped."""
    return re.sub("-(?=-)", "-{}", "".join(LATEX_CHARACTERS.get(character, character) for character in text))


def literal(text: str) -> str:
    """Text as Markdown shows it, in a cell too: what it would take for a mark is escaped."""
    return SPECIAL.sub(r"\\\g<0>", text)


def _tabular(head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """The lines of a tabular, with a rule between groups of rows."""
    bodies = [[" & ".join(cells) + r" \\" for cells in rows] for rows in groups]
    ruled = [line for body in bodies for line in (r"\midrule", *body)]
    opening = rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}"
    return [opening, r"\toprule", " & ".join(head) + r" \\", *ruled, r"\bottomrule", r"\end{tabular}", r"\par\medskip"]


def _cells(line: Line, scores: Sequence[str], shown: Callable[[Cell], str]) -> Iterator[str]:
    """The cells of a line; empty where it has no such score."""
    return (shown(line.cells[score]) if score in line.cells else "" for score in scores)


def _in_markdown(cell: Cell) -> str:
    value = f"**{number(cell.value)}**" if cell.best else number(cell.value)
    return value + (f" ({number(cell.interval[0])} to {number(cell.interval[1])})" if cell.interval else "")


def _in_latex(cell: Cell) -> str:
    value = rf"\textbf{{{_latex_number(cell.value)}}}" if cell.best else _latex_number(cell.value)
    ends = cell.interval and " to ".join(map(_latex_number, cell.interval))
    return value + (rf" {{\scriptsize ({ends})}}" if ends else "")


def _latex_number(value: float) -> str:
    """A value with a minus sign instead of a hyphen, and powers of ten as they are printed."""
    digits, _, power = number(value).replace("inf", r"$\infty$").partition("e")
    shown = digits.replace("-", "$-$")
    return rf"{shown}$\times10^{{{int(power)}}}$" if power else shown


def _costs(content: Table) -> list[str]:
    """The costs that are known of some model."""
    return [cost for cost in COSTS if any(cost in line.costs for line in content.lines)]


def _cost(line: Line, cost: str) -> str:
    return number(line.costs[cost]) if cost in line.costs else ""
