# Each command makes the environment it needs in .venv; a machine with Python 3.11, pip and make is enough.
PYTHON ?= python3.11
BIN := .venv/bin
RUN := RAY_USAGE_STATS_ENABLED=0 $(BIN)

# Two workers on two cores: threads that spin while they wait would take the other one's. Each file runs in one worker.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: check demo test soak pythons lint format clean chromium
demo: .venv/demo
	$(RUN)/python -m da2ray.commands.demo

# While working: lint, types, and every test without Ray or a server, in three minutes on two cores.
check: lint
	$(PYTEST) -m "not (soak or ray or server or slow)"

test: .venv/test
	$(PYTEST) -m "not soak" --durations 20

# For the one test that opens a report in a real browser, which is skipped without. Debian's, as root.
chromium:
	command -v chromium || (apt-get update && apt-get install -y --no-install-recommends chromium)

soak: .venv/test
	$(RUN)/python -m tests.faults --kills 200

# The demo and a smoke test on each Python from 3.11 to 3.13 that the machine has, with the newest packages instead of the pinned
# ones. Not part of CI: on Linux the newest torch is a CUDA build of 5 GB for each Python. TORCH=torch==2.13.0 installs another one.
pythons:
	$(PYTHON) tests/pythons.py --torch '$(TORCH)'

TORCH ?= torch

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and by itself: with it there, nothing else pulls in a build with gigabytes of CUDA libraries. pip would compile
# 20,000 files to bytecode, a minute on one core; Python compiles those that it imports.
.venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS_$*)]'
	touch $@

EXTRAS_demo := demo
EXTRAS_test := demo,test,lint

clean:
	rm -rf .venv demo scratch
