"""The notebooks run, and carry no outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_run import ROOT, TinyRun

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_carries_no_outputs(path: Path) -> None:
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)#]+)", "\n".join(texts))
    assert not [link for link in links if "://" not in link and not (path.parent / link).is_file()]


def figures_of(notebook: nbformat.NotebookNode) -> int:
    """Runs a notebook from the root, and counts its figures; what it raises is raised here."""
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_cdpm_notebook_runs(trained: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MEDGEN_CHECKPOINT", str(trained.last))
    assert figures_of(nbformat.read(ROOT / "notebooks" / "cdpm.ipynb", as_version=4)) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_people", "num_figures"),
    [("adni", 12, 4), ("chestxray", 14, 4), ("folder", 10, 2), ("lidc", 10, 4), ("ukbiobank", 10, 5)],
)
def test_notebook_of_a_data_set_runs(name: str, num_people: int, num_figures: int, tmp_path: Path) -> None:
    """With few people and steps, in a folder of its own: the cell of parameters is followed by one with others."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    others = f"folder, num_people, num_steps = Path({str(tmp_path)!r}), {num_people}, 6"
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(others))
    assert figures_of(notebook) == num_figures
    assert list(tmp_path.glob("*/checkpoints/last.ckpt"))
