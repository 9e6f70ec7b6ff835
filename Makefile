# make demo   one request becomes one video, on this machine
# make test   all tests, a file to a core at a time; make check: lint, format, types, import rules; CI runs both
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a cat walks on the beach at sunset

.PHONY: demo fuzz test check bench docs golden format clean setup

setup: .venv/installed

# torch first, by pip: one large download. The rest by uv, which resolves in seconds what pip takes minutes for.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[engine,local,test]'
	touch $@

demo: setup
	$(BIN)/python -m functions.demo "$(PROMPT)"

test: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Some 20,000 generated requests against a real submit, minutes long; a small slice of it is among the tests.
fuzz: setup
	$(BIN)/python -m tests.fuzz

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/python -m docs.generate --check

bench: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench $(ONLY)

docs: setup
	$(BIN)/python -m docs.generate

golden: setup
	$(BIN)/python -m tests.golden_write

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cinevent .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
