"""For every test: nothing is kept from one run to the next, and no example fails for being slow on a busy machine."""

from __future__ import annotations

import os

import hypothesis

os.environ["MEMFIT_CACHE_DIR"] = ""

hypothesis.settings.register_profile("memfit", deadline=None)
hypothesis.settings.load_profile("memfit")
