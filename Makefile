# `make check` is what CI runs. It installs what it needs from pyproject.toml.
.PHONY: check lint types test unit format

check: lint types test

lint:
	uv run --group dev ruff check .
	uv run --group dev ruff format --check .
	uv run --group dev lint-imports

types:
	uv run --group dev mypy

PYTEST = uv run --group dev pytest -n logical --dist loadgroup --no-loadscope-reorder

test:
	$(PYTEST)

unit: # everything that needs no Megatron: under a minute
	$(PYTEST) -m "not engine"

format:
	uv run --group dev ruff format .
	uv run --group dev ruff check --fix .
