# Two commands: `make demo` shows what genloss is for; `make test` checks it. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test replicate fuzz faults bench clean

setup: $(STAMP)

# torch first: a CPU build where one is found, the plain one of the same version otherwise
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "genloss needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "torch==2.13.0+cpu" 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/genloss run experiment=demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

# published results: the scoreboard in minutes, then those over several seeds, half an hour and more
replicate: setup
	$(BIN)/genloss replicate
	$(BIN)/python -m pytest -m replicate -v -rP

# every key of every option with values that nobody means
fuzz: setup
	$(BIN)/python -m pytest -m fuzz

# a kill, an error or damage wherever a command can meet it; GENLOSS_SHARE=10 takes every tenth point
faults: setup
	$(BIN)/python -m pytest -m faults -n 0 -s

# one after the other: a busy machine makes any figure worthless
bench: setup
	for b in benchmarks/[a-z]*.py; do $(BIN)/python $$b || exit 1; done

clean:
	rm -rf $(VENV) .genloss runs rounds data report
