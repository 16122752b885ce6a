"""Lanes and commits, valid and broken, all of it sealed and signed: only the chain can tell."""

from collections.abc import Iterator

from case import Case
from sealing import LANE, PINNED, STRANGER, VALID, alone, bare, draft, keyed, lane_of, linked, proven, sealed, with_body, with_facts

OTHER_LANE = "beta.edge-7.0123456789abcdef"
WHOLE = lane_of("oduuuugc")


def relinked(receipts: list[dict], place: int, **facts: object) -> list[dict]:
    """The lane with other facts at `place`, everything from there on sealed, linked and signed anew."""
    drafts = [with_facts(event, **facts) if at == place else event for at, event in enumerate(receipts)]
    return [proven([event])[0] for event in linked(drafts)]


def commits() -> Iterator[Case]:
    """Trees of every shape: the last receipt of an odd level moves up alone."""
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33):
        receipts = bodies(lane_of("o" + "u" * (size - 1), commit=size))
        yield Case(f"a commit of {size}", receipts)
        if size > 2:
            swapped = [receipts[0], receipts[1] | {"proof": receipts[2]["proof"]}]
            yield Case(f"a commit of {size}, the proof of its third at its second", swapped, "bad_signature")
            unpinned = [receipts[0], receipts[1] | {"proof": receipts[1]["proof"] | {"index": 0}}]
            yield Case(f"a commit of {size}, its second at index 0, no key pinned", unpinned, "invalid_proof", roots=())
    two_lanes = proven(linked(draft("open" if seq == 1 else "decision", seq, lane=lane) for seq in (1, 2, 3) for lane in (LANE, OTHER_LANE)))
    yield Case("a commit of two lanes in turn", two_lanes)
    yield Case("a commit of two lanes, one after the other", two_lanes[::2] + two_lanes[1::2])
    yield Case("a commit of two lanes, one of them alone", two_lanes[1::2])
    yield Case("two commits under one signature, no key pinned", [WHOLE[0], WHOLE[1] | {"proof": WHOLE[0]["proof"]}], "invalid_proof", roots=())
    yield Case("two commits under one signature", [WHOLE[0], WHOLE[1] | {"proof": WHOLE[0]["proof"]}], "bad_signature")
    again = WHOLE[1] | {"proof": WHOLE[0]["proof"] | {"size": 2, "path": [WHOLE[0]["receipt_hash"]], "index": 1}}
    yield Case("one signature over commits of two sizes, no key pinned", [WHOLE[0], again], roots=())
    yield Case("one signature over commits of two sizes", [WHOLE[0], again], "bad_signature")


def bodies(receipts: list[dict]) -> list[dict]:
    return [bare(receipt, proof=True) for receipt in receipts]


def gaps_and_repeats() -> Iterator[Case]:
    yield Case("a whole lane of events, from open to close", WHOLE)
    yield Case("a whole lane of events, no key pinned", WHOLE, roots=())
    lane, forked = bodies(WHOLE), bodies(relinked(WHOLE, 2, user_id="mallory"))
    for start in range(1, len(lane)):
        yield Case(f"a lane from seq {start + 1} on", lane[start:])
    for lost in range(1, len(lane) - 1):
        yield Case(f"seq {lost + 1} missing", lane[:lost] + lane[lost + 1 :], "missing_seq", lost)
    yield Case("seq 2 to 6 missing", [lane[0], *lane[6:]], "missing_seq", 1)
    yield Case("the last line missing, which nobody can see", lane[:-1])
    for place in range(len(lane)):
        yield Case(f"seq {place + 1} twice", [*lane[: place + 1], lane[place]], "repeated_seq")
    for place in range(1, 4):
        swapped = [*lane[:place], lane[place + 1], lane[place]]
        yield Case(f"seq {place + 1} and {place + 2} swapped", swapped, "missing_seq", place)
    yield Case("a line of long ago once more", [*lane[:5], lane[1]], "forked_seq")
    yield Case("a lane that begins late, then its earlier line", [lane[3], lane[2]], "forked_seq")
    yield Case("the first line once more at the end", [*lane[:3], lane[0]], "forked_seq")
    yield Case("a lane twice", [*lane, *lane], "forked_seq", len(lane))
    yield Case("another receipt with a seq that is there", [*lane[:3], forked[2]], "forked_seq")
    yield Case("another history from seq 3 on", [*lane[:3], forked[3]], "broken_link")
    yield Case("the largest seq there can be", bodies([alone(with_facts(WHOLE[1], seq=2**53 - 1))]))
    far = [alone(with_facts(WHOLE[1], seq=2**53 - 3)), alone(with_facts(WHOLE[1], seq=2**53 - 1))]
    yield Case("seqs near the largest, one missing", far, "missing_seq")


