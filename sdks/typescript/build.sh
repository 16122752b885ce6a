#!/bin/sh
# Makes the package's environment and builds the package, in this folder: for test.sh, and for whoever else needs it built.
set -eu

cd "$(dirname "$0")"
cache="${AEGIS_CACHE:-$HOME/.cache/aegis}/sdk-typescript"

# A copy of the pins lies beside what was installed from them, and is written last: a half-made installation is made again.
if ! cmp -s package-lock.json "$cache/package-lock.installed"; then
    rm -rf "$cache"
    mkdir -p "$cache"
    cp package.json package-lock.json "$cache/"
    (cd "$cache" && npm ci --silent --no-audit --no-fund --ignore-scripts)
    cp package-lock.json "$cache/package-lock.installed"
fi
if [ -L node_modules ] || [ ! -e node_modules ]; then
    ln -sfn "$cache/node_modules" node_modules
fi

rm -rf dist
node_modules/.bin/tsc
