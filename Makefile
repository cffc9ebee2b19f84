# make demo   trains a small DenseNet on scanned digits, from nothing, in a few minutes
# make test   lint and the whole test suite; with --jobs=2 side by side
# make docs   the documentation as a site, build/site/index.html
PYTHON ?= python3
BIN := .venv/bin

# Modules are compiled when they are first imported; pip would compile all there are.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile

.PHONY: demo test lint pytest docs clean

demo: .venv/installed
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits

test: lint pytest

pytest: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed-test
	$(BIN)/python -m mkdocs build --strict

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("densenet_jax needs Python 3.11 or newer; make PYTHON=python3.12 takes another one." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt -c constraints.txt
	touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	$(PIP) -r requirements-test.txt -c constraints.txt
	touch $@

clean:
	rm -rf .venv runs
