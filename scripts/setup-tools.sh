#!/usr/bin/env bash
# Builds the servers that tests start and that Debian has not: see setup.sh. Does nothing where they are there.
set -euo pipefail

# The current NATS server, beside Debian's 2.9: the bus is tested with both.
nats_version="$(cat "$(dirname "$0")/nats-server.version")"
nats="${AEGIS_CACHE:-$HOME/.cache/aegis}/bin/nats-server"
if [ "$("$nats" --version 2>/dev/null)" != "nats-server: $nats_version" ]; then
    if ! command -v go >/dev/null; then
        echo "setup: go is missing; install Go 1.25 or newer from https://go.dev/dl" >&2
        exit 2
    fi
    echo "setup: building nats-server $nats_version"
    GOBIN="$(dirname "$nats")" go install "github.com/nats-io/nats-server/v2@$nats_version"
fi

# An S3 server over a folder: the lake is tested on it. It does not say its version; the toolchain that built it does.
s3_version="$(cat "$(dirname "$0")/versitygw.version")"
s3="${AEGIS_CACHE:-$HOME/.cache/aegis}/bin/versitygw"
if ! go version -m "$s3" 2>/dev/null | grep -E "^[[:space:]]+mod[[:space:]]+github.com/versity/versitygw[[:space:]]+$s3_version([[:space:]]|\$)" >/dev/null; then
    if ! command -v go >/dev/null; then
        echo "setup: go is missing; install Go 1.25 or newer from https://go.dev/dl" >&2
        exit 2
    fi
    echo "setup: building versitygw $s3_version"
    GOBIN="$(dirname "$s3")" go install "github.com/versity/versitygw/cmd/versitygw@$s3_version"
fi
