# The only things needed are Python >= 3.11, git and make. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
WORKERS ?= 2
# TORCH_BACKEND=cpu takes the small CPU wheels of torch instead of the CUDA ones (see `uv pip install --help`).
TORCH_BACKEND ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# One thread a process: the models are small, and threads that wait for a core another process has are slower than none.
ONE_THREAD := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300

.DEFAULT_GOAL := help
.PHONY: help setup book serve test bench lint format clean pins address cells

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv and install the pinned packages

$(STAMP): requirements.txt requirements-peers.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: '$(PYTHON)' not found. Install Python >= 3.11, or name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python >= 3.11 is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: this Python has no venv or no ensurepip. Debian, Ubuntu: apt install python3-venv. Fedora: dnf install python3-pip."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.7"
ifeq ($(TORCH_BACKEND),)
	$(BIN)/uv pip install --python $(BIN)/python -r requirements.txt
else
	@# the CUDA libraries pinned on Linux belong to the default wheels only; torch names its own
	grep -vE '^(nvidia-|cuda-|triton)' requirements.txt > $(VENV)/requirements.txt
	$(BIN)/uv pip install --python $(BIN)/python --torch-backend $(TORCH_BACKEND) -r $(VENV)/requirements.txt
endif
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -r requirements-peers.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# Pages are always written afresh, because Sphinx repeats no warning about a page it skips; executed cells come
# from a cache that book/_ext/cnbook.py empties of meaning whenever the code behind them changes.
book: setup ## build the book into _build/html; fails on a warning, a failing cell or a dead link
	rm -rf _build/html _build/.doctrees
	$(ONE_THREAD) $(BIN)/jupyter-book build . -W -n --keep-going
	$(BIN)/python book/_ext/links.py _build/html

serve: ## serve the built book on http://localhost:8000 (PORT=...)
	@test -f _build/html/index.html || { echo "error: no built book; run make book first"; exit 1; }
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: setup ## run all tests, and every cell of every notebook (WORKERS=...)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(if $(NOTEBOOKS),$(NBVAL)) tests $(if $(NOTEBOOKS),notebooks)

bench: setup ## measure speed and memory against peers
	$(BIN)/python -m studies

lint: setup ## style, types, spelling, stripped notebooks; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cnlib
	$(BIN)/codespell
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --keep-id --verify $(NOTEBOOKS))

format: setup ## rewrite code in the house style and strip the notebooks
	$(BIN)/ruff check --fix --exit-zero -q .
	$(BIN)/ruff format .
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --keep-id $(NOTEBOOKS))

cells: setup ## put the current set-up cell into every notebook
	$(BIN)/python book/_ext/setup_cell.py notebooks/*.ipynb

pins: setup ## refresh requirements.txt from pyproject.toml (UPGRADE=1 takes the newest versions)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --fork-strategy fewest --all-extras $(if $(UPGRADE),--upgrade) \
	  --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.txt

address: ## write the repository's address into pyproject.toml (REPO=https://host/owner/name)
	@test -n "$(REPO)" || { echo "usage: make address REPO=https://host/owner/name"; exit 1; }
	@$(PYTHON) book/_ext/address.py "$(REPO)"

clean: ## remove what was built; the environment stays
	rm -rf _build build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
