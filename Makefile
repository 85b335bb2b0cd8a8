# Each target makes .venv and installs into it on first use, or again when a pyproject.toml has changed.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint bench clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/bnew reproduce digits --out runs/demo --seeds 0 1 2 --workers 2 --quiet
	$(BIN)/bnew reproduce digits --out runs/demo --seeds 0 1 2 --workers 2 --quiet --distill

test: .venv/ready
	$(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf .venv
