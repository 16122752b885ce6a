# Read by scripts beside the SDK: makes the environment that requirements.txt pins, once, and puts it first on the PATH.
# shellcheck shell=sh
# `requirements` is the file; it is set by whoever reads this.
venv="${AEGIS_CACHE:-$HOME/.cache/aegis}/venv-sdk-python"

# A copy of the pins lies beside what was installed from them, and is written last: a half-made installation is made again.
if ! cmp -s "$requirements" "$venv/requirements.installed"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement "$requirements"
    cp "$requirements" "$venv/requirements.installed"
fi
PATH="$venv/bin:$PATH"
export PATH PYTHONDONTWRITEBYTECODE=1
