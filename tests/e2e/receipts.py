"""Receipts, checked here once more and independently of the program."""

import hashlib
import json


def canonical(value):
    """RFC 8785 for what receipts hold: objects with ASCII keys, strings, integers, booleans, null."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check_chain(lines):
    """Recomputes every hash and link of an export and returns the receipts by lane."""
    lanes = {}
    for line in lines:
        body = dict(line["receipt"])
        receipt_hash = body.pop("receipt_hash")
        assert hashlib.sha256(canonical(body)).hexdigest() == receipt_hash == line["receipt_hash"], f"hash of {body['lane']}#{body['seq']}"
        lanes.setdefault(body["lane"], []).append((body["seq"], body["prev_receipt_hash"], receipt_hash, body))
    for lane, receipts in lanes.items():
        receipts.sort(key=lambda receipt: receipt[0])
        assert [receipt[0] for receipt in receipts] == list(range(1, len(receipts) + 1)), f"lane {lane} has a hole or a fork"
        previous = ""
        for seq, prev_hash, receipt_hash, _ in receipts:
            assert prev_hash == previous, f"lane {lane}, seq {seq} does not link to the receipt before it"
            previous = receipt_hash
    return lanes
