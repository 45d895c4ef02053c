# make quickstart: environment, install, run the preset, print where the figures are
# make test:       what the tests need, and the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Where the environment forbids to keep compiled modules, every process would compile torch and all others again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow lint clean

quickstart: $(VENV)/.installed
	$(BIN)/icl-eval run quickstart

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" -q -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lint
	$(PIP) install --no-deps --no-build-isolation --target build/lint .
	MYPYPATH=build/lint $(BIN)/mypy -p icl_eval

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "icl-eval needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install --no-compile -c constraints.txt --no-build-isolation -e '.$(EXTRAS)'
	touch $@
