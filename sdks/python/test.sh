#!/bin/sh
# The Python SDK: style, types, the packages that are published, and every test against what was installed from them and the real program.
# AEGIS_BIN names the program. `test.sh TEST...` runs these tests alone, with pytest's options. AEGIS_SDK_MATRIX=--write takes over what was proved.
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-sdks\`}"
if [ ! -x "$AEGIS_BIN" ]; then
    echo "sdks/python: $AEGIS_BIN is not there; build it with \`cargo build --release\`" >&2
    exit 2
fi
requirements=requirements.txt
. ./venv.sh

ruff format --check --quiet .
ruff check --quiet .
mypy

rm -rf dist
python -m build --no-isolation --outdir dist . >/dev/null
twine check --strict dist/*
pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl

if [ $# -gt 0 ]; then
    exec pytest "$@"
fi
proved="$(mktemp)"
trap 'rm -f "$proved"' EXIT
AEGIS_SDK_FEATURES="$proved" pytest --numprocesses 2 --dist loadfile
python ../matrix.py "${AEGIS_SDK_MATRIX:---check}" python "$proved"
