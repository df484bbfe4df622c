# make demo    search Python's own documentation; QUERY="..." asks your own question
# make app     the sample application, at http://127.0.0.1:8000
# make test    the tests, on CENOTE_TEST_DATABASE_URL, a container or an embedded Postgres
# make browser the sample application's page in a headless browser, which it installs (Debian)
# make torture the tests that damage a running server, ten times as often
# make check   formatting, lint, types
# make build   wheel and sdist
# make benchmark  cenote beside hand-written SQL and three libraries; see benchmarks/README.md

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo app test torture browser check build benchmark clean

PEERS = langchain llama vecs

demo: $(VENV)/demo-installed
	$(BIN)/python -m examples.stdlib_search $(if $(QUERY),--query "$$QUERY") $(ARGS)

app: $(VENV)/app-installed
	$(BIN)/python -m examples.document_search $(ARGS)

test: $(VENV)/dev-installed
	$(BIN)/python -m pytest $(ARGS)

torture: $(VENV)/dev-installed
	CENOTE_TORTURE=10 $(BIN)/python -m pytest tests/test_faults.py tests/test_load.py tests/test_fuzz.py $(ARGS)

browser: $(VENV)/dev-installed
	@command -v chromium && command -v chromedriver || $(AS_ROOT) apt-get install -y -q \
	    --no-install-recommends chromium chromium-driver || \
	    { echo "install chromium and chromedriver, then say make browser again"; exit 1; }
	$(BIN)/python -m pytest tests/browser $(ARGS)

check: $(VENV)/dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

build: $(VENV)/dev-installed
	$(BIN)/python -m build

benchmark: $(VENV)/benchmark-installed $(PEERS:%=.bench/%/installed)
	$(BIN)/python -m benchmarks.compare $(ARGS)

# Each library in an environment of its own, since their requirements exclude one another.
.bench/%/installed: benchmarks/requirements/%.txt | $(BIN)/python
	$(BIN)/python -m venv .bench/$*
	.bench/$*/bin/python -m pip install --quiet --requirement $<
	@touch $@

clean:
	rm -rf $(VENV) .bench .demo dist

$(VENV)/%-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "cenote needs Python 3.11 or newer; say make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
