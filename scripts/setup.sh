#!/usr/bin/env bash
# Installs what `make test` needs on a Debian machine that has Rust, Python, Node and Go. Does nothing where all is there.
# `setup.sh system` leaves out the servers that tests start and that are built here (setup-tools.sh): that goes beside another build.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v git >/dev/null || missing+=(git)
command -v curl >/dev/null || missing+=(curl)
command -v openssl >/dev/null || missing+=(openssl)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(faketime)
[ -x /usr/sbin/nats-server ] || missing+=(nats-server)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
if [ "${#missing[@]}" -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    # Tests start their own servers. Debian's Postgres makes one at its installation, unless it is told not to.
    no_cluster=/etc/postgresql-common/createcluster.d/aegis.conf
    if [[ " ${missing[*]} " == *" postgresql "* ]]; then
        "${as_root[@]}" install -d "${no_cluster%/*}"
        echo "create_main_cluster = false" | "${as_root[@]}" tee "$no_cluster" >/dev/null
    fi
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
    "${as_root[@]}" rm -f "$no_cluster"
    # Nor is the service wanted that Debian starts for NATS.
    if [[ " ${missing[*]} " == *" nats-server "* ]] && [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl disable --now --quiet nats-server || true
    fi
fi

# Not installed here: which Python a machine has is its owner's choice.
if ! command -v python3 >/dev/null; then
    echo "setup: python3 (3.11 or newer) is missing" >&2
    exit 2
fi
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing; install Rust 1.94 or newer from https://rustup.rs" >&2
    exit 2
fi
for component in clippy rustfmt; do
    if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
        echo "setup: installing the Rust component $component"
        rustup component add "$component"
    fi
done

if [ "${1:-}" != system ]; then
    exec "$(dirname "$0")/setup-tools.sh"
fi
