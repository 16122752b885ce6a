#!/bin/sh
# Cross-checks corpus/canonical against independent RFC 8785 libraries in Python and JavaScript, and a sample of it against the
# binary that AEGIS_BIN names, if it does. Installs the pinned libraries once; later runs only compare.
set -eu

cd "$(dirname "$0")"
venv="${AEGIS_CACHE:-$HOME/.cache/aegis}/venv-canonical"

# A copy of the pins lies beside what was installed from them, and is written last: a half-made installation is made again.
if ! cmp -s requirements.txt "$venv/requirements.installed"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$venv/requirements.installed"
fi
if ! cmp -s package-lock.json node_modules/package-lock.installed; then
    npm ci --silent --no-audit --no-fund
    cp package-lock.json node_modules/package-lock.installed
fi

export PYTHONDONTWRITEBYTECODE=1
failed=0
"$venv/bin/python" generate.py --check || failed=1
"$venv/bin/python" crosscheck.py || failed=1
node crosscheck.mjs || failed=1
exit $failed
