#!/bin/sh
# Builds in release mode and measures; the summary is target/bench/summary.json. Arguments go to kms-bench.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --locked -p kms-server -p kms-cli -p kms-bench
exec target/release/kms-bench "$@"
