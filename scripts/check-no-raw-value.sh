#!/usr/bin/env bash
# serde_json's `raw_value` would let a body carry JSON that the strict door has not seen; nothing in the tree may turn it on.
set -euo pipefail
# Not through a pipe: cargo that fails, or that is cut off by a grep which has found it, would be a tree without it.
tree=$(cargo tree --locked --workspace --edges features --invert serde_json)
for feature in raw_value arbitrary_precision; do
    if grep -qF "serde_json feature \"$feature\"" <<<"$tree"; then
        echo "something in the tree turns on serde_json's $feature; see: cargo tree -e features -i serde_json" >&2
        exit 1
    fi
done
echo "serde_json: neither raw_value nor arbitrary_precision"
