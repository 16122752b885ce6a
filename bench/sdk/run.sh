#!/bin/sh
# What each SDK adds to a bare call of the real program, and its canonical form against an RFC 8785 package. Prints tables and writes
# bench/out/sdk-LANGUAGE.json. AEGIS_BIN names the program; the environments are those of sdks/LANGUAGE/test.sh, which are made here
# where they are not there.
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make bench-sdks\`}"
requirements=../../sdks/python/requirements.txt
. ../../sdks/python/venv.sh
# All of it is there before the first language is measured.
../../sdks/typescript/build.sh
PYTHONPATH=../../sdks/python/src:../../tests/e2e python python.py "$@"

# Go: its packages are pinned by go.sum.
(cd go && AEGIS_BIN="$(realpath "$AEGIS_BIN")" GOFLAGS=-mod=readonly GOTOOLCHAIN=local go run .)
node typescript.mjs
