# make demo    the whole pipeline on a simulated market, then the feed page (SERVE=0: stop after the table)
# make test    lint, types, import contracts and tests
# make lint    ruff, mypy and import-linter alone
# make bench   a standard set of benchmarks, into bench.json and docs/benchmarks.md; BENCH=NAME ARGS="…" runs one,
#              ARGS=list=1 lists them all, ARGS="only=NAME,NAME threads=1 minutes=30" bounds the set,
#              ARGS=tiny=1 only tries that all of it runs
# make peers   other people's systems for the benchmarks, in an environment of their own (.venv-peers)
# make pin     resolve requirements/*.in again
# make clean   remove the environment, caches and ./demo-run
#
# ARGS="key=value …" goes to the demo, to pytest or to the benchmarks. The first run fills .venv; later
# runs install only what has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SERVE ?= 1
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Spark is tested where Java is, the feed page where Chromium is.
EXTRAS := $(if $(shell command -v java),requirements/spark.txt) \
  $(if $(shell command -v chromium || command -v chromium-browser || command -v google-chrome),requirements/browser.txt)

# $(call timed,NAME,COMMAND): run it, then say how long it took.
timed = @start=$$(date +%s); echo "== $(1)"; $(2) && echo "== $(1): $$(( $$(date +%s) - start )) s"

.PHONY: demo test lint ruff types contracts pytest bench peers pin clean
.DEFAULT_GOAL := help
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: .venv/.installed
	$(BIN)/shopreel demo serve=$(if $(filter 0 no false,$(SERVE)),false,true) $(ARGS)

test: lint pytest

lint: ruff types contracts

ruff: .venv/.installed-dev
	$(call timed,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: .venv/.installed-dev
	$(call timed,types,$(BIN)/mypy)

contracts: .venv/.installed-dev
	$(call timed,import contracts,$(BIN)/lint-imports)

pytest: .venv/.installed-dev
	$(call timed,tests,$(BIN)/python -m pytest --durations=10 $(ARGS))

bench: .venv/.installed-bench
ifdef BENCH
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)
else
	$(BIN)/python benchmarks/suite.py $(ARGS)
endif

.venv/.installed: requirements/cpu.txt requirements/fbgemm-gpu-cpu/pyproject.toml setup.cfg pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "shopreel needs Python 3.11, and '$(PYTHON)' is not it: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(call timed,install,$(PIP) install -r requirements/cpu.txt && $(PIP) install --no-deps -e .)
	@touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.txt $(EXTRAS)
	$(call timed,install for tests,$(PIP) install -r requirements/dev.txt $(addprefix -r ,$(EXTRAS)))
	@touch $@

.venv/.installed-bench: .venv/.installed-dev benchmarks/requirements.txt
	$(call timed,install for benchmarks,$(PIP) install -r benchmarks/requirements.txt)
	@touch $@

peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers.txt
	@test -x .venv-peers/bin/python || "$(PYTHON)" -m venv .venv-peers
	$(call timed,install of peers,.venv-peers/bin/python -m pip --disable-pip-version-check install --no-deps -r $<)
	@touch $@

pin:
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python requirements/pin.py $(ARGS)

clean:
	rm -rf .venv .venv-peers build demo-run .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	rm -rf ./*.egg-info requirements/*/build requirements/*/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
