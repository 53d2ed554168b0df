# `make check` is what CI runs. It installs what it needs from pyproject.toml.
.PHONY: check lint types test unit format faults fuzz audit sbom

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

unit: # everything that needs no Megatron
	$(PYTEST) -m "not engine"

format:
	uv run --group dev ruff format .
	uv run --group dev ruff check --fix .

faults: # the whole fault suite, an hour and more; then the table of docs/reliability.md
	uv run --group dev pytest tests/faults --faults --record-faults
	uv run --group dev python -m tests.faults.table

fuzz: # a million cases for each reader of foreign bytes: an hour
	uv run --group dev python -m tests.fuzz.run --cases 1000000

audit: # known vulnerabilities of what is installed; says so when the database cannot be asked
	uv run --group dev --with pip-audit python -m tests.security.audit

sbom: # what a release consists of, as CycloneDX
	uv run --group dev --with cyclonedx-bom sh -c 'mkdir -p dist && cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.json'
