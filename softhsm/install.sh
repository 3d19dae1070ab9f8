#!/bin/sh
# Installs what the tests and the quickstart need from the system: softhsm/install.sh [softhsm|postgresql|age|openssl|strace|cc|python3 ...]
#
# Does nothing for what is there already. Otherwise it prints the command it runs: apt-get, dnf, apk or brew, through
# sudo only when it is not root. It never adds repositories and never removes anything. Tried on Debian; the other three
# managers' names and places are theirs by their documentation, untested. Holdfast itself is built and tested on Linux only.
set -eu

# Where distributions put SoftHSM; the server and the tests read the same list.
PLACES="${0%/*}/places.txt"
# Where they put PostgreSQL's programs; the tests read the same list.
POSTGRESQL_PLACES="${0%/*}/postgresql-places.txt"
# Where Debian decides whether installing PostgreSQL also makes and starts a cluster.
CREATECLUSTER=${HOLDFAST_CREATECLUSTER:-/etc/postgresql-common/createcluster.conf}

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
        postgresql)
            if [ -n "${HOLDFAST_POSTGRES_BIN:-}" ]; then
                [ ! -e "$HOLDFAST_POSTGRES_BIN/initdb" ] || return 0
                echo "install.sh: HOLDFAST_POSTGRES_BIN names $HOLDFAST_POSTGRES_BIN, which has no initdb" >&2
                return 1
            fi
            while read -r pattern; do
                # Expanding the pattern is wanted.
                for directory in $pattern; do
                    [ ! -x "$directory/initdb" ] || [ ! -x "$directory/psql" ] || return 0
                done
            done <"$POSTGRESQL_PLACES"
            have initdb && have psql ;;
        *) have "$1" ;;
    esac
}

# The name of what we want in this manager's words.
package() {
    case $1-$2 in
        apt-get-softhsm) echo softhsm2 ;;
        apt-get-cc) echo gcc libc6-dev ;;
        dnf-postgresql) echo postgresql-server postgresql ;;
        apk-postgresql) echo postgresql postgresql-client ;;
        brew-postgresql) echo postgresql@17 ;;
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

# Debian's package makes a cluster and starts it; the tests make their own, so nothing of that is wanted. The file that
# says so comes with postgresql-common, and is put back afterwards.
apt_postgresql() {
    [ -e "$CREATECLUSTER" ] ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-common
    if grep -q '^#create_main_cluster = true$' "$CREATECLUSTER" 2>/dev/null; then
        as_root sed -i 's/^#create_main_cluster = true$/create_main_cluster = false/' "$CREATECLUSTER"
        changed_cluster=yes
    fi
}

cluster_as_before() {
    [ "$changed_cluster" = yes ] || return 0
    as_root sed -i 's/^create_main_cluster = false$/#create_main_cluster = true/' "$CREATECLUSTER"
}

changed_cluster=no
missing=""
for wanted in "${@:-softhsm}"; do
    case $wanted in
        softhsm | postgresql | age | openssl | strace | cc | python3) present "$wanted" || missing="$missing $wanted" ;;
        *) echo "usage: softhsm/install.sh [softhsm|postgresql|age|openssl|strace|cc|python3 ...]" >&2; exit 64 ;;
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
        case $missing in
            *postgresql*) apt_postgresql ;;
        esac
        status=0
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages || status=$?
        cluster_as_before
        [ "$status" -eq 0 ] || exit "$status" ;;
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
