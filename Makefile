# PYTHON=/path/to/python3 is tried first.
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3
BIN := .venv/bin

.PHONY: help install demo test lint docs bench
.DEFAULT_GOAL := help

help:
	@echo 'make install  create .venv and install dsno with pinned dependencies'
	@echo 'make demo     digits: teacher, trajectories, student, samples, report in runs/digits'
	@echo 'make test     run the tests'
	@echo 'make lint     ruff, mypy, import-linter, codespell'
	@echo 'make docs     build the site in build/site; a page that links nowhere is an error'
	@echo 'make bench    what a sample, a step and a trajectory cost; writes results/bench.json'

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@set -e; \
	check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$check" >/dev/null 2>&1; then \
	  python=; \
	  for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c "$$check" >/dev/null 2>&1; then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'No Python 3.11 or newer with venv was found: install one, or name it with make install PYTHON=/path/to/python3.' >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv; \
	fi
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/dsno run digits --out runs/digits

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'Read it: $(BIN)/python -m http.server --directory build/site'

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --out results/bench.json
