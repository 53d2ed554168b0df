# `make check` is what CI runs. It installs what it needs from pyproject.toml.
.PHONY: check lint types test unit format

check: lint types test

lint:
	uv run --group dev ruff check .
	uv run --group dev ruff format --check .
	uv run --group dev lint-imports

types:
	uv run --group dev mypy

test:
	uv run --group dev pytest

unit: # everything that needs no Megatron: under a minute
	uv run --group dev pytest -m "not engine"

format:
	uv run --group dev ruff format .
	uv run --group dev ruff check --fix .
