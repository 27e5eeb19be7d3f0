"""The example notebooks of the site, executed as they are but for their sizes, and committed without outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"

SMALL = {
    "colab": "num_images = 60\nimage_size = (32, 32)\nbatch_size = 16\nepochs = 1",
    "image-folder": "num_images = 60\nimage_size = (32, 32)\nbatch_size = 16\nepochs = 1",
    "small-gpu": "image_size = 96\nbatch_size = 32\nblocks = (1, 1)\nnum_batches = 1",
    "long-text": "num_texts = 60\nlongest = 24\nbatch_size = 16\nmicro_batch_size = 8\nunits = 8",
}
"""In the place of each notebook's cell that is tagged `parameters`."""

EXPECTED = {
    "colab": "memfit: trains as model.fit does",
    "image-folder": "memmap (10, 10)",
    "small-gpu": "recomputed in the backward pass",
    "long-text": "micro-batches of 8",
}


def cells_tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def text_of(output: NotebookNode) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_an_example_notebook(name: str, executed: Callable[[NotebookNode], NotebookNode]) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (parameters,) = cells_tagged(notebook, "parameters")
    assert {line.split(" = ")[0] for line in SMALL[name].splitlines()} == {
        line.split(" = ")[0] for line in parameters.source.splitlines()
    }
    parameters.source = SMALL[name]
    for cell in cells_tagged(notebook, "skip-in-tests"):
        notebook.cells.remove(cell)

    outputs = [output for cell in executed(notebook).cells for output in cell.get("outputs", ())]
    assert EXPECTED[name] in "\n".join(map(text_of, outputs))
