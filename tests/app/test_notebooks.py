"""The notebooks in docs/ run from top to bottom."""

from pathlib import Path

import nbclient
import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("notebook", sorted(DOCS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(notebook):
    content = nbformat.read(notebook, 4)
    stored = [cell for cell in content.cells if cell.cell_type == "code" and cell.outputs]
    assert stored, "commit the notebook with its outputs: make notebook"
    said = [output for cell in stored for output in cell.outputs if output.get("name") == "stderr"]
    assert not said, "a warning names files of one machine: make notebook leaves none"
    client = nbclient.NotebookClient(content, timeout=240, resources={"metadata": {"path": DOCS}})
    client.execute()
