"""The documentation site: every method has a page, the site builds without a warning, and it leads nowhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from tiny_run import BASES, ROOT

import mkdocs_hooks

ROWS = [row for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| [") and "(configs/" in row]
PAGES_OF_METHODS = sorted({re.findall(r"\((docs/[\w/]+\.md)\)", row)[0] for row in ROWS})
ASSETS = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "video": "src"}
BLOCK = re.compile(r"^\$\$\n(.*?)\n\$\$$", flags=re.MULTILINE | re.DOTALL)


def test_every_method_has_a_page() -> None:
    assert {re.findall(r"\((configs/\w+\.yaml)\)", row)[0] for row in ROWS} == set(BASES)
    assert {f"docs/methods/{path.name}" for path in (ROOT / "docs" / "methods").iterdir()} <= set(PAGES_OF_METHODS)


@pytest.mark.parametrize("name", PAGES_OF_METHODS)
def test_page_of_a_method_has_all_that_it_should(name: str) -> None:
    text = (ROOT / name).read_text()
    assert len(BLOCK.findall(text)) >= 2
    assert re.search(r"^## Equations$", text, flags=re.MULTILINE)
    assert re.search(r"what differs", text, flags=re.IGNORECASE)
    assert re.search(r"^!\[.+\]\([\w./]*figures/[\w/]+\.png\)$", text, flags=re.MULTILINE)
    assert re.search(r"\((\.\./)?results\.md#[\w-]+\)", text)
    named = mkdocs_hooks.SCORES.findall(text)
    assert named
    for section, beginnings in named:  # or the build stops
        mkdocs_hooks.scores(section, beginnings.split("; "))
    for row in ROWS:
        if f"({name})" in row:
            (config,) = re.findall(r"\[(configs/\w+\.yaml)\]", row)
            assert f"[{config}](" in text, config
            assert f"fit --config {config} --config {config.replace('/', '/demo/')}" in text, config


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_equations_are_shown_by_github_and_by_the_site(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = BLOCK.findall(text)
    assert len(blocks) * 2 == text.count("$$")  # each on lines of its own
    for latex in [*blocks, *re.findall(r"\$([^$\n]+)\$", BLOCK.sub("", text))]:
        assert not re.search(r"\\operatorname|\\[,;:!{}|\\]", latex), latex
        assert mkdocs_hooks.mathml(latex, block=latex in blocks).startswith("<math")


def test_command_that_mathml_does_not_know_stops_the_build() -> None:
    with pytest.raises(PluginError, match=r"\\unheard is no command"):
        mkdocs_hooks.mathml(r"x + \unheard", block=False)


def test_rows_of_a_method_stand_before_its_first_section() -> None:
    shown = mkdocs_hooks.with_rows("# ControlNet\n\nIdea.\n\n## Equations\n\nText.\n", Path("docs/methods/ihdm.md"))
    before, _, after = shown.partition("\n## Equations")
    rows = [line for line in before.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| method | paper |")
    assert len(rows) == 3
    assert "(../../configs/ihdm.yaml)" in rows[2]
    assert "the same" not in rows[2]  # it is of the row above, which is not here
    assert after == "\n\nText.\n"
    assert mkdocs_hooks.with_rows("# Title\n\n## One\n", Path("docs/errors.md")) == "# Title\n\n## One\n"


def test_rows_of_the_results_stand_where_a_comment_names_them() -> None:
    caption, _, head, _, *rows = mkdocs_hooks.scores("Slices at 2 mm", ["alpha-WGAN", "real people"]).splitlines()
    assert caption == "*Slices at 2 mm*"
    assert head.startswith("| model | steps |")
    assert [row.split(" | ")[0] for row in rows] == ["| alpha-WGAN", "| real people, the floor"]
    with pytest.raises(PluginError, match=r"results.md, Slices at 2 mm: no row of its first table begins with nobody"):
        mkdocs_hooks.scores("Slices at 2 mm", ["alpha-WGAN", "nobody"])


class Parsed(HTMLParser):
    """What a page of the site loads, links to, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if (asset := values.get(ASSETS.get(tag, ""))) is not None:
            self.assets.append(asset)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Parsed]:
    """The pages of the site, built as `make docs` builds it, where a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build(load_config("mkdocs.yml", site_dir=str(folder), strict=True))
    return {path: Parsed(path) for path in folder.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_site_loads_nothing_from_elsewhere(site: dict[Path, Parsed]) -> None:
    for path, page in site.items():
        assert page.assets
        assert not [asset for asset in page.assets if urlsplit(asset).netloc], path
        assert not [asset for asset in page.assets if not (path.parent / urlsplit(asset).path).is_file()], path
    for path in min(site, key=lambda path: len(path.parts)).parent.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site: dict[Path, Parsed]) -> None:
    checked = 0
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in site:
                assert unquote(parts.fragment) in site[target].ids, f"{path}: {link}"
            checked += 1
    assert checked > 1000


@pytest.mark.slow
def test_site_has_readme_api_methods_and_linked_files(site: dict[Path, Parsed]) -> None:
    pages = {path.name: path for path in site}
    assert "lit_medgen.methods.LDM" in site[pages["lit_medgen.methods.html"]].ids
    assert "data_modules.ADNIDataModule" in site[pages["data_modules.html"]].ids
    assert {"cdpm.yaml.html", "adni.ipynb.html", "changelog.html", "contributing.html"} <= set(pages)
    assert "Five-minute demo" in pages["index.html"].read_text()
    text = pages["cdpm.html"].read_text()
    assert text.count("<math") >= 5
    assert "\\(" not in text
    assert "MICCAI 2023</td>" in text  # the row of the README
