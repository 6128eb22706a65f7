# Each target sets itself up in .venv, which is made again when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AOT := .venv-aot
# Of `make fuzz`.
CASES ?= 100000
SEED ?= 0

.PHONY: demo test slow fuzz matrix notebooks check bench aot docs dist clean

demo: $(VENV)/.done
	$(BIN)/python -m mithril_opt.demo

test: $(VENV)/.done
	$(BIN)/python -m pytest -q -n auto --dist worksteal

slow: $(VENV)/.done
	$(BIN)/python -m pytest -q -n auto -m slow

fuzz: $(VENV)/.done
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

# The tests on other versions of Python and JAX, an hour or so; uv makes the environments.
matrix: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python scripts/matrix.py

notebooks: $(VENV)/.done
	$(BIN)/python -m pytest -q --nbmake notebooks

check: $(VENV)/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.done
	$(BIN)/python -m benchmarks --quick

# Compilers for TPUs and GPUs, 1.2 GB, have an environment of their own. ARGUMENTS=--quick takes two minutes instead of eighteen.
aot: $(AOT)/.done
	$(AOT)/bin/python -m benchmarks aot $(ARGUMENTS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going --quiet --builder html docs runs/docs
	@echo open runs/docs/index.html

dist: $(VENV)/.docs
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python scripts/check_dist.py dist

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build -e ".[docs]"
	touch $@

$(AOT)/.done: pyproject.toml
	$(PYTHON) -m venv --clear $(AOT)
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[aot]" || \
		{ echo "make aot: the compilers for TPUs and GPUs could not be installed" >&2; exit 1; }
	touch $@

clean:
	rm -rf $(VENV) $(AOT)
