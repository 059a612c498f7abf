# make demo   install, rebuild real photos from codes, show them   (IMAGES="a.jpg b.png" for yours)
# make test   install, run the tests
# make bench-quick   a few speeds beside the last ones
# make test-lmms   the real lmms-eval over small files of its nine benchmarks, in a venv of its own
# make docs   install, build the documentation: site/index.html
# CPU torch by default. For CUDA: make demo TORCH="torch==2.13.0 --index-url <address of a CUDA index>"
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
IMAGES ?=
BIN = $(VENV)/bin

LMMS_VENV ?= .venv-lmms
# Both of one index, as a CPU torch needs a CPU torchvision; some 5 GB if they are for CUDA.
LMMS_TORCH ?= torch==2.14.1 torchvision==0.29.1
# What its nine tasks import, of 155 packages that lmms-eval asks for.
LMMS_NEEDS = "filelock<4" "transformers>=5.17,<6" datasets evaluate accelerate sacrebleu loguru \
	tenacity jsonlines pytz pytablewriter tqdm pillow pyyaml pydantic python-dotenv
VIQ_GOLDEN ?= tests/golden

.PHONY: package demo test test-lmms check bench-quick audit docs clean

demo: $(VENV)/.demo
	$(BIN)/viq demo $(IMAGES) -o demo
	@echo "open demo/gallery.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# Offline. Scores are also compared with those of `viq eval vlm`.
test-lmms: $(LMMS_VENV)/.made
	$(LMMS_VENV)/bin/python scripts/lmms_eval_check.py --data $(VIQ_GOLDEN)/benchmarks/fixtures
	$(LMMS_VENV)/bin/python scripts/lmms_eval_check.py --data $(VIQ_GOLDEN)/benchmarks/fixtures \
		--processes 2 --batch-size 4

# Lint, format and types, beside the tests in continuous integration.
check: $(VENV)/.dev
	$(BIN)/lint-imports
	$(BIN)/ruff check src tests scripts bench
	$(BIN)/ruff format --check src tests scripts bench
	$(BIN)/pyright --pythonpath $(BIN)/python

# Speeds as ratios beside the last ones, in under three minutes; fails if one fell by more than 15 %.
bench-quick: $(VENV)/.dev
	PYTHONPATH=src $(BIN)/python bench/quick.py bench/last.json

# Wheel and sdist, built and tried in an environment with torch alone, which is lent.
package: $(VENV)/.dev
	$(BIN)/python scripts/try_package.py .package

# The documentation as HTML; a warning of Sphinx, a broken link, or anything from elsewhere ends it.
docs: $(VENV)/.dev
	$(BIN)/python scripts/make_docs.py site

# Known holes: in our code (bandit), in the pinned releases (pip-audit).
audit: $(VENV)/.dev
	$(BIN)/python scripts/audit.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	touch $@

$(LMMS_VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(LMMS_VENV)
	$(LMMS_VENV)/bin/python -m pip install -q $(LMMS_TORCH)
	$(LMMS_VENV)/bin/python -m pip install -q -e . $(LMMS_NEEDS)
	$(LMMS_VENV)/bin/python -m pip install -q --no-deps "lmms-eval>=0.7.3,<0.8"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,bench,vae,codec,chat,train,sentences,data,s3,gs,ray,onnx,docs,web]'
	touch $@

clean:
	rm -rf $(VENV) $(LMMS_VENV) demo site .package
