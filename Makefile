# Everything starts here: a clean clone needs python3 (3.11 or newer), pip and git, nothing else.
# pip follows the user's own configuration; no index is named here.

PYTHON   ?= python3
WORKERS  ?= 2
CHROMIUM ?= chromium
ARGS     ?=
BIN      := .venv/bin
PIP      := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
SUDO     := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-long test-gpu check docs bench clean system-packages

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.stamp  ## make .venv with everything that development needs

demo: .venv/.stamp-demo  ## train, compare and publish: studies/0001_token_mixers (ARGS=--smoke: one minute)
	$(BIN)/paribus study studies/0001_token_mixers/study.py $(ARGS)

# One thread for each worker: torch's own threads would fight for the same cores.
test: export OMP_NUM_THREADS = 1
test: .venv/.stamp system-packages  ## all tests but the long ones (ARGS='-k name' narrows)
	CHROMIUM=$(CHROMIUM) $(BIN)/pytest tests -n $(WORKERS) -m "not long and not gpu" $(ARGS)

test-long: export OMP_NUM_THREADS = 1
test-long: .venv/.stamp system-packages  ## the tests that take minutes each
	CHROMIUM=$(CHROMIUM) $(BIN)/pytest tests -n $(WORKERS) -m "long and not gpu" $(ARGS)

test-gpu: .venv/.stamp  ## the tests that need a CUDA GPU and flash-linear-attention, which it installs
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	  "make test-gpu needs a CUDA GPU and a torch built for it; torch " + torch.__version__ + " sees none")'
	$(PIP) --editable ".[data,image,dev,fla]"
	$(BIN)/pytest tests/gpu -m gpu $(ARGS)

# What the theme says of its own future is no fault of these pages.
check docs: export NO_MKDOCS_2_WARNING = 1
check: .venv/.stamp  ## format, lint, types, structure and documentation; no test of behaviour
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/structure -q
	$(BIN)/mkdocs build --strict --quiet

docs: .venv/.stamp  ## serve the documentation on this machine, rebuilt as it changes
	$(BIN)/mkdocs serve

bench: .venv/.stamp  ## run the benchmarks, ours and peers side by side (ARGS='kernels --rounds 3' narrows)
	$(BIN)/paribus bench $(ARGS)

clean:  ## remove what make made; runs and prepared corpora stay
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests studies benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Two stamps, so that the demo installs no development tools. torch is named in the same command as the project,
# so that pip chooses its build once.
.venv/.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch --editable ".[data,image,dev]"
	touch .venv/.stamp-demo $@

.venv/.stamp-demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch --editable ".[data]"
	touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Paribus needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The tests of the HTML report look at it in a real browser.
system-packages:
	@command -v $(CHROMIUM) >/dev/null || { command -v apt-get >/dev/null && $(SUDO) true 2>/dev/null \
	  && $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	     apt-get install -y -qq --no-install-recommends chromium; }; \
	command -v $(CHROMIUM) >/dev/null || { \
	  echo "The tests need Chromium; '$(CHROMIUM)' is absent and could not be installed from here." \
	       "Install it, or name it: make test CHROMIUM=/path/to/chromium" >&2; exit 1; }
