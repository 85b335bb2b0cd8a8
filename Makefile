# Each target makes .venv and installs into it on first use, or again when what is installed has changed.
# `make demo TORCH=cpu` takes PyTorch's build without CUDA, which is a tenth of the size.
PYTHON ?= python3
TORCH ?= default
BIN = .venv/bin
ENGINE = $(shell find engine/CMakeLists.txt engine/pyproject.toml engine/cpp engine/src -type f -not -name '*.pyc')

help:
	@echo "make demo      digits: every method trained and compared, the best packed and timed (3 minutes)"
	@echo "make test      all tests, of bnew and of the engine"
	@echo "make lint      ruff, mypy and clang-format"
	@echo "make docs      the documentation as a site, with its links checked"
	@echo "make bench     speed beside real alternatives"
	@echo "make sanitize  the engine's tests with the sanitizers of GCC"
	@echo "make wheels    the wheels of both, in build/wheels"
	@echo "make clean     remove .venv and what was built"

.NOTPARALLEL:  # two installations must not write into one environment
.PHONY: help demo test lint docs bench sanitize wheels clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
ifeq ($(TORCH),cpu)
	$(BIN)/pip install --quiet torch torchvision --index-url https://download.pytorch.org/whl/cpu
endif
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev: .venv/ready
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.venv/engine: .venv/ready $(ENGINE)
	$(BIN)/pip install --quiet --force-reinstall --no-deps ./engine
	touch $@

demo: .venv/engine
	$(BIN)/bnew reproduce digits --out runs/demo --seeds 0 1 2 --workers 2 --quiet
	$(BIN)/bnew reproduce digits --out runs/demo --seeds 0 1 2 --workers 2 --quiet --distill
	$(BIN)/bnew pack runs/demo runs/demo/best.bnew
	$(BIN)/bnew verify runs/demo/best.bnew runs/demo
	$(BIN)/bnew bench runs/demo/best.bnew --run runs/demo
	$(BIN)/bnew report runs/demo --out runs/demo

test: .venv/dev .venv/engine
	$(BIN)/pytest --numprocesses auto --dist worksteal

lint: .venv/dev .venv/engine
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror --style=file:engine/.clang-format \
		$(shell find engine/cpp engine/examples engine/tests src examples benchmarks -name '*.h' -o -name '*.c' -o -name '*.cpp')

# The documentation as a site, in build/site; a link that leads nowhere is an error.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/dev .venv/engine
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/choice.py
	$(BIN)/python benchmarks/load.py

# The engine's tests with the address and undefined-behaviour sanitizers of GCC.
sanitize: .venv/dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/sanitize \
		--config-settings=cmake.define.BNEW_SANITIZE=ON ./engine
	LD_PRELOAD="$(foreach library,libasan.so libubsan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(library)))" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize $(BIN)/pytest engine/tests

# `auditwheel repair` then gives the engine's wheel the tag of the Linux systems that it runs on. Built by
# CPython 3.12 or later, it is for all of them (cp312-abi3); by 3.11, for 3.11 alone.
wheels: .venv/ready
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheels . ./engine

clean:
	rm -rf .venv engine/build build
