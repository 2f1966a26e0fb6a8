"""The notebooks of the documentation run, and show the outputs that they have.

`python -m tests.test_notebooks` executes them again and stores the outputs without progress bars.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def executed(path: Path, directory: Path) -> Any:
    """Return a notebook with the outputs of all cells, executed in a directory."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": directory}})
    return client.execute()


def kept(cell: Any) -> list[Any]:
    """Return the outputs of a cell that are stored: results, and what was printed as one output.
    Progress bars and warnings are left out."""
    outputs = cell.get("outputs", [])
    printed = [output for output in outputs if output.get("name") == "stdout"]
    if printed:
        printed[0]["text"] = "".join(output["text"] for output in printed)
    return [*printed[:1], *(o for o in outputs if o["output_type"] == "execute_result")]


def kinds(notebook: Any) -> list[list[str]]:
    """Return the kinds of the stored outputs of each cell."""
    return [[output["output_type"] for output in kept(cell)] for cell in notebook.cells]


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = executed(path, tmp_path)
    import nbformat

    assert kinds(notebook) == kinds(nbformat.read(path, as_version=4))
    assert (tmp_path / "runs/photos-latteclip-s0/results.json").exists()


def store() -> None:
    """Execute all notebooks and store them with their outputs."""
    import nbformat

    for path in NOTEBOOKS:
        directory = Path(tempfile.mkdtemp())
        try:
            notebook = executed(path, directory)
        finally:
            shutil.rmtree(directory)
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.outputs = kept(cell)
            for output in cell.get("outputs", []):
                if "text" in output:  # without the folders of this machine
                    output["text"] = output["text"].replace(f"{directory}/", "")
                    output["text"] = output["text"].replace(f"{ROOT}/", "")
        notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
        nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    store()
