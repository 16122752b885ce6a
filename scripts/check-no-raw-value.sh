#!/usr/bin/env bash
# serde_json's `raw_value` would let a body carry JSON that the strict door has not seen; nothing in the tree may turn it on.
set -euo pipefail
for feature in raw_value arbitrary_precision; do
    if cargo tree --locked --workspace --edges features --invert serde_json 2>/dev/null | grep -q "serde_json feature \"$feature\""; then
        echo "something in the tree turns on serde_json's $feature; see: cargo tree -e features -i serde_json" >&2
        exit 1
    fi
done
echo "serde_json: neither raw_value nor arbitrary_precision"
