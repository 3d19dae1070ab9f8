#!/usr/bin/env bash
# What no compiler checks: file sizes, and that arrows between layers point down only.
set -euo pipefail
cd "$(dirname "$0")/.."

fail=0
complain() {
  echo "check-tree: $1" >&2
  fail=1
}

max_lines=600
while read -r lines file; do
  [ "$file" = total ] || [ "$lines" -le "$max_lines" ] || complain "$file has $lines lines, $max_lines is the limit: split it by what it does"
done < <(git ls-files -z '*.rs' '*.c' '*.h' | xargs -0 wc -l)

# forbid WHERE PATTERN WHY [BUT]: no tracked Rust file below WHERE may match PATTERN.
forbid() {
  local hits
  hits=$(git grep -nE "$2" -- "$1" ${4+"$4"} | grep -vE '^[^:]+:[0-9]+:\s*//' || true)
  [ -z "$hits" ] || complain "$3:"$'\n'"$hits"
}

server_below_transport=(authn authz service keyring store audit config)
for layer in "${server_below_transport[@]}"; do
  forbid "kms-server/src/$layer/*.rs" '\b(tonic|axum|hyper)::' "only transport and admin may name tonic, axum or hyper"
done
for layer in transport authn authz service keyring audit admin config; do
  forbid "kms-server/src/$layer/*.rs" '\brusqlite::' "only store may name rusqlite"
done
for place in kms-server/src kms-cli/src kms-hsm/src kms-core/src kms-bench/src; do
  forbid "$place/*.rs" '\b(tokio_postgres|deadpool_postgres|tokio_postgres_rustls)::' "only store may name a driver of PostgreSQL" ':!kms-server/src/store'
done
for layer in authz service keyring store audit; do
  forbid "kms-server/src/$layer/*.rs" '\bcrate::transport\b' "arrows point down: nothing below transport names it"
done
for layer in keyring store audit; do
  forbid "kms-server/src/$layer/*.rs" '\bcrate::service\b' "arrows point down: nothing below service names it"
done
for layer in store audit; do
  forbid "kms-server/src/$layer/*.rs" '\bcrate::keyring\b' "arrows point down: store and audit know no keyring"
done
forbid 'kms-core/src/*.rs' '\b(tokio|tonic|cryptoki|rusqlite|tokio_postgres|deadpool_postgres)::' "kms-core does no I/O"
forbid 'kms-server/src/*.rs' '\bcryptoki::' "only kms-hsm may name cryptoki"
forbid 'kms-cli/src/*.rs' '\bcryptoki::' "only kms-hsm may name cryptoki"

if [ "$fail" -eq 0 ]; then echo "check-tree: sizes and layers are fine"; fi
exit "$fail"
