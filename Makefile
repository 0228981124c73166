# make quickstart   install, fetch a model and data, fit and report (a few minutes on two cores)
# make test         install with the test extras, then format check, lint, types and tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help quickstart test check clean

help:
	@sed -n 's/^# make/make/p' Makefile

quickstart: .venv/.installed
	$(BIN)/taskfit quickstart

test: .venv/.installed-test check

check:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist worksteal

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "taskfit needs Python 3.11 or newer; set it with make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv

# Installed again only when the dependencies have changed.
.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ .venv/.installed

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache
