#!/bin/sh
# Builds the faulty PKCS#11 module for tests: softhsm/build.sh OUT
set -eu

if [ $# -ne 1 ]; then
    echo "usage: softhsm/build.sh OUT" >&2
    exit 64
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
compiler=${CC:-cc}
if ! command -v "$compiler" >/dev/null 2>&1; then
    echo "build.sh: no C compiler (\`$compiler\`); install one with: softhsm/install.sh cc" >&2
    exit 69
fi
# dlopen is in libdl up to glibc 2.33, in libc from 2.34 on; -ldl is right for both.
"$compiler" -std=c11 -O1 -g -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror \
    -o "$1" "$here/faulty.c" "$here/plan.c" -pthread -ldl
