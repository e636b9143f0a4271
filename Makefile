# Two commands: `make quickstart` and `make test`. Both install into $(VENV) first; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint deploy benchmarks clean

quickstart: $(VENV)/.installed
	$(BIN)/mergecore quickstart

# two files at a time; one thread each, or two would be slower than one
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# the default suite and what is too long for it
test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# a Prefect server must run: `prefect server start`; GPUS=2 lets two studies evaluate at a time
deploy: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" bash deployments/deploy.sh

benchmarks: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[benchmarks]"
	$(BIN)/python -m benchmarks

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
