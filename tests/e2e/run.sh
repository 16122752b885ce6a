#!/bin/sh
# The real program over HTTP and by its command line: `run.sh [--jobs N] [--record FOLDER] [GROUP[.WORD]]...`, all groups when none is
# named, N beside each other (as many as there are cores, and at least two); what is said over HTTP is kept in the folder.
# AEGIS_BIN names the program; AEGIS_KILLS (default 5) how often the kill test kills it, AEGIS_SEED with which random numbers.
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-e2e\`}"
if [ ! -x "$AEGIS_BIN" ]; then
    echo "e2e: $AEGIS_BIN is not there; build it with \`cargo build --release\`" >&2
    exit 2
fi

# GitHub's payloads. A copy of the pins lies beside what was installed from them, and is written last.
named=""
skip=""
for argument; do
    case "$skip$argument" in
    --jobs | --record) skip="its value: " ;;
    --jobs=* | --record=* | "its value: "*) skip="" ;;
    *) named="$named $argument" ;;
    esac
done
case "${named:- webhooks} " in
*" webhooks"*)
    cd ../webhooks
    if ! cmp -s package-lock.json node_modules/package-lock.installed; then
        npm ci --silent --no-audit --no-fund
        cp package-lock.json node_modules/package-lock.installed
    fi
    cd ../e2e
    ;;
esac

export PYTHONDONTWRITEBYTECODE=1
exec python3 run.py "$@"
