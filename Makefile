# make demo    search Python's own documentation; QUERY="..." asks your own question
# make test    the tests, on CENOTE_TEST_DATABASE_URL, a container or an embedded Postgres
# make check   formatting, lint, types
# make build   wheel and sdist

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check build clean

demo: $(VENV)/demo-installed
	$(BIN)/python -m examples.stdlib_search $(if $(QUERY),--query "$$QUERY") $(ARGS)

test: $(VENV)/dev-installed
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

build: $(VENV)/dev-installed
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) .demo dist

$(VENV)/%-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "cenote needs Python 3.11 or newer; say make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
