# make train: set up .venv and train SEAL on real images.   make test: set up .venv and run the tests.
# make test-long: those that kill and restart whole programs, a few minutes.
PYTHON ?= python3
VENV := .venv
BUILD := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/*.cpp kernels/*.h kernels/*/*.cpp kernels/*/*.h)
# an editable install knows the modules that there were: a new or moved one installs again
MODULES := $(shell find seal_fast kernels -name '*.py' | sort | cksum | cut -d' ' -f1)
TRAIN := $(VENV)/.train-$(MODULES)
DEV := $(VENV)/.dev-$(MODULES)
# without compiling every module of every package: those that are imported are compiled then
INSTALL := $(VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

.PHONY: train test test-long lint bench clean

train: $(TRAIN)
	$(VENV)/bin/python -m seal_fast.train --preset demo

# two processes, each test file whole in one of them, in order (the few slow ones of many processes not last);
# threads that wait must not spin beside the other process's work
test: $(DEV)
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: $(DEV)
	$(VENV)/bin/python -m pytest tests -m long

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard kernels/*.cpp kernels/*.h kernels/*/*.cpp kernels/*/*.h)
	$(VENV)/bin/codespell seal_fast kernels tests bench docs studies examples README.md CHANGELOG.md
	$(VENV)/bin/pyright

bench: $(DEV)
	$(VENV)/bin/python -m pytest bench --benchmark-only

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "seal_fast needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# each install compiles the kernels, so .dev does not build on .train but stands for it
$(TRAIN): $(VENV)/bin/python $(BUILD)
	$(INSTALL) .
	rm -f $(VENV)/.train* $(VENV)/.dev* && touch $@

$(DEV): $(VENV)/bin/python $(BUILD)
	$(INSTALL) '.[dev]'
	rm -f $(VENV)/.train* $(VENV)/.dev* && touch $(TRAIN) $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
