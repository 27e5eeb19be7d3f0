"""A real notebook, executed by a real kernel without a browser: ``%load_ext memfit``, the magics, and rich output."""

from __future__ import annotations

from collections.abc import Callable

import nbformat
from nbformat import NotebookNode

CELLS = [
    "%load_ext memfit\nimport keras, numpy as np, memfit",
    "images = np.ones((3, 2**20), 'float32')\nsame = images\nview = images[1:]\nbig_list = [np.ones(2**20), np.ones(2**20)]",
    "np.ones(2**19)",
    "%memfit",
    "model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])\nmodel.compile('sgd', 'mse')\n"
    "history = model.fit(np.ones((64, 8)), np.ones((64, 2)), epochs=2)\nhistory.memfit",
    "memfit.budget('1 GiB')",
    "%%memfit\nkept = np.ones(5 * 2**20)",
    "%%memfit -3 GiB\nnever = 1",
    "%unload_ext memfit\n'never' in globals(), type(model).fit.__module__",
]


def test_a_notebook(executed: Callable[[NotebookNode], NotebookNode]) -> None:
    notebook = executed(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS]))

    outputs = [cell.outputs for cell in notebook.cells]
    held = outputs[3][-1].data["text/plain"]
    assert "images, same, view (ndarray of shape (3, 1048576)): del images, same, view" in held
    assert "16 MiB  big_list (list): del big_list" in held
    assert "4 MiB  Out[3] (ndarray of shape (524288,)): Out.pop(3)" in held
    assert "<table>" in outputs[3][-1].data["text/html"]

    printed = "".join(one.text for one in outputs[4] if one.output_type == "stream")
    assert not [one for one in outputs[4] if one.get("name") == "stderr"]
    assert "memfit: trains as model.fit does" in printed
    assert "host: " in printed
    assert "What happened" in outputs[4][-1].data["text/html"]
    assert "memfit: trains as model.fit does" in outputs[4][-1].data["text/plain"] or "RunReport" in str(
        outputs[4][-1].data
    )
    assert "1 GiB" in outputs[5][-1].data["text/html"]

    (cell,) = outputs[6]
    assert "memfit: the cell took 4" in cell.text
    assert "40 MiB of it stayed" in cell.text or " of it stayed" in cell.text
    assert "the cell was not run: `budget`" in outputs[7][0].text
    assert outputs[8][-1].data["text/plain"].startswith("(False, 'keras.")
