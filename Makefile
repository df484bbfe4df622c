# make demo       search Python's documentation; QUERY="..." asks your own question
# make app        run the sample application at http://127.0.0.1:8000
# make test       run the tests, on CENOTE_TEST_DATABASE_URL, a container or an embedded Postgres
# make browser    test the sample application in a headless browser (installs it on Debian)
# make pgbouncer  test the store behind PgBouncer (installs it on Debian)
# make attack     attack tenants, memory, the event loop and writes for ten times as long, and print a table
# make torture    run the fault, load and fuzz tests for twenty times as long
# make check   formatting, lint, import order, types, spelling, prose
# make build      build the wheel and the sdist in dist/
# make docs       build the manual in site/
# make lowest     run the tests with the oldest versions that pyproject.toml allows
# make sbom       write a CycloneDX bill of materials of cenote and its extras to dist/
# make audit      check cenote and its extras for known vulnerabilities
# make benchmark  compare cenote with hand-written SQL and three libraries (benchmarks/README.md)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo)

# Tests run in parallel only if each process starts its own server: they create roles, which belong
# to the whole server.
PARALLEL = $(if $(CENOTE_TEST_DATABASE_URL),,--numprocesses logical --maxprocesses 4 --dist worksteal)

.PHONY: demo app test attack torture lowest browser pgbouncer check build docs sbom audit benchmark clean

PROSE = README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md benchmarks docs cenote examples

PEERS = langchain llama vecs

demo: $(VENV)/demo-installed
	$(BIN)/python -m examples.stdlib_search $(if $(QUERY),--query "$$QUERY") $(ARGS)

app: $(VENV)/app-installed
	$(BIN)/python -m examples.document_search $(ARGS)

test: $(VENV)/dev-installed
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

attack: $(VENV)/dev-installed
	CENOTE_TORTURE=10 $(BIN)/python -m pytest $(PARALLEL) tests/attack tests/faults/test_killed_changes.py tests/faults/test_interrupted_loads.py tests/stores/test_filter_cost.py tests/stores/test_stalls.py tests/fuzz/test_fuzz_full_text.py $(ARGS)

torture: $(VENV)/dev-installed
	CENOTE_TORTURE=20 $(BIN)/python -m pytest tests/faults/test_faults.py tests/faults/test_load.py tests/faults/test_threads.py tests/faults/test_interrupted_loads.py tests/faults/test_killed_changes.py tests/fuzz/test_fuzz.py tests/fuzz/test_fuzz_adapters.py tests/fuzz/test_fuzz_full_text.py tests/stores/test_filter_cost.py $(ARGS)

browser: $(VENV)/dev-installed
	@command -v chromium && command -v chromedriver || $(AS_ROOT) apt-get install -y -q \
	    --no-install-recommends chromium chromium-driver || \
	    { echo "install chromium and chromedriver, then run make browser again"; exit 1; }
	$(BIN)/python -m pytest tests/browser $(ARGS)

pgbouncer: $(VENV)/dev-installed
	@PATH="$$PATH:/usr/sbin" command -v pgbouncer || $(AS_ROOT) apt-get install -y -q \
	    --no-install-recommends pgbouncer || \
	    { echo "install pgbouncer, then run make pgbouncer again"; exit 1; }
	$(BIN)/python -m pytest tests/pgbouncer $(ARGS)

check: $(VENV)/dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/codespell $(PROSE) alembic
	$(BIN)/python docs/lint_prose.py $(PROSE) tests

build: $(VENV)/dev-installed
	$(BIN)/python -m build

docs: $(VENV)/docs-installed
	$(BIN)/zensical build --clean --strict

lowest: .lowest/installed
	.lowest/bin/python -m pytest $(PARALLEL) $(ARGS)

.lowest/installed: pyproject.toml
	$(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet uv
	.lowest/bin/python -m uv pip install --quiet --python .lowest/bin/python \
	    --resolution lowest-direct --editable ".[dev]"
	@touch $@

sbom: .release/installed
	mkdir -p dist
	.release/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
	    --output-reproducible --output-file dist/cenote.cdx.json .release/runtime/bin/python

# With --strict, a package that cannot be looked up is an error.
audit: .release/installed
	.release/runtime/bin/python -m pip freeze --exclude-editable > .release/requirements.txt
	.release/tools/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
	    --requirement .release/requirements.txt

.release/installed: pyproject.toml
	$(PYTHON) -m venv .release/runtime
	.release/runtime/bin/python -m pip install --quiet --editable \
	    ".[bm25,haystack,langchain,llama-index,opentelemetry,plot]"
	$(PYTHON) -m venv .release/tools
	.release/tools/bin/python -m pip install --quiet cyclonedx-bom pip-audit
	@touch $@

benchmark: $(VENV)/benchmark-installed $(PEERS:%=.bench/%/installed)
	$(BIN)/python -m benchmarks.compare $(ARGS)

# Each library has its own environment, because their requirements conflict.
.bench/%/installed: benchmarks/requirements/%.txt | $(BIN)/python
	$(BIN)/python -m venv .bench/$*
	.bench/$*/bin/python -m pip install --quiet --requirement $<
	@touch $@

clean:
	rm -rf $(VENV) .bench .cache .demo .lowest .release dist site

$(VENV)/%-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "cenote needs Python 3.11 or newer: run make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
