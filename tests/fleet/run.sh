#!/bin/sh
# Faults of a fleet under load: `run.sh [short|full|GROUP[.WORD]...]`, all where nothing is named.
# AEGIS_BIN names the program; AEGIS_SEED the random numbers, AEGIS_FLEET_NATS the server (debian or current), AEGIS_FLEET_LONG_S how long a
# fault lasts that has a length (60 s), AEGIS_MAY_SKIP what a run of everything may leave out where the machine lacks something (disks).
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-fleet\`}"
if [ ! -x "$AEGIS_BIN" ]; then
    echo "fleet: $AEGIS_BIN is not there; build it with \`cargo build --release\`" >&2
    exit 2
fi

export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=../e2e
exec python3 run.py "$@"
