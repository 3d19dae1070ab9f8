#!/usr/bin/env bash
# Installs what is missing for the named purpose: `run` (SoftHSM) or `test` (also PostgreSQL, age, openssl, strace and
# cargo-deny). Idempotent; says what it does; touches nothing that is already there.
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:-run}

case $purpose in
run) softhsm/install.sh softhsm ;;
test) softhsm/install.sh softhsm postgresql age openssl strace python3 ;;
*)
  echo "usage: scripts/setup.sh run|test" >&2
  exit 2
  ;;
esac

if [ "$purpose" = test ] && ! cargo deny --version >/dev/null 2>&1; then
  # Pinned: a newer one may judge the same tree differently.
  echo "setup: cargo-deny is missing; running: cargo install cargo-deny --locked --version 0.20.2"
  cargo install --quiet cargo-deny --locked --version 0.20.2
fi
