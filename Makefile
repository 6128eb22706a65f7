# Each target sets itself up in .venv, which is made again when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of `make fuzz`.
CASES ?= 100000
SEED ?= 0

.PHONY: demo test slow fuzz notebooks check bench docs dist clean

demo: $(VENV)/.done
	$(BIN)/python -m mithril_opt.demo

test: $(VENV)/.done
	$(BIN)/python -m pytest -q -n auto --dist worksteal

slow: $(VENV)/.done
	$(BIN)/python -m pytest -q -n auto -m slow

fuzz: $(VENV)/.done
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

notebooks: $(VENV)/.done
	$(BIN)/python -m pytest -q --nbmake notebooks

check: $(VENV)/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.done
	$(BIN)/python -m benchmarks --quick

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

clean:
	rm -rf $(VENV)
