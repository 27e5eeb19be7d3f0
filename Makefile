# Two commands do all the set-up on a machine with Python and pip: `make demo` and `make test`.
PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
BACKENDS := tensorflow jax torch
SELECTED := -m "not thorough"

.PHONY: demo test thorough check docs unit contract e2e format benchmarks clean

demo: $(DEMO)/done
	KERAS_BACKEND=tensorflow $(DEMO)/bin/memfit demo

test: check docs unit contract e2e

# With every test on every backend: for a change to what all backends share, and before a release.
thorough:
	$(MAKE) test SELECTED=

check: $(DEV)/done
	$(DEV)/bin/ruff format --check src tests benchmarks docs/conf.py docs/notebooks
	$(DEV)/bin/ruff check src tests benchmarks docs/conf.py docs/notebooks
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

# The site, in build/site; a warning fails it. It imports no framework and takes seconds.
docs: $(DEV)/done
	$(DEV)/bin/sphinx-build -E -W --keep-going -q -b html docs build/site

unit: $(DEV)/done
	$(DEV)/bin/python -m pytest -q tests/unit

# The same files against every backend, one process each, two at a time: each uses little more than a core.
contract: $(DEV)/done
	$(MAKE) -j2 --output-sync=target $(BACKENDS:%=contract-%)

contract-%: $(DEV)/done
	KERAS_BACKEND=$* $(DEV)/bin/python -m pytest -q tests/contract $(SELECTED)

e2e: $(DEV)/done
	$(DEV)/bin/python -m pytest -q tests/e2e

format: $(DEV)/done
	$(DEV)/bin/ruff format src tests benchmarks docs/conf.py docs/notebooks
	$(DEV)/bin/ruff check --fix src tests benchmarks docs/conf.py docs/notebooks

benchmarks: $(DEV)/done
	for backend in $(BACKENDS); do KERAS_BACKEND=$$backend $(DEV)/bin/python benchmarks/overhead.py || exit 1; done

# The demo needs TensorFlow alone. tensorflow-cpu serves where there is no GPU driver.
$(DEMO)/done: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install -q --upgrade pip
	if command -v nvidia-smi >/dev/null 2>&1; then $(DEMO)/bin/pip install -q -e ".[tensorflow]"; \
	else $(DEMO)/bin/pip install -q tensorflow-cpu && $(DEMO)/bin/pip install -q -e .; fi
	touch $@

# PyTorch first and pinned: pulled in by another package it would bring CUDA.
$(DEV)/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install -q --upgrade pip
	$(DEV)/bin/pip install -q torch==2.13.0
	$(DEV)/bin/pip install -q -c constraints.txt tensorflow-cpu jax -e . --group dev
	touch $@

clean:
	rm -rf $(DEMO) $(DEV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
