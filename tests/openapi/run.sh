#!/bin/sh
# docs/openapi.yaml against the routes of the source, docs/api.md and real answers of the real program, which AEGIS_BIN names; and the schema of
# a rule's header against the program's own reading. `run.sh [FOLDER]`: the answers are those that `tests/e2e/run.sh --record FOLDER` kept; without
# it, the end-to-end tests run.
set -eu

kept="${1:+$(cd "$1" && pwd)}"
cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-openapi\`}"
venv="${AEGIS_CACHE:-$HOME/.cache/aegis}/venv-openapi"

# A copy of the pins lies beside what was installed from them, and is written last: a half-made installation is made again.
if ! cmp -s requirements.txt "$venv/requirements.installed"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$venv/requirements.installed"
fi

export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" run.py ${kept:+"$kept"}
