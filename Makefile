# Two commands: `make demo` shows the whole way, `make test` tests it. Everything lives in .venv and build/.
# The first Python here that the tests know; `make PYTHON=python3.13` names one.
FITS := import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
    $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
DEVICE := build/device
DEMO := build/demo

.PHONY: demo test test-runtime test-examples check constraints bench bench-gpu aarch64 everywhere clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error no Python from 3.11 to 3.13 was found; install one, or name it: make PYTHON=/path/to/python))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,heif,openvino,tensorrt-rtx,timm,transformers]' --group dev
	touch $@

demo: $(VENV)/.installed
	$(BIN)/convtrain --model lenet5 --dataset digits --out $(DEMO)/checkpoints
	$(BIN)/convexport --model lenet5 --dataset digits --checkpoint $(DEMO)/checkpoints/lenet5-digits.safetensors \
	    --fp16 --out $(DEMO)/bundles
	$(BIN)/classify --bundle $(DEMO)/bundles/lenet5-digits-fp16 --self-test
	$(BIN)/python benchmarks/images.py --dataset digits --count 10 --out $(DEMO)/images
	$(BIN)/classify $(DEMO)/images --bundle $(DEMO)/bundles/lenet5-digits-fp16
	$(BIN)/convexport --model vgg19 --fp16 --out $(DEMO)/bundles
	$(BIN)/classify --bundle $(DEMO)/bundles/vgg19-cifar10-fp16 --self-test
	$(BIN)/classify --bundle $(DEMO)/bundles/vgg19-cifar10-fp16 --info

# A file's tests stay together, since they share what is made once for the file.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# What a device installs, and no more: base and `cpu`, without torch. `make test-runtime PYTHON=python3.10`.
test-runtime:
	$(PYTHON) -m venv --clear $(DEVICE)
	$(DEVICE)/bin/python -m pip install --quiet --upgrade pip
	$(DEVICE)/bin/python -m pip install --quiet --constraint constraints.txt '.[cpu]' --group test-runtime
	$(DEVICE)/bin/python -c 'from importlib.util import find_spec; raise SystemExit("torch is there" if find_spec("torch") else 0)'
	$(DEVICE)/bin/python -m pytest tests/runtime tests/cli/test_classify.py tests/cli/test_classify_engines.py

# The programs and readers of examples/, with the libraries that they are written for.
test-examples: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group examples
	$(BIN)/python -m pytest tests/examples

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy training export runtime cli
	$(BIN)/pyright --venvpath . --pythonversion 3.10 runtime cli
	$(BIN)/pyright --venvpath . --pythonversion 3.11 training export
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

# The versions in .venv become the tested ones. An older Python than 3.11 takes the newest that fit it.
constraints: $(VENV)/.installed
	(sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | \
	    sed -E '/ @ /d; s/\+[a-z0-9.]+$$//; s/$$/ ; python_version >= "3.11"/') >constraints.new
	mv constraints.new constraints.txt

# On a machine that does nothing else. It takes lenet5-mnist, vgg19-cifar10 (int8) and efficientnet from bundles/.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/performance.py --json build/performance.json
	$(BIN)/python benchmarks/performance.py --json build/performance.json --page docs/performance.md

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py

aarch64: $(VENV)/.installed
	$(BIN)/python benchmarks/aarch64.py

everywhere: $(VENV)/.installed
	$(BIN)/python benchmarks/everywhere.py

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
