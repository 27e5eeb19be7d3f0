"""The site: guides, concepts and the reference from docstrings.

    sphinx-build -W --keep-going -b html docs build/site

Needs no network and no framework: Keras and the backends are stand-ins here.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from sphinx.ext.autodoc.mock import mock  # noqa: E402

import memfit  # noqa: E402

# Not by `autodoc_mock_imports`: that ends with each import, and what looks at a documented class later would import Keras.
stand_ins = mock(["keras", "tensorflow", "jax", "torch"])
stand_ins.__enter__()

project = "memfit"
author = "the memfit authors"
version = release = memfit.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxarg.ext"]
exclude_patterns = ["status.md"]
nb_execution_mode = "off"  # a test executes the notebooks
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_ref_domains = ["std", "py"]

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of records are described once, in their class
napoleon_use_rtype = False
default_role = "literal"

html_theme = "furo"
html_title = f"memfit {release}"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
