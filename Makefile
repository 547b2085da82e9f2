# make report | make explore | make test: each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REPORT ?= reports/mini

.PHONY: report explore test lint setup schema notebook screenshot measure clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

report: setup
	$(BIN)/engram report engram-mini --twin moe-mini --out $(REPORT) --force
	@echo "open $(REPORT)/report.html"

explore: setup
	$(BIN)/engram explore $(EXPLORE)

measure: setup
	$(BIN)/python tests/app/measure_explorer.py $(MEASURE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

schema: setup
	$(BIN)/python -c "import json; from engram_probes.schema import result_schema; print(json.dumps(result_schema(), indent=1))" > docs/result.schema.json

notebook: setup
	PYTHONWARNINGS='ignore:IProgress not found' $(BIN)/jupyter-execute --inplace docs/first_look.ipynb
	$(BIN)/python tests/app/test_notebook_page.py

screenshot: setup
	ENGRAM_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest -q tests/app/test_explorer_browser.py -k "first_screen and light"
	cp build/screenshots/overview-light.png docs/images/overview.png
