#!/bin/sh
# Installs what the tests and the quickstart need from the system: softhsm/install.sh [softhsm|age|openssl|strace|cc|python3 ...]
#
# Does nothing for what is there already. Otherwise it prints the command it runs: apt-get, dnf, apk or brew, through
# sudo only when it is not root. It never adds repositories and never removes anything. Tried on Debian; the other three
# managers' names and places are theirs by their documentation, untested. Holdfast itself is built and tested on Linux only.
set -eu

# Where distributions put SoftHSM; the server and the tests read the same list.
PLACES="${0%/*}/places.txt"

have() { command -v "$1" >/dev/null 2>&1; }

present() {
    case $1 in
        softhsm)
            have softhsm2-util || return 1
            if [ -n "${HOLDFAST_PKCS11_MODULE:-}" ]; then
                [ -e "$HOLDFAST_PKCS11_MODULE" ] && return 0
                echo "install.sh: HOLDFAST_PKCS11_MODULE names $HOLDFAST_PKCS11_MODULE, which is not there" >&2
                return 1
            fi
            while read -r library; do
                [ ! -e "$library" ] || return 0
            done <"$PLACES"
            return 1 ;;
        *) have "$1" ;;
    esac
}

# The name of what we want in this manager's words.
package() {
    case $1-$2 in
        apt-get-softhsm) echo softhsm2 ;;
        apt-get-cc) echo gcc libc6-dev ;;
        dnf-cc) echo gcc glibc-devel ;;
        apk-cc) echo gcc musl-dev ;;
        brew-cc | brew-strace) echo "" ;;
        *) echo "$2" ;;
    esac
}

run() {
    echo "+ $*" >&2
    "$@"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        run "$@"
    elif have sudo; then
        run sudo "$@"
    else
        echo "install.sh: this needs root and there is no sudo; run as root: $*" >&2
        exit 77
    fi
}

missing=""
for wanted in "${@:-softhsm}"; do
    case $wanted in
        softhsm | age | openssl | strace | cc | python3) present "$wanted" || missing="$missing $wanted" ;;
        *) echo "usage: softhsm/install.sh [softhsm|age|openssl|strace|cc|python3 ...]" >&2; exit 64 ;;
    esac
done
[ -n "$missing" ] || exit 0

manager=""
for candidate in apt-get dnf apk brew; do
    if have "$candidate"; then
        manager=$candidate
        break
    fi
done
if [ -z "$manager" ]; then
    echo "install.sh: no apt-get, dnf, apk or brew here; install by hand:$missing" >&2
    exit 69
fi

packages=""
for wanted in $missing; do
    name=$(package "$manager" "$wanted")
    if [ -z "$name" ]; then
        echo "install.sh: $manager does not offer \`$wanted\`; install it by hand" >&2
        exit 69
    fi
    packages="$packages $name"
done

# Word splitting is wanted: one word a package.
# shellcheck disable=SC2086
case $manager in
    apt-get)
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages ;;
    dnf) as_root dnf install -y $packages ;;
    apk) as_root apk add $packages ;;
    brew) run brew install $packages ;;
esac

for wanted in $missing; do
    if ! present "$wanted"; then
        echo "install.sh: $manager has finished, but \`$wanted\` is still not found" >&2
        exit 70
    fi
done
