#!/bin/sh
# Makes a SoftHSM test token: softhsm/setup.sh DIR [LABEL]
#
# Idempotent: a directory that holds the token already is left as it is. Writes into DIR (0700):
#   softhsm2.conf   for SOFTHSM2_CONF
#   tokens/         the token; label LABEL, default `holdfast-test`
#   user.pin so.pin random PINs, 0600
# Prints the line to put into the environment. For tests and trials: the PINs lie beside the token.
set -eu
umask 077

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: softhsm/setup.sh DIR [LABEL]" >&2
    exit 64
fi
mkdir -p "$1"
dir=$(CDPATH='' cd -- "$1" && pwd)
label=${2:-holdfast-test}
# PKCS#11 keeps 32 bytes of a label and pads the rest; a longer one would be cut in silence.
if [ "${#label}" -gt 32 ]; then
    echo "setup.sh: a token label has at most 32 bytes" >&2
    exit 64
fi
chmod 700 "$dir"
mkdir -p "$dir/tokens"

SOFTHSM2_CONF="$dir/softhsm2.conf"
export SOFTHSM2_CONF
cat >"$SOFTHSM2_CONF.new" <<EOF
directories.tokendir = $dir/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
slots.mechanisms = ALL
library.reset_on_fork = false
EOF
mv "$SOFTHSM2_CONF.new" "$SOFTHSM2_CONF"

random_pin() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

for pin in user so; do
    if [ ! -s "$dir/$pin.pin" ]; then
        random_pin >"$dir/$pin.pin.new"
        mv "$dir/$pin.pin.new" "$dir/$pin.pin"
    fi
done

if ! softhsm2-util --show-slots | sed -n 's/^ *Label: *//p' | sed 's/ *$//' | grep -Fqx -- "$label"; then
    # softhsm2-util takes PINs from its arguments or asks for them on the terminal; for a test token they may be seen.
    softhsm2-util --init-token --free --label "$label" --so-pin "$(cat "$dir/so.pin")" \
        --pin "$(cat "$dir/user.pin")" >/dev/null
fi
echo "export SOFTHSM2_CONF='$SOFTHSM2_CONF'"
