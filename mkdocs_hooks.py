"""What the site has beside docs/: the README as its first page, the API, and every file that pages link to.

Pages are written for GitHub, and say `../configs/cdpm.yaml`, `$$ ... $$` and `docs/vdm.md`; here links lead to pages of
the site, equations become MathML, which browsers show without a script, and a method's page gets its row of the
README's methods and, where a comment names them, its rows of the results. So nothing is written twice, and nothing is
loaded from elsewhere.
"""

from __future__ import annotations

import html
import json
import os
import re
from itertools import dropwhile, takewhile
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site -> files of the repository that they show."""
API = {
    "lit_medgen": [],
    "lit_medgen.batch": [],
    "lit_medgen.diffusion": [],
    "lit_medgen.networks": [],
    "lit_medgen.methods": [],
    "lit_medgen.training": ["method", "generator", "first_stage", "adversarial", "frozen", "latents", "conditional"],
    "lit_medgen.metrics": [],
    "lit_medgen.evaluation": ["report", "scores", "nulls", "compare", "audit", "control", "detection", "readers"],
    "data_modules": [],
}
"""Packages on the API pages, each with those of its modules whose classes are not on its face."""
UNLISTED = InclusionLevel.NOT_IN_NAV
LINK = re.compile(r"(\]\()([^)#\s]+)")
FUNCTION = re.compile(r"(<mi>(?:log|ln)</mi>)")
"""Names that take their argument without brackets, and so need a space."""
SCORES = re.compile(r"^<!-- scores: (.+?): (.+?) -->$", re.MULTILINE)
"""A section of the results, and how the rows begin that are shown, with ; between them."""
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that docs/ does not hold."""
    for uri, name in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    for package, modules in API.items():
        names = [package, *(f"{package}.{module}" for module in modules)]
        files.append(File.generated(config, f"api/{package}.md", content=_reference(names)))
    pages = list(files.documentation_pages())
    while pages:
        for path in _linked_files(pages.pop()):
            if files.get_file_from_path(_uri(path)) is None:
                pages.append(File.generated(config, _uri(path), content=_shown(path), inclusion=UNLISTED))
                files.append(pages[-1])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to pages of the site, and brings the rows of a method from the README and from the results."""
    here = _source(page.file)

    def rewritten(match: re.Match[str]) -> str:
        target = _target(here, match[2])
        return match[0] if target is None else match[1] + os.path.relpath(_uri(target), Path(page.file.src_uri).parent)

    return LINK.sub(
        rewritten, SCORES.sub(lambda match: scores(match[1], match[2].split("; ")), with_rows(markdown, here))
    )


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns equations into MathML."""
    return EQUATION.sub(lambda match: mathml(html.unescape(match[2]), match[1] == "div"), content)


def mathml(latex: str, block: bool) -> str:
    """An equation of LaTeX as MathML; a command that is not known stops the build."""
    shown = convert(latex.strip(), display="block" if block else "inline")
    if unknown := re.search(r"\\\w+", shown):
        raise PluginError(f"{unknown[0]} is no command that latex2mathml knows: {latex.strip()}")
    return FUNCTION.sub(r'\1<mspace width="0.17em"/>', shown)


def scores(section: str, beginnings: list[str]) -> str:
    """The first table of a section of the results, of its rows those that begin so; none of them stops the build."""
    text = (ROOT / "docs" / "results.md").read_text().partition(f"# {section}\n")[2]
    lines = takewhile(lambda line: not re.match("#+ ", line), text.splitlines())
    table = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines)))
    shown = {beginning: [row for row in table[2:] if row.startswith(f"| {beginning}")] for beginning in beginnings}
    if missing := [beginning for beginning, rows in shown.items() if not rows]:
        raise PluginError(f"docs/results.md, {section}: no row of its first table begins with {', '.join(missing)}")
    return "\n".join([f"*{section}*", "", *table[:2], *(row for rows in shown.values() for row in rows)])


def _source(file: File) -> Path:
    """The file of the repository that a page shows."""
    if file.src_uri.startswith("files/"):
        return Path(file.src_uri.removeprefix("files/").removesuffix(".md"))
    return Path(OUTSIDE.get(file.src_uri, f"docs/{file.src_uri}"))


def _target(page: Path, link: str) -> Path | None:
    """The file of the repository that a link of a page leads to; None: it leads elsewhere."""
    path = Path(os.path.normpath(page.parent / link))
    return None if "://" in link or path.parts[0] == ".." or not (ROOT / path).is_file() else path


def _uri(path: Path) -> str:
    """The page of the site, or the picture, that shows a file of the repository."""
    for uri, name in OUTSIDE.items():
        if str(path) == name:
            return uri
    return str(path.relative_to("docs")) if path.parts[0] == "docs" else f"files/{path}.md"


def _linked_files(file: File) -> list[Path]:
    """The files that a page links to and that are neither pages nor pictures."""
    page = _source(file)
    targets = [_target(page, link) for _, link in LINK.findall(file.content_string)]
    return [path for path in targets if path is not None and _uri(path).startswith("files/")]


def _shown(path: Path) -> str:
    """A page that shows a file: the texts and the code of a notebook, the lines of any other."""
    if path.suffix != ".ipynb":
        return f"# {path.name}\n\n`{path}`\n\n```{path.suffix.removeprefix('.')}\n{(ROOT / path).read_text()}\n```\n"
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads((ROOT / path).read_text())["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def _reference(names: list[str]) -> str:
    """The page of the API of a package."""
    return f"# {names[0]}\n\n" + "\n\n".join(f"::: {name}" for name in names)


def with_rows(markdown: str, page: Path) -> str:
    """The page with the rows of the README's table of methods that link to it, before its first section."""
    head, line, *rows = _table_of_methods()
    rows = [row for row in rows if f"]({page})" in row[0]]
    if not rows:
        return markdown
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, line, *rows))
    table = LINK.sub(lambda match: match[1] + os.path.relpath(match[2], page.parent), table)
    beginning, mark, rest = markdown.partition("\n## ")
    return f"{beginning}\n{table}\n{mark}{rest}"


def _table_of_methods() -> list[list[str]]:
    """The cells of the README's table of methods, by row; "the same" is what stands above it."""
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| method |"))
    rows: list[list[str]] = []
    for line in takewhile(lambda line: line.startswith("|"), lines[first:]):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append([rows[-1][k] if cell == "the same" else cell for k, cell in enumerate(cells)])
    return rows
