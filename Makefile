# Everything goes into a virtual environment of its own. For example:
#   make train PYTHON=python3.12 ARGS="--epochs 2"
#   make test ARGS="-k gru -x"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY = $(VENV)/bin/python
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
OTHER_CXX_FILES = $(shell find benchmarks tests/emulator -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h')
BUILD_FILES = pyproject.toml setup.py $(wildcard buildtools/*.py)

.PHONY: help train test sanitize bench build lint format clean

help:
	@echo "make train    train the default language model"
	@echo "make test     run the tests"
	@echo "make sanitize run the tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make bench    run the benchmarks"
	@echo "make build    compile what has changed of the kernels"
	@echo "make lint     check style and types"
	@echo "make format   put the style right"
	@echo "make clean    remove what was built"
	@echo "Each sets up $(VENV) first, where needed. ARGS=... are handed on; PYTHON=python3.12 chooses the Python."

train: $(VENV)/.installed $(VENV)/.built
	$(VENV)/bin/rnnext train $(ARGS)

test: $(VENV)/.installed-test $(VENV)/.built
	$(PY) -m pytest $(ARGS)

# A build of its own, which the tests find first. The sanitizers' reports go past pytest, to the terminal.
SANITIZED = kernels modules* autograd derivatives written_cells wrong_use*
sanitize: $(VENV)/.installed-test $(VENV)/.built
	CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -D_GLIBCXX_ASSERTIONS" \
	  $(PY) setup.py build --build-lib build/sanitized
	PYTHONPATH=build/sanitized RNNEXT_CACHE=build/sanitized/cells OMP_WAIT_POLICY=passive \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(VENV)/bin/pytest --capture=sys $(or $(ARGS),$(SANITIZED:%=tests/test_%.py))

bench: $(VENV)/.installed-test $(VENV)/.built
	$(PY) -m pytest benchmarks --benchmark-only $(ARGS)

build: $(VENV)/.built

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES) $(OTHER_CXX_FILES)
	$(PY) -m mypy

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(VENV)/bin/clang-format -i $(CXX_FILES) $(OTHER_CXX_FILES)

clean:
	rm -rf build dist *.egg-info rnnext/*.so rnnext/_build_info.py $(VENV)/.built
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The environment, with what a build needs: the kernels are compiled against the torch in it.
$(VENV)/.ready: pyproject.toml buildtools/checks.py
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON). Name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) buildtools/checks.py
	$(PYTHON) -m venv $(VENV)
	$(PY) buildtools/checks.py --requirements >$(VENV)/requirements.txt
	$(PY) -m pip install -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.ready $(BUILD_FILES) $(CXX_FILES)
	$(PY) setup.py build_ext --inplace
	touch $@

# .installed, or .installed-EXTRA with the dependencies of an extra.
$(VENV)/.installed: $(VENV)/.ready $(BUILD_FILES) | $(VENV)/.built
	$(PY) -m pip install --no-build-isolation -e .
	touch $@

$(VENV)/.installed-%: $(VENV)/.ready $(BUILD_FILES) | $(VENV)/.built
	$(PY) -m pip install --no-build-isolation -e '.[$*]'
	touch $@
