"""The notebook of first steps runs from top to bottom, and is stored as it ran."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
PATH = Path(__file__).parent.parent / "examples" / "first_steps.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell put out: text, pictures, tables, errors."""
    return {kind for output in cell.outputs for kind in [output.output_type, *output.get("data", {})]}


def test_it_is_stored_with_what_it_put_out():
    cells = code_cells(nbformat.read(PATH, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any("error" in kinds(cell) for cell in cells)
    assert sum("image/png" in kinds(cell) for cell in cells) == 2
    assert PATH.stat().st_size < 1_000_000


@pytest.mark.full
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(PATH, as_version=4)
    stored = [kinds(cell) for cell in code_cells(notebook)]
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in code_cells(notebook)] == stored
    assert {path.name for path in tmp_path.iterdir()} >= {"first_steps.zip", "first_steps.onnx", "first_steps_plasticity.csv"}
