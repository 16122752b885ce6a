#!/usr/bin/env bash
# The edge-only build must not pull in the SQL engine, the control plane's store or Postgres.
set -euo pipefail
tree=$(cargo tree --locked -p aegis --no-default-features --features edge --edges normal --prefix none)
if forbidden=$(grep -E '^(datafusion|arrow|parquet|object_store|reqwest|sqlx-postgres|aegis-(store|control|detect|lake|respond|ingest)) ?' <<<"$tree" | sort -u) && [ -n "$forbidden" ]; then
    printf 'the edge-only build pulls in:\n%s\n' "$forbidden" >&2
    exit 1
fi
echo "edge-only build: $(sort -u <<<"$tree" | grep -c .) crates, no SQL engine"
# And it must compile, without a word from the linter: nothing else builds these features alone.
cargo clippy --release --locked -p aegis --no-default-features --features edge -- -D warnings
