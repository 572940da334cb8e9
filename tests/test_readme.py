"""What the README and the config headers tell people to type."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_run import ROOT

from lit_medgen.__main__ import VERBS, main

DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "results.md", *sorted(ROOT.glob("configs/**/*.yaml"))]


def commands(document: Path) -> list[list[str]]:
    """The words of every `python -m lit_medgen` line of a document, continuation lines joined, comments dropped."""
    text = document.read_text().replace("\\\n", " ")
    lines = re.findall(r"python -m lit_medgen ([^\n`]*)", text)
    return [shlex.split(re.sub(r"\[--ckpt_path last\]|  +\(.*", "", line), comments=True) for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_what_exists(document: Path) -> None:
    for words in commands(document):
        assert words[0] in VERBS, words
        for option, value in pairwise(words):
            if option in ("--config", "--data"):
                assert value == "mine.yaml" or (ROOT / value).is_file(), words


def test_fit_commands_of_the_readme_parse() -> None:
    for words in commands(ROOT / "README.md"):
        if words[0] == "fit" and "mine.yaml" not in words:
            with pytest.raises(SystemExit) as exit_:
                main([word for word in words if word != "--print_config"] + ["--print_config"])
            assert exit_.value.code == 0


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "results.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_makefile_targets_are_the_readme_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
