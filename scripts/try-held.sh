#!/usr/bin/env bash
# Checks that the quickstart leaves the directory of a running server alone, and says what to do: scripts/try-held.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$1
rm -f "$dir/ready.json"
"$HOLDFAST_BIN_DIR/kms-server" dev --dir "$dir" --listen 127.0.0.1:0 >/dev/null 2>&1 &
server=$!
trap 'kill -TERM "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  [ ! -e "$dir/ready.json" ] || break
  sleep 0.1
done
before=$(cat "$dir/ready.json")
if said=$(scripts/quickstart.sh 2>&1); then
  echo "try-held: the quickstart succeeded beside a running server" >&2
  exit 1
fi
case $said in
*"stop that server"*) ;;
*)
  echo "try-held: the quickstart does not say what to do:" >&2
  printf '%s\n' "$said" >&2
  exit 1
  ;;
esac
[ "$(cat "$dir/ready.json")" = "$before" ] || { echo "try-held: ready.json was touched" >&2; exit 1; }
echo "try-held: a running server is left alone"
