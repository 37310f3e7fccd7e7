# Two commands: `make demo` and `make test`. Both set everything up on first use, inside $(VENV) and the cache folder.

VENV := $(or $(DPEER_VENV),.venv)
CACHE := $(or $(DPEER_CACHE),.cache)
RUN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export MPLCONFIGDIR ?= $(abspath $(CACHE))/matplotlib
# Hundreds of processes of the tests would compile the package anew, each for itself.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that runs and has a supported version (a version manager's shim may exist and not run).
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; done)

.PHONY: demo test lint lowest dist sbom bench docs setup clean

demo: setup
	$(RUN)/dpeer demo

# Three files at a time, on two cores too: slow tests wait most of their time, for processes, lost nodes and time-outs.
test: setup
	$(RUN)/python -m pytest -n 3 --no-loadscope-reorder --durations 40 --durations-min 10 $(ARGS)

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

# The bare package at the lower bound of each requirement: what it promises without torch.
lowest:
	"$(PYTHON)" -m venv --clear "$(CACHE)/lowest"
	"$(CACHE)/lowest/bin/python" -m pip install --quiet pytest pytest-timeout hypothesis psutil \
	  $$(sed -n '/^dependencies/,/^]/s/^ *"\([a-z0-9-]*\)>=\([^",]*\).*/\1==\2/p' pyproject.toml)
	PYTHONPATH=. "$(CACHE)/lowest/bin/python" -m pytest -m "not slow" --ignore tests/report/test_sweep_numbers.py \
	  --ignore tests/eval/irt/test_raschpy.py \
	  tests/report tests/eval/irt tests/eval/test_importer.py tests/eval/test_ratings.py tests/eval/test_xstest.py

# sdist and wheel of the last commit, into dist/, installed and used with every Python from 3.11 to 3.13 that runs here.
dist:
	DPEER_CACHE="$(CACHE)" .ci/dist

# What is installed, with versions and licences, as CycloneDX JSON in dist/. Its tool has an environment of its own.
sbom: setup
	"$(PYTHON)" -m venv --clear "$(CACHE)/sbom"
	"$(CACHE)/sbom/bin/python" -m pip install --quiet cyclonedx-bom
	"$(CACHE)/sbom/bin/python" .ci/sbom.py "$(RUN)/python" dist/sbom.cdx.json

# All committed results again, beside what was committed: exit code 1 if a ratio is worse. Goes on where it was stopped.
bench: setup
	$(RUN)/python benchmarks/rerun.py $(ARGS)

# The site of docs/, into site/. Its tools are the extra `docs`.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --quiet

setup:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found; use: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" launcher/bootstrap.py

clean:
	rm -rf runs site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
