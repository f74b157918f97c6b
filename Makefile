# `make` lists the commands. Everything is installed into .venv, from requirements.lock.

PYTHON ?= python3
PROFILE ?= $(or $(LECTURE6_PROFILE),book)
BIN := .venv/bin
INSTALLED := .venv/.installed
LECTURE6_DATA ?= $(wildcard ../shared/data)
ifneq ($(LECTURE6_DATA),)
export LECTURE6_DATA := $(abspath $(LECTURE6_DATA))
endif
# Tests run in two processes, of one thread each: more would wait for one another. Of the unit tests
# it is three, since they wait a third of their time for what they start. Files are taken up in the
# order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra --dist loadfile --no-loadscope-reorder \
  --numprocesses
UNIT_TESTS := tests --ignore=tests/notebooks --ignore=tests/book
# The kernels of .venv win over any of the same name under the home folder.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help book serve pdf test test-fast lint unit notebooks browser pages lock exercises repository gpu wheels clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "\
	make needs Python 3.11 or newer, which '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=/path/to/one" >&2; exit 1; }
	@echo "Installing into .venv (the first time: a few minutes and several GB, most of it torch) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check \
	  --no-deps --no-build-isolation -e .
	@touch $@

book: $(INSTALLED) ## execute the notebooks and render the book into _build/html
	@# After a failure nothing may count as read: Sphinx would not warn a second time.
	@LECTURE6_PROFILE=$(PROFILE) $(BIN)/jupyter-book build . -W -n --keep-going \
	  || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book: file://$(CURDIR)/_build/html/index.html, or: make serve"

serve: book ## serve the book on this machine: http://127.0.0.1:8000
	@$(BIN)/python book/serve.py _build/html 8000

pdf: book ## print the whole book, by Chromium, into _build/sgd.pdf
	@$(BIN)/python book/pdf.py _build/html _build/sgd.pdf
	@echo "The book on paper: _build/sgd.pdf"

test: $(INSTALLED) ## everything that CI checks; all of it, whatever fails; its parts by themselves:
	@failed=; for part in lint book unit pages; do \
	  $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; test -z "$$failed" || { echo "make test: failed:$$failed" >&2; exit 1; }

lint: $(INSTALLED) ## - style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(INSTALLED) ## - the unit tests
	$(PYTEST) 3 $(UNIT_TESTS)

notebooks: $(INSTALLED) ## - the notebooks at profile smoke
	$(PYTEST) 2 tests/notebooks

browser: book ## - the book, in a browser
	$(PYTEST) 2 tests/book

# The notebooks are run by one process and the book by another, so that two kernels never start at
# the same moment: they may pick the same ports.
pages: $(INSTALLED) ## - these two side by side, of the book as it was built last
	$(PYTEST) 2 tests/notebooks tests/book

test-fast: $(INSTALLED) ## the unit tests that start no processes and take no minutes
	$(PYTEST) 2 -m "not slow" $(UNIT_TESTS)

lock: ## write requirements.lock anew from pyproject.toml, with the newest versions
	@$(PYTHON) -m venv _build/uv
	@_build/uv/bin/python -m pip install -q --disable-pip-version-check uv
	@_build/uv/bin/uv pip compile pyproject.toml --quiet --upgrade --universal \
	  --python-version 3.11 --extra book --extra test --extra bench --no-annotate \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --output-file requirements.lock

exercises: $(INSTALLED) ## write the cells for the answers into the notebooks
	@$(BIN)/python book/exercises.py

repository: ## make repository URL=https://github.com/owner/name [BRANCH=main]
	@$(PYTHON) book/repository.py "$(URL)" $(BRANCH)

# On a bare machine, with the Python that has PyTorch, there is no .venv, and none is made.
SECONDS ?= 540
RESULTS ?= gpu-results
gpu: ## the runs that are owed on a GPU: make gpu SECONDS=540 [STUDIES="keskar smith"] [SMOKE=1]
	@PYTHONPATH="$(CURDIR)" $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) \
	  benchmarks/gpu.py --seconds $(SECONDS) --out "$(RESULTS)" $(if $(SMOKE),--smoke) \
	  $(if $(STUDIES),--studies $(STUDIES))

WHEELS ?= $(shell $(PYTHON) benchmarks/gpu.py --needs)
wheels: ## - what it needs beside PyTorch, for Python 3.12 on Linux, x86_64, without a network there
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest wheels \
	  --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(addprefix --platform ,manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 \
	  manylinux2014_x86_64) $(WHEELS)

clean: ## remove the rendered book and the cache of executed notebooks
	rm -rf _build book/api