def links() -> Iterator[Case]:
    def with_prev(place: int, value: str) -> list[dict]:
        return [*WHOLE[:place], alone(with_body(WHOLE[place], prev_receipt_hash=value))]

    good = WHOLE[1]["receipt_hash"]
    for description, value in [
        ("of the one before that", WHOLE[0]["receipt_hash"]), ("in upper case", good.upper()), ("of itself before", WHOLE[2]["receipt_hash"]),
        ("of zeros", "0" * 64), ("cut", good[:-1]), ("with a space", good + " "), ("a word", "none"),
    ]:  # fmt: skip
        yield Case(f"prev_receipt_hash {description}", with_prev(2, value), "broken_link")
    yield Case("an empty prev_receipt_hash after seq 1", with_prev(2, ""), "lane_rule")
    yield Case("an empty prev_receipt_hash at a late start", with_prev(2, "")[2:], "lane_rule")
    yield Case("a prev_receipt_hash at seq 1", with_prev(0, good), "lane_rule")
    yield Case("another prev_receipt_hash at a late start, which nobody can see", with_prev(2, "0" * 64)[2:])


def lane_rules() -> Iterator[Case]:
    def first(phase: str, **facts: object) -> dict:
        return alone(with_body(with_facts(draft(phase, 1), **facts), prev_receipt_hash=""))

    for phase in ("decision", "outcome", "gap", "close"):
        yield Case(f"a lane that begins with {phase}", [first(phase)], "lane_rule")
    yield Case("open at seq 2, at a late start", [alone(with_body(draft("open", 2), prev_receipt_hash="0" * 64))], "lane_rule")
    yield Case("open at seq 2", [WHOLE[0], alone(with_body(draft("open", 2), prev_receipt_hash=WHOLE[0]["receipt_hash"]))], "lane_rule")
    yield Case("a lane opened and closed", lane_of("oc"))
    yield Case("a lane of one receipt", lane_of("o"))
    after_close = lane_of("oddcd")
    yield Case("a receipt after close", after_close, "lane_rule")
    yield Case("a receipt after close, at a late start", after_close[3:], "lane_rule")
    yield Case("a receipt after close, with a seq missing too", lane_of("oddcdd")[:4] + lane_of("oddcdd")[5:], "lane_rule")
    yield Case("two closes", lane_of("oddcc"), "lane_rule")
    yield Case("close twice", [*lane_of("odc"), lane_of("odc")[2]], "repeated_seq")
    yield Case("another close after close, with its seq", [*lane_of("odc"), relinked(lane_of("odc"), 2, user_id="x")[2]], "forked_seq")
    yield Case("many gaps", lane_of("oggdgc"))
    yield Case("a gap at a late start", lane_of("oggdgc")[1:])
    yield Case("a lane that goes on in another after its close", [*lane_of("odc"), *lane_of("ogd", lane="acme.edge-7.1123456789abcdef")])
    for description, predecessor in [
        ("the head of another lane", {"lane": "acme.edge-7.0000000000000000", "seq": 9, "receipt_hash": "0" * 64}),
        ("another tenant's lane", {"lane": OTHER_LANE, "seq": 3, "receipt_hash": "0" * 64}), ("no object", "x"), ("without a lane", {}),
    ]:  # fmt: skip
        detail = {"key_id": PINNED.key_id, "certificate": None, "predecessor": predecessor}
        opened = alone(with_body(draft("open", 1), detail=detail, prev_receipt_hash=""))
        yield Case(f"an open that names as predecessor {description}", [opened])


def lane_at(*times: int | str) -> list[dict]:
    """A lane with a receipt at each of these times, events sealed alone: microseconds after the beginning, or a text."""
    drafts = []
    for seq, when in enumerate(times, start=1):
        phase = "open" if seq == 1 else "decision"
        drafts.append(draft(phase, seq, micros=when) if isinstance(when, int) else with_facts(draft(phase, seq), ts=when))
    return [proven([event])[0] for event in linked(drafts)]


