# Everything that is done with this project. `make test` is what CI runs.

PYTHON ?= $(shell scripts/find-python)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml README.md LICENSE $(shell find src python -type f -not -name '*.pyc' -not -name '*.so')

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test bench attack wheel lint format clean
.DELETE_ON_ERROR:

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: announced $(VENV)/installed  ## Run the example chat and print its address
	$(BIN)/python -m pip install --quiet 'flask>=2.3'
	$(BIN)/python examples/flask_chat/app.py

.PHONY: announced
announced:
	@test -e dist/built || echo "Building Tantor first. The first time this takes some minutes."

test: $(VENV)/installed $(VENV)/test-tools  ## Lint, and test Rust and Python (REQUIRE_ALL=1: nothing is skipped)
	scripts/test

bench: $(VENV)/installed $(VENV)/test-tools  ## Measure the promises of benches/README.md
	$(BIN)/python benches/run.py

attack: $(VENV)/installed $(VENV)/test-tools  ## Flood a server, and measure what others notice of it
	$(BIN)/python benches/attack.py

wheel: dist/built  ## Build the wheel into dist/, and say where it is
	@ls dist/tantor-*.whl

lint: $(VENV)/installed $(VENV)/test-tools  ## Only the lints of `make test`
	scripts/lint

format: $(VENV)/test-tools  ## Lay out Rust and Python
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## Remove all that was built or installed here
	rm -rf .venv* dist target tests/node/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps stand for what their recipe did last.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python from 3.11 on was found; say PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/build-tools: $(BIN)/python
	$(BIN)/python -m pip install --quiet 'maturin>=1.16,<2'
	@touch $@

$(VENV)/test-tools: pyproject.toml $(BIN)/python
	$(BIN)/python -m pip install --quiet --group lint --group test
	@touch $@

dist/built: $(SOURCES) $(VENV)/build-tools
	rm -rf dist
	$(BIN)/maturin build --release --locked --out dist --interpreter $(BIN)/python
	@touch $@

$(VENV)/installed: dist/built
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps dist/tantor-*.whl
	@touch $@
