"""Random rows for row patterns: runs of equal values, ties, and times that lie on the ends of WITHIN and of a rule's window."""

from histories import arriving, event_id
from patterns import DECISIONS, MOST_RISK, TOOLS

COLUMNS = ["tool", "decision", "risk_score", "mutates_state"]
PARTITIONS = [("h1", "a"), ("h1", "b"), ("h2", "a"), (None, "b"), ("h2", None), ("h3", "a")]
STEPS_MS = [0, 0, 1, 250, 500, 500, 1000, 1000, 2000]


def values(rng, before):
    """Of a row: mostly near those of the one before it."""
    made = {"tool": rng.choice([*TOOLS, None]), "decision": rng.choice([*DECISIONS, None]), "risk_score": rng.choice([*range(MOST_RISK), None]),
            "mutates_state": rng.choice([True, False, None])}  # fmt: skip
    return {name: before[name] if before and rng.random() < 0.5 else value for name, value in made.items()}


def table(rng):
    """Rows of some partitions, in an order of their own."""
    rows = []
    for p, q in PARTITIONS:
        at_ms, row = rng.choice([0, 1000]), None
        for _ in range(rng.choice([6, 24, 48])):
            at_ms += rng.choice(STEPS_MS)
            row = values(rng, row)
            rows.append({"p": p, "q": q, "n": len(rows), "at_ms": at_ms, "event_id": f"r{len(rows)}"} | row)
    rng.shuffle(rows)
    return rows


def history(rng, window_s):
    """Events in the order of arrival, as a rule test has them, with `ms`, `lane` and `seq` beside."""
    events, ms, before = [], 0, {}
    for _ in range(rng.choice([24, 40, 60])):
        ms += rng.choice([0, 0, 1, 250, 500, 1000, window_s * 1000 // 4])
        who = (rng.choice(["t1", "t1", "t1", "t2"]), rng.choice(["a1", "a1", "a2"]))
        before[who] = values(rng, before.get(who))
        same = {"kind": "authorize_decision", "edge_id": rng.choice(["edge-1", "edge-2"]), "tenant_id": who[0], "agent_id": who[1]}
        events.append({"ms": ms} | same | before[who])
    return arriving(rng, events)


def partition_of(event, by):
    """The name of the partition that a rule by these columns has it in."""
    return "/".join(str(event[name]) for name in ["tenant_id", *by])


def instants(events, window_s, by):
    """For each partition and each time of an event of it the rows that a rule sees there, as a partition of that name: a table."""
    places = sorted(events, key=lambda event: (event["ms"], event["lane"], event["seq"]))
    rows = []
    for partition, at_ms in sorted({(partition_of(event, by), event["ms"]) for event in events}):
        for n, event in enumerate(places):
            if partition_of(event, by) == partition and at_ms - window_s * 1000 <= event["ms"] <= at_ms:
                seen = {"p": partition, "q": str(at_ms), "n": n, "at_ms": event["ms"], "event_id": event_id(event["tenant_id"], event["id"])}
                rows.append(seen | {name: event[name] for name in COLUMNS})
    return rows
