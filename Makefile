# Everything that is done with this project. `make test` is what CI runs.

PYTHON ?= $(shell scripts/find-python)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml README.md LICENSE $(shell find src python -type f -not -name '*.pyc' -not -name '*.so')

# On Linux the wheel is for glibc 2.28 and later, whatever the building machine has: zig links against that version.
# libgcc_s is named because zig otherwise links an unwinder of its own. CPython before 3.14 ends threads at exit with
# pthread_exit, which unwinds Rust's frames with libgcc_s; the process crashes if these frames use another unwinder.
ifneq ($(and $(filter x86_64 aarch64,$(shell uname -m)),$(shell getconf GNU_LIBC_VERSION 2>/dev/null)),)
ZIG := 'ziglang>=0.17,<0.18'
FOR_OLDER_GLIBC := --zig --compatibility manylinux_2_28 -- -Clink-arg=$(shell cc -print-file-name=libgcc_s.so.1)
endif

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

test: $(VENV)/test-tools  ## Build, lint, and test Rust and Python (REQUIRE_ALL=1: nothing is skipped)
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

$(VENV)/build-tools: Makefile $(BIN)/python
	$(BIN)/python -m pip install --quiet 'maturin>=1.16,<2' $(ZIG)
	@touch $@

$(VENV)/test-tools: pyproject.toml $(BIN)/python
	$(BIN)/python -m pip install --quiet --group lint --group test
	@touch $@

dist/built: $(SOURCES) $(VENV)/build-tools
	rm -rf dist
	PATH="$(CURDIR)/$(BIN):$$PATH" maturin build --release --locked --out dist --interpreter $(BIN)/python $(FOR_OLDER_GLIBC)
	@touch $@

$(VENV)/installed: dist/built
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps dist/tantor-*.whl
	@touch $@
