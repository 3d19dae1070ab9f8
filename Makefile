# Two commands matter: `make quickstart` shows the main job on a fresh machine, `make test` runs all that CI runs.
.DEFAULT_GOAL := help
.PHONY: help quickstart test bench bench-scale lint docs audit setup build clean

help: ## Shows this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: ## Installs SoftHSM when missing, builds, seals, rotates, reseals and opens a real tree.
	@command -v bash >/dev/null || { echo "make: bash is needed; install it first" >&2; exit 69; }
	@scripts/quickstart.sh

test: ## Runs everything that CI runs, and prints the seconds of each stage.
	@scripts/test.sh

bench: ## Measures the server beside a bare tonic echo and the bare token (about 10 minutes).
	@scripts/bench.sh

bench-scale: ## Measures a million keys, root rollover, rotations and streams (about an hour, 8 GiB of memory and disk).
	@scripts/bench.sh scale

lint: ## Formats nothing; checks format, clippy, sizes, layering.
	@scripts/test.sh lint

docs: ## Builds the API documentation with warnings denied.
	@scripts/test.sh docs

audit: ## Checks advisories; needs the open internet.
	cargo deny check advisories

setup: ## Installs what tests need and the machine lacks: SoftHSM, PostgreSQL, age, openssl, strace, cargo-deny.
	@scripts/setup.sh test

build: ## Builds the release binaries.
	cargo build --release --locked
