#!/usr/bin/env bash
# The main job on real input: a directory sealed under a key in a PKCS#11 token, the key rolled over, the backup
# re-sealed without touching its payload, and opened again byte for byte. Safe to run again; leaves nothing running.
#
# HOLDFAST_BIN_DIR names binaries that are built already; HOLDFAST_QUICKSTART_DIR where to work instead of target/quickstart;
# HOLDFAST_PKCS11_MODULE the SoftHSM module, where it is not found by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '   $ %s\n' "$*"; }
fail() {
  printf '\nFAILED: %s\n' "$*" >&2
  [ -z "${server_log-}" ] || { echo "last lines of the server's log ($server_log):" >&2; tail -n 20 "$server_log" >&2; }
  exit 1
}

say "1. What is needed: SoftHSM (the PKCS#11 token), and a build"
scripts/setup.sh run
bin=${HOLDFAST_BIN_DIR:-$PWD/target/release}
[ -n "${HOLDFAST_BIN_DIR:-}" ] || cargo build --release --locked --bins

work=${HOLDFAST_QUICKSTART_DIR:-$PWD/target/quickstart}
dir=$work/server
mkdir -p "$work"
server_log=$work/server.log
started=$SECONDS

say "2. A dev server on free ports, everything in $dir"
options=(--dir "$dir" --listen 127.0.0.1:0)
[ -z "${HOLDFAST_PKCS11_MODULE:-}" ] || options+=(--module "$HOLDFAST_PKCS11_MODULE")
show "kms-server dev ${options[*]} &"
"$bin/kms-server" dev "${options[@]}" >"$work/server.out" 2>"$server_log" &
server=$!
stop() {
  kill -TERM "$server" 2>/dev/null || return 0
  wait "$server" 2>/dev/null || true
}
trap stop EXIT
# Another server's file must not be taken for ours, nor be deleted.
ready() { grep -q "\"pid\":$server[,}]" "$dir/ready.json" 2>/dev/null; }
for _ in $(seq 300); do
  ! ready || break
  if ! kill -0 "$server" 2>/dev/null; then
    status=0
    wait "$server" || status=$?
    # The exit statuses are those of \`kms-server --help\`.
    case $status in
    77) fail "another server holds $dir: stop that server, then run again; its keys are in use, delete nothing" ;;
    65) fail "the database in $dir is not the one its audit log has last seen; remove $dir and run again" ;;
    74) fail "the database or the audit log in $dir cannot be opened; if an earlier build made them, remove $dir and run again" ;;
    *) fail "the server stopped before it was ready, with exit status $status" ;;
    esac
  fi
  sleep 0.1
done
ready || fail "the server was not ready within 30 s"
cat "$work/server.out"

export KMS_CONFIG=$dir/cli.toml
kms() {
  # On one line, as a person would type it.
  printf '   $ kms %s\n' "$*" >&2
  "$bin/kms" "$@"
}
key=backup-$(date +%s)

say "3. A key that lives in the token"
kms key create "$key" --owner quickstart --sensitivity medium --usage "seals the quickstart backup" --cryptoperiod 365d

say "4. Seal a real tree under it"
tree=/usr/share/doc
size() { wc -c <"$work/tree.tar" | tr -d ' '; }
rm -f "$work/tree.tar"
mib=$(du -sm "$tree" 2>/dev/null | cut -f1) || true
if [ "${mib:-0}" -ge 20 ] && [ "${mib:-0}" -le 2000 ]; then
  # What cannot be read is left out; what is in the stream is what is compared.
  tar -C /usr/share -cf "$work/tree.tar" doc 2>/dev/null || true
fi
if [ ! -e "$work/tree.tar" ] || [ "$(size)" -lt 20000000 ]; then
  # Documentation is often left out of small images: then this repository, and as many of the sources that it is built
  # from as it takes.
  tree="this repository and sources of its crates"
  tar -cf "$work/tree.tar" --exclude=./target --exclude=./.git .
  for crate in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/*/; do
    [ "$(size)" -lt 22000000 ] || break
    [ ! -d "$crate" ] || tar -C "$(dirname "$crate")" -rf "$work/tree.tar" "$(basename "$crate")"
  done
fi
bytes=$(size)
[ "$bytes" -ge 20000000 ] || fail "found no tree of 20 MB to seal ($tree has $bytes bytes)"
before=$(sha256sum "$work/tree.tar" | cut -d' ' -f1)
rm -f "$work/tree.tar.age" "$work/tree.out.tar"
kms seal --key "$key" --in "$work/tree.tar" --out "$work/tree.tar.age"
echo "   $tree: $bytes bytes as tar, sha256 $before"
payload() { tail -c "$((bytes < 16000000 ? bytes : 16000000))" "$work/tree.tar.age" | sha256sum | cut -d' ' -f1; }
payload_before=$(payload)
printf 'a secret wrapped before the rotation' >"$work/secret"
kms wrap --key "$key" --in "$work/secret" --out "$work/secret.wrapped" --force

say "5. Roll the key over"
kms key rotate "$key" --reason "quickstart"

say "6. Re-seal: only the header is rewritten"
kms reseal "$work/tree.tar.age"
[ "$(payload)" = "$payload_before" ] || fail "reseal touched the payload"
echo "   the payload is untouched"

say "7. Open it again, and compare"
kms open --in "$work/tree.tar.age" --out "$work/tree.out.tar"
after=$(sha256sum "$work/tree.out.tar" | cut -d' ' -f1)
[ "$before" = "$after" ] || fail "the opened backup differs: $after"
echo "   sha256 $after: the same, byte for byte"

say "8. The old version still opens what it wrapped"
kms unwrap --key "$key" --in "$work/secret.wrapped" --out "$work/secret.out" --force
cmp -s "$work/secret" "$work/secret.out" || fail "the old version did not open its secret"
kms key versions "$key"

say "9. What the audit log says of it"
echo "   (of this key; one JSON line each in $dir/audit; shown: number, operation, key version, result, principal)"
cat "$dir"/audit/*.jsonl | awk -v resource="/keys/$key\"" -v most=24 '
  function text(name) {
    return match($0, "\"" name "\":\"[^\"]*\"") ? substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : "-"
  }
  function number(name) {
    return match($0, "\"" name "\":[0-9]+") ? substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) : "-"
  }
  index($0, resource) && ++records <= most {
    operation = text("operation")
    sub(/^kms\.v1\./, "", operation)
    printf "   %4s  %-26s  %-2s  %-8s  %s\n", number("seq"), operation, number("key_version"), text("result"), text("principal")
  }
  END { if (records > most) printf "   and %d more\n", records - most }'

say "10. Stop"
stop
trap - EXIT
rm -f "$work/tree.tar" "$work/tree.out.tar"

cat <<TXT

OK: sealed, rotated, resealed, opened and compared $bytes bytes in $((SECONDS - started)) s.

How to go on:
  $bin/kms-server dev --dir $dir      start the same server again, with the same keys
  export KMS_CONFIG=$dir/cli.toml
  $bin/kms key list                       the keys it holds
  docs/operations.md                                how to run it for real
TXT
