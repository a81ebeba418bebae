# make demo   a whole market on this machine: chain, index, worker, gateway, one paid job, settled
# make test   every check and every test
# make deep   what takes longer: mutants, proofs, 10,000 runs of every invariant, 300 kills, and a
#             death or a full disk at every write of a worker
# make kills  N random kills of five processes and exact books (N=60)
# make agents other people's clients against the gateway, in environments of their own
# make quick  style, types, import directions and the pure tests: some two minutes
# make docs   the documentation site, into build/site
# All create .venv in the checkout on first use, are safe to run again, and quick the second time.

.PHONY: demo test quick deep kills check contracts unit mutants halmos agents docs reference wheel wheel-test \
  constraints lock clean
.DEFAULT_GOAL := demo

# Bytecode is kept, whatever the environment says. Otherwise each worker of pytest compiles every
# module and rewrites the assertions of every test again, and so does each child process.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
# anvil and forge for the contracts; viem and cast for the examples of the documents; axe-core for
# the pages.
NPM := contracts tests/integration/docs/npm tests/support/npm
# The networks' schemas of manifests, one file of a package each. A test knows their SHA-256.
SDL := build/schemas/akash-sdl.yaml
AKASH := @akashnetwork/chain-sdk@1.0.0-alpha.25
PAYLOAD := build/schemas/golem-manifest.json
GOLEM := @golem-sdk/cli@2.11.0
PIP := $(BIN)/python -P -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

demo: .venv/.demo
	@$(BIN)/piecework demo $(ARGS)

test: check contracts unit

# What needs no process, no chain and no model. Two pytest workers; mypy and ruff keep caches.
PURE := $(wildcard tests/conformance tests/repo tests/property/base tests/property/client \
	tests/property/protocol tests/property/node tests/sim/node tests/unit/base tests/unit/chain \
	tests/unit/client tests/unit/demo tests/unit/market tests/unit/node tests/unit/protocol)

quick: check
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not process and not slow and not model" $(PURE) $(ARGS)

# Style, types, import directions, generated code, and the tests and properties of the contracts.
check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/python -P -m piecework_protocol.generate --check
	contracts/tools/check_properties.py

# Recompile, compare with the committed artifacts, unit, fuzz, invariants, gas. 64 sequences of each
# invariant, with CONTRACTS=ci 1,000, as .ci/run does.
CONTRACTS ?= default
contracts:
	contracts/tools/check.sh $(CONTRACTS)

unit: .venv/.dev $(NPM:%=%/node_modules/.package-lock.json) $(SDL) $(PAYLOAD)
	@command -v chromium >/dev/null || { echo "error: the tests need the program chromium; install it and run make test again" >&2; exit 1; }
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist worksteal $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

# What takes too long for every change. Run it before a release, and log it in docs/LOG.md.
deep: mutants halmos
	contracts/tools/check.sh deep
	WRITE_STRIDE=1 $(BIN)/pytest -q tests/integration/chain/test_every_write_of_a_worker.py
	$(MAKE) kills N=300

# kill -9 of worker, gateway, customer, index and the way to the chain; then the books. `make test`
# has sixty. A release has N=10000, and docs/LOG.md says so.
N ?= 60
kills: .venv/.dev
	$(BIN)/python -P -m tests.kills.storm --kills $(N)

# Proofs of escrow and disputes over arbitrary storage, in an environment of their own. Five minutes.
# With PROOFS=--short two, as .ci/run does.
PROOFS ?=
halmos: build/halmos/.done contracts/node_modules/.package-lock.json
	build/halmos/bin/python -P contracts/tools/halmos.py $(PROOFS)

build/halmos/.done: requirements/halmos.lock .venv/bin/python
	$(PYTHON) -P -m venv build/halmos
	build/halmos/bin/python -P -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/halmos.lock
	@touch $@

# Other people's clients, unmodified, against the gateway. Each lock is an environment of its own.
# ARGS names some of them: make agents ARGS="langchain aider_chat".
AGENTS := newer older aider
AI_SDK := tests/agents/clients/ai_sdk
agents: .venv/.dev $(AGENTS:%=build/agents/%/.done) $(AI_SDK)/node_modules/.package-lock.json
	$(BIN)/python -P -m tests.agents.run $(ARGS)

build/agents/%/.done: requirements/agents-%.lock .venv/bin/python
	$(PYTHON) -P -m venv build/agents/$*
	build/agents/$*/bin/python -P -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Whether the tests notice: the modules that decide about money (mutmut), then the contracts (forge).
mutants: .venv/.dev contracts/node_modules/.package-lock.json
	@$(PIP) --editable '.[mutants]'
	-$(BIN)/python -P -m tests.mutants.python
	$(BIN)/python -P -m tests.mutants.solidity $(ARGS)

# The site, strictly: a broken link or anchor fails. The theme's notice on the future of mkdocs is
# known (ADR 9).
docs: reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pages in docs/reference that are written from the code.
reference: .venv/.dev
	@$(BIN)/python -P -m docs.tools.reference

$(SDL):
	$(call schema,$(AKASH),akashnetwork-chain-sdk-*.tgz,dist/sdl-schema.yaml)

$(PAYLOAD):
	$(call schema,$(GOLEM),golem-sdk-cli-*.tgz,dist/manifest/computation-payload-manifest.schema.json)

define schema
@mkdir -p $(@D)
cd $(@D) && npm pack --silent $(1) && tar -xzOf $(2) package/$(3) > $(@F).new
@rm $(@D)/$(2) && mv $@.new $@
endef

%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || { echo "error: the tests need Node.js 20 or later with npm; install it and run make test again" >&2; exit 1; }
	cd $* && npm ci --ignore-scripts --no-audit --no-fund

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11 or later and run make again" >&2; exit 1; }
	@$(PYTHON) -I -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13 (coincurve has no build for 3.14 yet); install one of them, or name it: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -I -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv; install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -P -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing Piecework into .venv (the first time this takes some minutes)…"
	@$(PIP) --editable '.[demo]' || { echo "error: the installation failed; is the package index reachable?" >&2; exit 1; }
	@touch $@

.venv/.dev: .venv/.demo
	@$(PIP) --editable '.[dev]' || { echo "error: the installation of the development tools failed" >&2; exit 1; }
	@touch $@

# The source archive, and the wheel that is built from it.
wheel: .venv/.dev
	rm -rf dist
	$(BIN)/python -P -m build --outdir dist

# The wheel in empty virtual environments: a client, the locks with their hashes, the whole demo.
wheel-test: .venv/.dev
	$(BIN)/pytest --verbose tests/wheel/wheel_checks.py

constraints: .venv/.dev
	@{ head -1 constraints.txt; $(BIN)/python -P -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

# The hashes of every file that may be installed, for the versions of constraints.txt.
lock: .venv/.dev
	$(BIN)/python -P requirements/lock.py

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis contracts/out contracts/cache build/site $(NPM:%=%/node_modules)
