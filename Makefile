# Every target sets up what it needs in .venv; nothing else is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MEDGEN := $(BIN)/python -m lit_medgen
DEMO := --config configs/cdpm.yaml --config configs/demo/cdpm.yaml
# Two test processes with one thread each are faster on two cores than one with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: setup demo test test-all lint types bench docs docs-serve advisories

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/ready
	$(MEDGEN) phantom adni --out demo/phantoms --num_subjects 96
	$(MEDGEN) fit $(DEMO) --ckpt_path last
	$(MEDGEN) sample --ckpt_path demo/cdpm_demo/checkpoints/last.ckpt --num 4 --out demo/samples
	$(MEDGEN) evaluate --ckpt_path demo/cdpm_demo/checkpoints/last.ckpt --out demo/report
	@echo "pictures: demo/report/samples.png, demo/cdpm_demo/grids/; volumes: demo/samples/; scores: demo/report/report.md"

test: .venv/ready
	$(PYTEST) -m "not slow and not gpu"

test-all: .venv/ready
	$(PYTEST) --ignore tests/test_demo.py
	$(BIN)/python -m pytest tests/test_demo.py  # trains on all cores, so nothing runs beside it

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

docs-serve: .venv/ready
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: .venv/ready
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.matching
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.code_sampling
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.guidance_cost

# The oldest and the newest packages that pyproject.toml admits; one that the service does not know is a fault too.
advisories: .venv/ready
	$(BIN)/pip install --quiet pip-audit uv
	mkdir -p build
	for bound in lowest-direct highest; do \
		$(BIN)/uv pip compile --quiet --all-extras --generate-hashes --resolution $$bound pyproject.toml -o build/$$bound.txt && \
		$(BIN)/pip-audit --strict --disable-pip --require-hashes -r build/$$bound.txt || exit 1; \
	done
