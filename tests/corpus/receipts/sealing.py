"""Makes receipts as a ledger does: seals events, links lanes, signs commits. For tests alone, with keys that everybody knows.

Shares nothing with the implementations under test: canonical forms by the package `rfc8785`, signatures by `cryptography`.
"""

import base64
import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = Path(__file__).resolve().parents[3] / "corpus" / "receipts"
# What is added to an event after it was digested.
ADDED = {"receipt", "proof", "receipt_hash", "verified", "bus_ts", "late"}
# The order of the base point of Ed25519 (RFC 8032 section 5.1).
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


class Signer:
    """The key of a 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.seed = seed
        self.public = self.key.public_key().public_bytes_raw()
        self.root = base64.b64encode(self.public).decode()
        self.key_id = hashlib.sha256(self.public).hexdigest()[:16]

    def sign(self, statement: bytes) -> bytes:
        return self.key.sign(statement)


# Those of `crates/aegis-ledger/tests`: the one that signed valid.jsonl, and the one that signed other-key.jsonl.
PINNED, STRANGER = Signer(bytes([42]) * 32), Signer(bytes([9]) * 32)


def stored(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


VALID = stored("valid.jsonl")


def line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def hash_of(value: dict) -> bytes:
    return hashlib.sha256(rfc8785.dumps(value)).digest()


def sealed(event: dict, **body_only: object) -> dict:
    """The event with its digest and its receipt's hash made anew, and no proof. `body_only` are facts that its body alone has."""
    columns = {key: value for key, value in event.items() if key not in ADDED}
    body = {key: value for key, value in event["receipt"].items() if key != "receipt_hash"}
    body["event_digest"] = hash_of({key: value for key, value in columns.items() if value is not None}).hex()
    body |= body_only
    receipt_hash = hash_of(body).hex()
    beside = {key: event[key] for key in ("verified", "bus_ts", "late") if key in event}
    return {**columns, **beside, "receipt_hash": receipt_hash, "receipt": {**body, "receipt_hash": receipt_hash}}


def with_facts(event: dict, **facts: object) -> dict:
    """The event with other facts, in its columns and in its body."""
    changed = copy.deepcopy(event)
    changed |= facts
    changed["receipt"] |= facts
    return changed


def with_body(event: dict, **keys: object) -> dict:
    changed = copy.deepcopy(event)
    changed["receipt"] |= keys
    return changed


# --- commits --------------------------------------------------------------------------------------------------------------


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def subtree(leaves: list[bytes]) -> bytes:
    """The root over leaves (RFC 6962 section 2.1)."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node(subtree(leaves[:split]), subtree(leaves[split:]))


def path_of(index: int, leaves: list[bytes]) -> list[bytes]:
    """From leaf to root (RFC 6962 section 2.1.1)."""
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*path_of(index, leaves[:split]), subtree(leaves[split:])]
    return [*path_of(index - split, leaves[split:]), subtree(leaves[:split])]


def statement(size: int, root: bytes) -> bytes:
    return f"aegis-commit-1\n{size}\n{root.hex()}\n".encode()


def proven(receipts: list[dict], signer: Signer = PINNED, key_id: str | None = None) -> list[dict]:
    """The receipts (events, or bare bodies) as one commit, each with its proof."""
    leaves = [leaf(bytes.fromhex(receipt["receipt_hash"])) for receipt in receipts]
    signature = base64.b64encode(signer.sign(statement(len(leaves), subtree(leaves)))).decode()
    return [
        receipt
        | {
            "proof": {
                "key_id": key_id or signer.key_id,
                "size": len(leaves),
                "index": index,
                "path": [sibling.hex() for sibling in path_of(index, leaves)],
                "signature": signature,
            }
        }
        for index, receipt in enumerate(receipts)
    ]


def alone(event: dict, signer: Signer = PINNED) -> dict:
    """The event sealed anew and committed alone."""
    return proven([sealed(event)], signer)[0]


# --- lanes ----------------------------------------------------------------------------------------------------------------

TEMPLATES = {"open": VALID[0], "decision": VALID[1], "outcome": VALID[5], "gap": VALID[8], "close": VALID[12]}
LANE = "acme.edge-7.0123456789abcdef"


def time(micros: int) -> str:
    """So many microseconds after the beginning."""
    seconds, fraction = divmod(micros, 1_000_000)
    return f"2026-11-22T11:{seconds // 60:02}:{seconds % 60:02}.{fraction:06}Z"


def draft(phase: str, seq: int, *, lane: str = LANE, micros: int | None = None, number: int = 0) -> dict:
    """An event that is not sealed yet."""
    tenant = lane.partition(".")[0]
    event_id = f"01a202b2-c500-7000-8000-{int(hashlib.sha256(lane.encode()).hexdigest()[:8], 16):08x}{number:02x}{seq:02x}"
    ts = time(seq * 1_000_000 if micros is None else micros)
    return with_facts(TEMPLATES[phase], lane=lane, tenant_id=tenant, seq=seq, event_id=event_id, ts=ts, ref_event_id=None)


def linked(drafts: Iterable[dict], first_prev: str = "") -> list[dict]:
    """Sealed, each linked to the one before it of its lane."""
    heads: dict[str, str] = {}
    receipts = []
    for event in drafts:
        receipt = sealed(with_body(event, prev_receipt_hash=heads.get(event["lane"], first_prev)))
        heads[event["lane"]] = receipt["receipt_hash"]
        receipts.append(receipt)
    return receipts


def lane_of(phases: str, *, lane: str = LANE, signer: Signer = PINNED, commit: int = 1) -> list[dict]:
    """A lane from its first receipt on, of phases by their first letters (`odgc`: open, decision, gap, close), `commit` receipts a commit."""
    by_letter = {phase[0]: phase for phase in TEMPLATES if phase != "outcome"} | {"u": "outcome"}
    receipts = linked(keyed(draft(by_letter[letter], seq, lane=lane), signer) for seq, letter in enumerate(phases, start=1))
    return [receipt for start in range(0, len(receipts), commit) for receipt in proven(receipts[start : start + commit], signer)]


def keyed(event: dict, signer: Signer) -> dict:
    return with_body(event, key_id=signer.key_id)


def bare(event: dict, *, proof: bool = False) -> dict:
    return event["receipt"] | ({"proof": event["proof"]} if proof else {})
