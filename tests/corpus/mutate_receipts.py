"""Exports for the fuzzer, from a seed alone: lanes as a ledger writes them, with facts changed before or after they are sealed."""

import base64
import copy
import random
import sys
from pathlib import Path

import mutate

sys.path.append(str(Path(__file__).resolve().parent / "receipts"))
import sealing  # noqa: E402

LANES = [sealing.LANE, "acme.edge-8.0123456789abcdef", "beta.edge-7.0123456789abcdef"]
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 1.0, 2.0, 0.5, -0.0, 1e21, 2**53 - 1, "", "x", "1", "open", "close", "gap", "acme", "beta.x", "é", "e\u0301", "😀" * 210, [], [None], ["a", "b"],
    {}, {"a": 1}, {"lane": LANES[1]}, "0" * 64, "A" * 64, "00" * 31, sealing.PINNED.key_id, sealing.STRANGER.key_id, "aegis-receipt-1", "2026-11-22T10:00:00.000000Z", "AAAA", "AAA=",
]  # fmt: skip
KEYS = [
    "note",
    "schema",
    "proof",
    "receipt",
    "receipt_hash",
    "verified",
    "late",
    "bus_ts",
    "é",
    "\U0001f600",
    "\ue000",
    "__proto__",
    "0",
    "seq",
    "size",
    "path",
    "",
]


def batch(rng: random.Random, inputs: list[bytes], count: int) -> list[dict]:
    return [made(rng, inputs) for _ in range(count)]


def made(rng: random.Random, inputs: list[bytes]) -> dict:
    kind = rng.choices(("sealed", "tampered", "stored", "text"), (45, 30, 15, 10))[0]
    if kind == "stored":
        data = b"\n".join(shuffled(rng.choice(inputs).splitlines(), rng))
    else:
        events = lanes(rng, edits=kind == "sealed")
        if kind != "sealed":
            events = [edited(event, rng) if rng.random() < 0.4 else event for event in events]
        data = b"\n".join(map(sealing.line, shuffled(events, rng)))
        if kind == "text":
            data = mutate.damaged(data, rng)
    return {"class": kind, "data": data, "roots": roots(rng)}


def roots(rng: random.Random) -> list[str]:
    pinned, stranger = sealing.PINNED.root, sealing.STRANGER.root
    if rng.random() < 0.05:
        return [base64.b64encode(mutate.damaged(sealing.PINNED.public, rng)).decode()]
    return rng.choice(([pinned], [pinned], [pinned], [], [stranger], [stranger, pinned]))


def lanes(rng: random.Random, *, edits: bool) -> list[dict]:
    """A few lanes in turn, sealed and committed in groups; with `edits`, some facts were changed before that."""
    drafts = []
    for lane in rng.sample(LANES, rng.choice((1, 1, 2))):
        phases = ["open", *(rng.choice(("decision", "outcome", "gap")) for _ in range(rng.randrange(4))), *(["close"] if rng.random() < 0.3 else [])]
        pause = rng.choice((0, 1, 10**6, 10**6, 10**6, -1))
        drafts += [sealing.draft(phase, seq, lane=lane, micros=10**7 + seq * pause) for seq, phase in enumerate(phases, start=1)]
    if edits:
        drafts = [edited(draft, rng) if rng.random() < 0.4 else draft for draft in drafts]
    receipts, heads = [], {}
    for draft in drafts:
        if not isinstance(draft.get("receipt"), dict):
            continue
        key = str(draft.get("lane"))
        body = {"prev_receipt_hash": heads.get(key, "")} if rng.random() < 0.95 else {}
        receipt = sealing.sealed(draft if not body else sealing.with_body(draft, **body))
        heads[key] = receipt["receipt_hash"]
        receipts.append(receipt)
    committed, place = [], 0
    while place < len(receipts):
        size = rng.randrange(1, 5)
        signer = sealing.STRANGER if rng.random() < 0.05 else sealing.PINNED
        committed += sealing.proven(receipts[place : place + size], signer, None if rng.random() < 0.9 else sealing.PINNED.key_id)
        place += size
    bare = rng.random()
    return [sealing.bare(event, proof=rng.random() < 0.7) if bare < 0.2 else event for event in committed]


def edited(event: dict, rng: random.Random) -> dict:
    """The event with one or two of its values changed, at any depth."""
    event = copy.deepcopy(event)
    for _ in range(rng.choice((1, 1, 2))):
        holder: dict | list = event
        while True:
            places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            inner = [place for place in places if isinstance(holder[place], (dict, list))]
            if not inner or rng.random() < 0.4:
                break
            holder = holder[rng.choice(inner)]
        edit = rng.randrange(5)
        if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), any_value(rng))
        elif edit == 0 or not places:
            holder[rng.choice(KEYS)] = any_value(rng)
        elif edit == 1:
            del holder[rng.choice(places)]
        else:
            place = rng.choice(places)
            holder[place] = other(holder[place], rng)
            # A fact of the event and of its body at once reaches the rules behind their comparison.
            if holder is event and isinstance(event.get("receipt"), dict) and place in event["receipt"] and rng.random() < 0.7:
                event["receipt"][place] = copy.deepcopy(holder[place])
    return event


def any_value(rng: random.Random) -> object:
    return copy.deepcopy(rng.choice(VALUES))


def other(value: object, rng: random.Random) -> object:
    if isinstance(value, str) and rng.random() < 0.5:
        text = mutate.damaged(value.encode(), rng).decode("utf-8", "replace")
        return rng.choice((text, value.upper(), value[:-1], value + " ", value[::-1]))
    if type(value) is int and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, float(value), str(value), -value))
    return any_value(rng)


def shuffled(items: list, rng: random.Random) -> list:
    """Mostly as they are; sometimes one is lost, doubled or moved."""
    items = list(items)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        if not items:
            break
        place = rng.randrange(len(items))
        edit = rng.randrange(4)
        if edit == 0:
            del items[place]
        elif edit == 1:
            items.insert(rng.randrange(len(items) + 1), items[place])
        elif edit == 2:
            other_place = rng.randrange(len(items))
            items[place], items[other_place] = items[other_place], items[place]
        else:
            items = items[place:]
    return items
