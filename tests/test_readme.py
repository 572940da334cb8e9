"""What the README, the pages in docs/ and the config headers tell people to type, and where they lead."""

from __future__ import annotations

import inspect
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT

from data_modules.phantoms.heads import write_adni
from data_modules.phantoms.lidc_tree import write_lidc
from lit_medgen.__main__ import VERBS, main
from lit_medgen.cli import PREPARE_FLAGS
from lit_medgen.estimate.configs import OPTIONS as ESTIMATE_OPTIONS
from lit_medgen.evaluation.compare import run_compare
from lit_medgen.evaluation.readers import run_readers
from lit_medgen.export.verb import run_export
from lit_medgen.sweep import run_sweep
from lit_medgen.trainer import Trainer

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS = [*PAGES, *sorted(ROOT.glob("configs/**/*.yaml")), ROOT / "configs" / "with" / "slurm.sh"]
WRITTEN_BY_READERS = ("mine.yaml", "requests.csv", "my_slices")
PLACEHOLDER = re.compile(r"FILE|DIR|NAME|\.\.\.|<")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(document: Path) -> list[list[str]]:
    """The words of every `python -m lit_medgen` line of a document, continuation lines joined, comments dropped."""
    text = re.sub(r"\\\n(#   )?", " ", document.read_text())
    lines = re.findall(r"(?<!\")python -m lit_medgen ([^\n`]*)", text)  # not those in strings of Python
    return [shlex.split(re.sub(r"\[--[^]]*\]|  +\(.*|, then wandb .*", "", line), comments=True) for line in lines]


def own_options(verb: str, words: list[str]) -> set[str]:
    """The options of a verb that are no keys of a config."""
    phantom = write_lidc if "lidc" in words else write_adni
    functions = {
        "compare": run_compare,
        "export": run_export,
        "phantom": phantom,
        "readers": run_readers,
        "sweep": run_sweep,
    }
    function = functions.get(verb) or getattr(Trainer, verb, None)
    names = set(inspect.signature(function).parameters) if function else set()
    if verb == "estimate":
        names = {option.removeprefix("--") for option in ESTIMATE_OPTIONS}
    return names | {"config", "data", "name", "trust_config", "debug", "help", "print_config", "seed_everything"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_name_what_exists(document: Path) -> None:
    for words in commands(document):
        if words[0] == "--help" or PLACEHOLDER.search(" ".join(words)):
            continue
        verb, *rest = words
        assert verb in VERBS, words
        for option, value in pairwise([*words, ""]):
            if option in ("--config", "--data"):
                assert value in {*WRITTEN_BY_READERS, *configs_in(document)} or (ROOT / value).is_file(), words
        if verb == "sweep":
            assert (ROOT / rest[0]).is_file(), words
        before, _, _ = " ".join(rest).partition(" -- ")
        for option in re.findall(r"--(\w+)(?![\w.])", before):
            assert option in own_options(verb, words) or f"--{option}" in PREPARE_FLAGS, f"{option}: {words}"


@pytest.mark.parametrize("page", [page for page in PAGES if "own_classes" not in page.name], ids=name_of)
def test_fit_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/own_classes.md are run: tests/test_own_classes.py."""
    written = {name: tmp_path / name for name in configs_in(page)}
    for name, block in configs_in(page).items():
        written[name].write_text(block)
    for words in commands(page):
        if words[0] == "fit" and not PLACEHOLDER.search(" ".join(words)):
            assert code_of_parsing(*(str(written.get(word, word)) for word in words if word != "--print_config")) == 0


@cache
def code_of_parsing(*words: str) -> int | str | None:
    """The exit code of a command that parses its config and prints it; the same command stands on many pages."""
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--print_config"])
    return exit_.value.code


def configs_in(page: Path) -> dict[str, str]:
    """Name -> content of the configs that a page has readers write: blocks whose first line is a comment with one."""
    named = ((re.match(r"# (\w+\.yaml)\b", block), block) for block in blocks(page, "yaml"))
    return {match[1]: block for match, block in named if match}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_are_valid(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page: Path) -> list[tuple[str, str]]:
    """File and heading of every link of a page to a file of ours."""
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text())
    return [target.partition("#")[::2] for target in targets if not target.startswith("http")]  # type: ignore[misc]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for path, heading in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        if heading:
            headings = re.findall(r"^#+ (.*)", target.read_text(), flags=re.MULTILINE)
            assert heading in map(anchor, headings), f"{page.name}: {path}#{heading}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    waiting, reached = [README], set[Path]()
    while waiting:
        page = waiting.pop()
        reached.add(page)
        linked = {(page.parent / path).resolve() for path, _ in links(page) if path.endswith(".md")}
        waiting += linked - reached
    assert {page for page in PAGES if "figures" not in page.parts} <= reached


def test_files_that_texts_name_exist() -> None:
    files = [
        path for folder in ("lit_medgen", "data_modules", "configs", "tests") for path in (ROOT / folder).rglob("*.*")
    ]
    for path in [*files, *PAGES, ROOT / "CHANGELOG.md"]:
        if path.suffix in (".py", ".yaml", ".sh", ".md"):
            text = path.read_text()
            named = re.findall(r"\bdocs/[\w/]+\.md|\btests/[\w/]+\.py", text)
            named += [f"benchmarks/{name}.py" for name in re.findall(r"-m benchmarks\.(\w+)", text)]
            named = [file for file in named if file != "docs/README.md"]  # of a MONAI bundle
            assert not [file for file in named if not (ROOT / file).is_file()], path


def test_makefile_targets_are_the_readme_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README.read_text(), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
