#!/bin/sh
# A second engine judges the shipped rules, and random ones: DuckDB runs each rule's query over random histories, instant by instant as
# docs/specs/detection-rule.md defines a match, over side tables and alerts that it tells from them itself, and `aegis rules test` must
# find the same alerts.
# `run.sh [--seed N] [--histories N] [--random N] [--keep FOLDER] [RULE...]`
# `run.sh flink [--seed N] [--patterns N] [--rules N] [--only NAME]`: Apache Flink judges random row patterns (flink/README.md).
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-judge\`}"
venv="${AEGIS_CACHE:-$HOME/.cache/aegis}/venv-judge"

# A copy of the pins lies beside what was installed from them, and is written last: a half-made installation is made again.
if ! cmp -s requirements.txt "$venv/requirements.installed"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$venv/requirements.installed"
fi

export PYTHONDONTWRITEBYTECODE=1
if [ "${1:-}" = flink ]; then
    shift
    exec "$venv/bin/python" flink/judge.py "$@"
fi
exec "$venv/bin/python" judge.py "$@"
