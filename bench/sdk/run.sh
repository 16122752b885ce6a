#!/bin/sh
# What each SDK adds to a bare call of the real program, and its canonical form against an RFC 8785 package. Prints tables and writes
# bench/out/sdk-LANGUAGE.json. AEGIS_BIN names the program; the environments are those that sdks/LANGUAGE/test.sh makes.
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make bench-sdks\`}"
python="${AEGIS_CACHE:-$HOME/.cache/aegis}/venv-sdk-python/bin/python"
if [ ! -x "$python" ]; then
    echo "bench/sdk: run sdks/python/test.sh first; it makes the environment" >&2
    exit 2
fi
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=../../sdks/python/src:../../tests/e2e "$python" python.py "$@"

# Go: its packages are pinned by go.sum.
(cd go && AEGIS_BIN="$(realpath "$AEGIS_BIN")" GOFLAGS=-mod=readonly GOTOOLCHAIN=local go run .)
if [ ! -e ../../sdks/typescript/dist/index.js ]; then
    echo "bench/sdk: run sdks/typescript/test.sh first; it builds the package" >&2
    exit 2
fi
node typescript.mjs
