#!/bin/sh
# The TypeScript SDK: style, types, the package that is published, and every test against what was installed from it and the real program.
# AEGIS_BIN names the program. `test.sh tests/NAME.test.mjs...` runs these alone. AEGIS_SDK_MATRIX=--write takes over what was proved.
set -eu

cd "$(dirname "$0")"
: "${AEGIS_BIN:?set AEGIS_BIN to the built program, or run \`make test-sdks\`}"
if [ ! -x "$AEGIS_BIN" ]; then
    echo "sdks/typescript: $AEGIS_BIN is not there; build it with \`cargo build --release\`" >&2
    exit 2
fi
cache="${AEGIS_CACHE:-$HOME/.cache/aegis}/sdk-typescript"
./build.sh
node_modules/.bin/eslint .

# What a reader installs: the packed package in a folder of its own, beside the frameworks.
run="$(mktemp -d)"
trap 'rm -rf "$run"' EXIT
mkdir "$run/package" "$run/features"
npm pack --silent --ignore-scripts --pack-destination "$run" >/dev/null
if tar tzf "$run"/aegisagent-*.tgz | grep -vE '^package/(dist/.*\.(js|d\.ts)|README\.md|LICENSE|package\.json)$'; then
    echo "sdks/typescript: the package holds files that it should not" >&2
    exit 1
fi
ln -s "$cache/node_modules" "$run/node_modules"
cp -R tests examples tsconfig.tests.json "$run/package/"
echo '{"private": true, "type": "module"}' >"$run/package/package.json"
npm install --prefix "$run/package" --silent --offline --no-save --no-audit --no-fund --ignore-scripts "$run"/aegisagent-*.tgz
AEGIS_REPOSITORY="$(cd ../.. && pwd)"
export AEGIS_REPOSITORY

repository="$PWD"
cd "$run/package"
"$cache/node_modules/.bin/tsc" --project tsconfig.tests.json
if [ $# -gt 0 ]; then
    node --test --test-concurrency=2 --test-reporter=spec "$@"
    exit
fi
if ! AEGIS_SDK_FEATURES="$run/features" node --test --test-concurrency=2 --test-reporter=spec tests/*.test.mjs >"$run/log" 2>&1; then
    sed -n '/failing tests/,$p' "$run/log" | grep . || cat "$run/log"
    exit 1
fi
grep -E '^ℹ (tests|pass|fail|duration_ms) ' "$run/log" | sed 's/^ℹ //' | paste -sd, -
node tests/proved.mjs "$run/features" >"$run/proved.json"
cd "$repository"
python3 ../matrix.py "${AEGIS_SDK_MATRIX:---check}" typescript "$run/proved.json"
