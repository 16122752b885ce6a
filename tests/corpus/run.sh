#!/bin/sh
# The corpus against every language: nothing that was released has changed, the generators make what is stored, and Rust (the program
# that AEGIS_BIN names), Python, TypeScript and Go agree on every byte, every reason and every verdict.
#
#   run.sh                     the gate
#   run.sh fuzz [ARGUMENT...]  differential fuzzing; see fuzz.py
#
# AEGIS_CORPUS_WITHOUT=NAME,... goes on without languages that are not there.
set -eu

cd "$(dirname "$0")"
requirements=../../sdks/python/requirements.txt
. ../../sdks/python/venv.sh
if [ -z "${AEGIS_CORPUS_TYPESCRIPT:-}" ]; then
    ../../sdks/typescript/build.sh
fi

if [ "${1:-}" = fuzz ]; then
    shift
    exec python fuzz.py "$@"
fi
failed=0
python manifest.py || failed=1
python receipts/generate.py --check || failed=1
python -m unittest --quiet test_gate || failed=1
python gate.py || failed=1
exit $failed
