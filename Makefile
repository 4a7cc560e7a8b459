# Two commands: `make demo` shows the whole way, `make test` tests it. Everything lives in .venv and build/.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo

.PHONY: demo test check bench aarch64 clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,tensorrt-rtx]' --group dev
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

test: $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy training export runtime cli
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py

aarch64: $(VENV)/.installed
	$(BIN)/python benchmarks/aarch64.py

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
