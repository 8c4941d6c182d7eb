# Every target sets up what it needs; a second run installs nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A new or removed file changes this list, and with it the name of the stamp.
SOURCES := $(sort $(wildcard converter/*.py converter/*/*.py models/*.py export/*.py))

.PHONY: demo test check bench clean

demo: $(READY)
	$(BIN)/dprp demo

# Two processes of one thread each: small tensors on two threads spend their time waiting.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p dprp
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/latency.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The install links to the sources, so edits need no new install; a new file does.
$(READY): $(BIN)/python pyproject.toml $(VENV)/.files
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

$(VENV)/.files: $(BIN)/python .FORCE
	@echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@

.PHONY: .FORCE
.FORCE:

clean:
	rm -rf $(VENV) build dist *.egg-info dprp-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
