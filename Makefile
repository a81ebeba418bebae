# make demo   a whole market on this machine: chain, index, worker, gateway, one paid job, settled
# make test   every check and every test
# make docs   the documentation site, into build/site
# Both create .venv in the checkout on first use, are safe to run again, and quick the second time.

.PHONY: demo test check contracts unit docs reference constraints clean
.DEFAULT_GOAL := demo

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
# anvil and forge for the contracts; viem and cast for the examples of the documents.
NPM := contracts tests/integration/docs/npm
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

demo: .venv/.demo
	@$(BIN)/piecework demo $(ARGS)

test: check contracts unit

# Style, types, import directions, generated code.
check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/python -m piecework_protocol.generate --check

# Recompile, compare with the committed artifacts, unit, fuzz, invariants, gas.
contracts:
	contracts/tools/check.sh

unit: .venv/.dev $(NPM:%=%/node_modules/.package-lock.json)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --format=total | sed 's/^/coverage, per cent: /'

# The site, strictly: a broken link or anchor fails. The theme's notice on the future of mkdocs is
# known (ADR 7).
docs: reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pages in docs/reference that are written from the code.
reference: .venv/.dev
	@$(BIN)/python -P -m docs.tools.reference

%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || { echo "error: the contract tests need Node.js 20 or later with npm; install it and run make test again" >&2; exit 1; }
	cd $* && npm ci --ignore-scripts --no-audit --no-fund

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11 or later and run make again" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; install 3.11 or later, or name one: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv; install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing Piecework into .venv (the first time this takes some minutes)…"
	@$(PIP) --editable '.[demo]' || { echo "error: the installation failed; is the package index reachable?" >&2; exit 1; }
	@touch $@

.venv/.dev: .venv/.demo
	@$(PIP) --editable '.[dev]' || { echo "error: the installation of the development tools failed" >&2; exit 1; }
	@touch $@

constraints: .venv/.dev
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis contracts/out contracts/cache build/site $(NPM:%=%/node_modules)
