# make quickstart   install, fetch a model and data, fit and report (a few minutes on two cores)
# make test         install with the test extras, then format check, lint, types and tests
# make page-check   the server's page in headless Chromium: tests, axe (npm), pictures in build/page to look at
# make cases        run the cases of trouble in CASES (../shared/cases) and print what each ends in
PYTHON ?= python3
BIN := .venv/bin
CASES ?= ../shared/cases

.PHONY: help quickstart test check page-check cases clean

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

# Chromium is the system's (CHROMIUM=PATH); axe-core is fetched once and is no part of the package.
page-check: .venv/.installed-test
	[ -f build/axe/node_modules/axe-core/axe.min.js ] || npm install --silent --prefix build/axe axe-core
	AXE_CORE=build/axe/node_modules/axe-core/axe.min.js $(BIN)/pytest -q -rs tests/serve/test_page.py tests/serve/test_page_in_browser.py
	$(BIN)/python tests/serve/page_pictures.py build/page

# A case is a folder with a cmd.sh whose first lines say what is expected; what it prints is for reading.
cases: .venv/.installed
	@if [ ! -d "$(CASES)" ]; then echo "no cases: $(CASES) is not here"; exit 0; fi; \
	export PATH="$(CURDIR)/$(BIN):$$PATH" MODELS="$(CURDIR)/build/cases"; \
	[ -d "$$MODELS/orig_mod" ] || { mkdir -p "$$MODELS" && python "$(CASES)/tiny_models.py" "$$MODELS" || exit 1; }; \
	for case in "$(CASES)"/*/cmd.sh; do \
	  printf '\n== %s\n' "$$(basename "$$(dirname "$$case")")"; sed -n '2,/^export/{/^#/p}' "$$case"; \
	  bash "$$case"; echo "(exit code $$?)"; \
	done

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache
