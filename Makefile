# Everything sets itself up: the first call makes .venv with the tested versions, later ones reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
BENCH := .venv/.ready-bench
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all check format docs bench page clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # on all cores; pip takes one
	touch $(READY)

$(BENCH): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $(BENCH)

demo: $(READY)      ## reconstruct two real clips through the embedded model
	$(BIN)/python examples/demo.py

test: $(READY)      ## the tests, without the slow ones
	$(PYTEST)

test-all: $(READY)  ## every test
	$(PYTEST) -m ''

check: $(READY)     ## lint, format, types, which way imports point
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)    ## format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)      ## the site, into site/; a broken link ends it
	$(BIN)/zensical build --strict --clean

bench: $(BENCH)     ## ours and its peers, in turn: make bench ARGS=--full
	$(BIN)/python -m benchmarks $(ARGS)

page: $(READY)      ## the page of `temporal-vae serve`, also a static site; needs Node
	$(BIN)/python page/build.py $(ARGS)

clean:
	rm -rf .venv demo-output site .cache