def times() -> Iterator[Case]:
    second = 1_000_000
    yield Case("a lane at one time", lane_at(second, second, second))
    yield Case("a microsecond earlier", lane_at(second, second - 1), "time_reversed")
    yield Case("a microsecond earlier, at a late start", lane_at(0, 5 * second, 5 * second - 1)[1:], "time_reversed")
    yield Case("a day earlier", lane_at("2026-11-22T10:00:00.000000Z", "2026-11-21T23:59:59.999999Z"), "time_reversed")
    yield Case("a year later", lane_at("2026-11-22T10:00:00.000000Z", "2027-11-22T10:00:00.000000Z"))
    yield Case("two lanes, each with its own time", [*lane_at(9 * second), *lane_of("od", lane=OTHER_LANE)])
    for text in (
        "2024-02-29T00:00:00.000000Z",
        "2000-02-29T23:59:59.999999Z",
        "1970-01-01T00:00:00.000000Z",
        "1969-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59.999999Z",
    ):
        yield Case(f"the time {text}", lane_at(text))
    for text in (
        "", "now", "2026-11-22", "10:00:00Z", "2026-11-22T10:00:00", "2026-11-22T10:00Z", "2026-13-01T10:00:00Z", "2026-00-01T10:00:00Z", "2026-11-31T10:00:00Z",
        "2026-02-29T10:00:00.000000Z", "2100-02-29T10:00:00.000000Z", "2026-11-22T24:00:00Z", "2026-11-22T10:60:00Z", "2026-11-22T10:00:61Z", "2026-11-22T10:00:00.Z", "2026-11-22T10:00:00,5Z",
        "2026-11-22T10:00:00+0200", "2026-11-22T10:00:00+02", "2026-11-22T10:00:00+24:00", "2026-11-22T10:00:00+02:60", "2026-11-22T10:00:00ZZ", " 2026-11-22T10:00:00Z",
        "2026-11-22T10:00:00Z ", "2026-11-22T10:00:00Z\n", "26-11-22T10:00:00Z", "02026-11-22T10:00:00Z", "2026-1-22T10:00:00Z", "20261122T100000Z", "2026-W47-7T10:00:00Z",
        "２０２６-11-22T10:00:00Z", "2026-11-22T10:00:00.１Z", "1795341600", "Sun, 22 Nov 2026 10:00:00 GMT",
    ):  # fmt: skip
        yield Case(f"the time {text!r}", lane_at(text), "malformed")


def signers() -> Iterator[Case]:
    theirs = lane_of("od", signer=STRANGER)
    yield Case("a lane signed by another key", theirs, "unknown_key", 0)
    yield Case("a lane signed by another key, which is pinned", theirs, roots=(STRANGER.root,))
    yield Case("a lane signed by another key, both pinned", [*theirs, *lane_of("od", lane=OTHER_LANE)], roots=(PINNED.root, STRANGER.root))
    yield Case("two lanes, one signed by a key that is not pinned", [*lane_of("od", lane=OTHER_LANE), *theirs], "unknown_key", 2)
    for description, body_key, proof_key, signer, code in [
        ("body and proof name the pinned key, another signed", PINNED, PINNED, STRANGER, "bad_signature"),
        ("the body names another key than the proof", STRANGER, PINNED, PINNED, "invalid_proof"),
        ("the proof names another key than the body", PINNED, STRANGER, PINNED, "invalid_proof"),
        ("both name another key, the pinned one signed", STRANGER, STRANGER, PINNED, "unknown_key"),
    ]:
        event = sealed(keyed(WHOLE[1], body_key))
        yield Case(description, proven([event], signer, proof_key.key_id), code)
        unpinned = None if code in ("bad_signature", "unknown_key") else code
        yield Case(f"{description}, no key pinned", proven([event], signer, proof_key.key_id), unpinned, roots=())
    both = sealed(keyed(WHOLE[1], STRANGER))
    yield Case("both name another pinned key, this one signed", proven([both], PINNED, STRANGER.key_id), "bad_signature", roots=(PINNED.root, STRANGER.root))
    upper = sealed(with_body(WHOLE[1], key_id=PINNED.key_id.upper()))
    yield Case("the key's id in upper case in body and proof", proven([upper], PINNED, PINNED.key_id.upper()), "unknown_key")
    handed_over = linked([keyed(draft("open", 1), PINNED), keyed(draft("decision", 2), STRANGER)])
    yield Case("a lane that two pinned keys signed", [*proven(handed_over[:1]), *proven(handed_over[1:], STRANGER)], roots=(STRANGER.root, PINNED.root))
    yield Case("the stored export, lane by lane", sorted(VALID, key=lambda event: event["lane"]))


CLASSES = [commits, gaps_and_repeats, links, lane_rules, times, signers]
