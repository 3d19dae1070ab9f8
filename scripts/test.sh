#!/usr/bin/env bash
# Everything that CI runs, in stages; `scripts/test.sh STAGE...` runs only the named ones.
# Ends with the seconds of each stage and a plain result.
set -euo pipefail
cd "$(dirname "$0")/.."

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(setup lint docs deny build try test)
report=()

setup() { scripts/setup.sh test; }

lint() {
  cargo fmt --all -- --check
  cargo clippy --workspace --all-targets --locked -- -D warnings
  scripts/check-tree.sh
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items; }

deny() { cargo deny --offline --locked check bans licenses sources 2>/dev/null || cargo deny --locked check bans licenses sources; }

# Tests of one package do not build the binaries of another, so they are built first and their folder is passed on.
build() { cargo build --workspace --bins --locked; }

test() {
  HOLDFAST_BIN_DIR="$PWD/target/debug" cargo test --workspace --locked
}

# The quickstart shows what the audit log has of the whole job, from the making of its key on.
tells_all() {
  local operation audit
  audit=$(sed -n '/== 9\. /,/== 10\. /p' "$1")
  for operation in KeyService/CreateKey CryptoService/Wrap KeyService/RotateKey CryptoService/Unwrap; do
    grep -Eq "^ +[0-9]+ +$operation +[0-9]+ +OK +spiffe://" <<<"$audit" || {
      echo "the quickstart does not show $operation among its audit records" >&2
      return 1
    }
  done
}

# What a newcomer and the bench do, with the debug binaries: that it works, not how fast it is.
try() {
  export HOLDFAST_BIN_DIR="$PWD/target/debug" HOLDFAST_QUICKSTART_DIR=$PWD/target/try
  rm -rf "$HOLDFAST_QUICKSTART_DIR"
  mkdir -p "$HOLDFAST_QUICKSTART_DIR"
  for _ in 1 2; do
    scripts/quickstart.sh | tee "$HOLDFAST_QUICKSTART_DIR/said"
    tells_all "$HOLDFAST_QUICKSTART_DIR/said"
  done
  scripts/try-held.sh "$HOLDFAST_QUICKSTART_DIR/server"
  "$HOLDFAST_BIN_DIR/kms-bench" --rounds 1 --round-ms 200 --seal-mib 4 --out "$HOLDFAST_QUICKSTART_DIR/bench"
  python3 scripts/check-summary.py "$HOLDFAST_QUICKSTART_DIR/bench/summary.json"
}

# One stage in a process of its own: `set -e` is off in a function that `if` calls.
if [ "${1-}" = --only ]; then
  "$2"
  exit 0
fi

for stage in "${stages[@]}"; do
  echo "== $stage"
  start=$SECONDS
  if ! scripts/test.sh --only "$stage"; then
    echo "FAILED: stage $stage after $((SECONDS - start)) s" >&2
    exit 1
  fi
  report+=("$(printf '%-8s %5d s' "$stage" $((SECONDS - start)))")
done

echo "== seconds per stage"
printf '%s\n' "${report[@]}"
echo "OK: all stages passed (${stages[*]})"
