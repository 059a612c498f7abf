# make demo   install, rebuild real photos from codes, show them   (IMAGES="a.jpg b.png" for yours)
# make test   install, run the tests
# CPU torch by default. For CUDA: make demo TORCH="torch==2.13.0 --index-url <address of a CUDA index>"
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
IMAGES ?=
BIN = $(VENV)/bin

.PHONY: demo test check audit clean

demo: $(VENV)/.demo
	$(BIN)/viq demo $(IMAGES) -o demo
	@echo "open demo/gallery.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# Lint, format and types, beside the tests in continuous integration.
check: $(VENV)/.dev
	$(BIN)/lint-imports
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/pyright --pythonpath $(BIN)/python

# Known holes: in our code (bandit), in the pinned releases (pip-audit).
audit: $(VENV)/.dev
	$(BIN)/python scripts/audit.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,demo,bench,vae,codec,train,data,ray]'
	touch $@

clean:
	rm -rf $(VENV) demo
