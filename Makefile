# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Each prints the plain commands that
# it runs, so each line also works by hand. Everything lands in .venv, .venv-oldest and demo/; `make clean` removes it.
#
# Needs make, a POSIX shell and Python 3.11 or newer: another one with `make demo PYTHON=python3.12`.
# Does nothing twice: a stamp in .venv remembers the installation until pyproject.toml, constraints.txt or a
# source of the native kernels changes.
# For a small CPU-only torch, install that one into .venv before the first `make` (CONTRIBUTING.md says how).

PYTHON = python3
BIN = .venv/bin
OLDEST = .venv-oldest
SETTINGS = pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/topkloss/kernels/csrc/*)

# What the oldest torch is tested with: the core, which needs torch alone.
CORE_TESTS = $(patsubst %,tests/test_%.py,inspect_fractions compound criterion distributed errors foreign groups kernels laws losses \
             mining mutants pitfalls regions schedule selection selective situations soft targets torch) \
             tests/test_house.py::test_examples_of_the_core

# One thread each: two on shared cores are many times slower. Nothing in the tests is downloaded.
TEST_ENV = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

# Processes that share the tests, a file as far as they can: `make test WORKERS=8` where there are eight cores.
WORKERS = 2
PYTEST = $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

# What the cross-entropy is measured on: images, volumes, rows; and small inputs.
SHAPES = 2x19x512x1024 1x150x512x512 2x4x128x128x128 4096x1000 65536x10 100x10 1000x10 3000x10 10000x10

# What every way to it is measured on, on one thread.
SHAPES_OF_WAYS = 2x19x384x384 4096x1000 64x10

.PHONY: help demo test test-all test-oldest check bench sanitize package clean

help:
	@echo 'make demo         install, train with the average loss and with the average top-k, compare (minutes)'
	@echo 'make test         install, then what CI runs: lint, types, tests (about 12 minutes on two cores)'
	@echo 'make test-all     that, and the slow tests, sanitizers, the package, the oldest torch (under 60 minutes)'
	@echo 'make test-oldest  the tests of the core with the oldest torch that is supported'
	@echo 'make bench        the benchmarks and the table of peers'
	@echo 'make clean        remove what these made'

# An installation is a stamp: made last, so an interrupted one is done again.
.venv/installed-all: $(SETTINGS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[all]'
	touch $@

.venv/installed-dev: $(SETTINGS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[all,dev]'
	touch $@ .venv/installed-all

.venv/installed-bench: .venv/installed-dev
	$(BIN)/pip install --constraint constraints.txt --editable '.[all,bench,dev]'
	touch $@

$(OLDEST)/installed: $(SETTINGS)
	$(PYTHON) -m venv $(OLDEST)
	grep -v -E '^(setuptools|torch)' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --constraint $(OLDEST)/constraints.txt torch==2.11.0 hypothesis numpy pytest scipy
	$(OLDEST)/bin/pip install --no-deps --editable .
	touch $@

# The main job on real data: 5000 handwritten digits that come with an extra. It trains anew each time: the numbers are
# those of the code as it stands. One thread: then they do not depend on the number of cores.
demo: .venv/installed-all
	rm -rf demo
	OMP_NUM_THREADS=1 $(BIN)/topkloss train --loss average --out demo/average
	OMP_NUM_THREADS=1 $(BIN)/topkloss train --loss top-k --fraction 0.7 --out demo/top-70
	$(BIN)/topkloss report demo/average demo/top-70 --figure demo/report.png
	@echo 'results: demo/average, demo/top-70 (config.yaml, metrics.csv, metrics.json, model.safetensors) and demo/report.png'

test: .venv/installed-dev check
	$(TEST_ENV) $(PYTEST) -m 'not slow and not gpu'

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every test, with more random batches for each law; what needs a GPU is skipped, and listed, where there is none.
test-all: .venv/installed-dev check
	$(TEST_ENV) TOPKLOSS_HYPOTHESIS=thorough $(PYTEST)
	$(MAKE) sanitize package test-oldest

test-oldest: $(OLDEST)/installed
	$(TEST_ENV) $(OLDEST)/bin/python -m pytest $(CORE_TESTS)

# The tests of the native kernels, with the compiler's own checks of every address and every sum.
sanitize: .venv/installed-dev
	$(BIN)/python scripts/sanitize.py

package: .venv/installed-dev
	$(BIN)/python scripts/check_package.py

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.peers --readme README.md
	$(BIN)/python -m benchmarks.average_top_k
	$(BIN)/python -m benchmarks.kth_largest
	for shape in $(SHAPES); do $(BIN)/python -m benchmarks.cross_entropy --shape $$(echo $$shape | tr x ' ') || exit 1; done
	$(BIN)/python -m benchmarks.cross_entropy --dtype bfloat16
	$(BIN)/python -m benchmarks.cross_entropy --keep-pages
	for shape in $(SHAPES_OF_WAYS); do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ways --shape $$(echo $$shape | tr x ' ') || exit 1; done
	for shape in 2x19x384x384 4096x1000; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.probabilities --shape $$(echo $$shape | tr x ' ') || exit 1; done
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.distributed
	$(BIN)/python -m benchmarks.selective
	$(BIN)/python -m benchmarks.accumulation
	$(BIN)/python -m benchmarks.skipping
	$(BIN)/python -m benchmarks.tabular

clean:
	rm -rf .venv $(OLDEST) demo build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
