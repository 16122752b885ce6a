"""What must hold after every fault (CONTRACTS section 9): nothing acknowledged is lost or doubled, in the history, in the lake or in what
rules were shown, chains verify, nothing was allowed that should have been denied, every call at a living edge was answered, and the whole way from a call to a freeze works again."""

import collections
import json
import tempfile

from approved import assert_approvals
from deliveries import GITHUB_EVENTS
from harness import VERIFIER
from receipts import check_chain
from seen import assert_seen_once
from unfelt import assert_answered_soon
from waiting import wait_until

# A backlog drains, gaps are asked for, and a lane with one is held for a while first.
ARRIVED_WITHIN_S = 180
STORM = 5
# Most rows of one answer of `aegis sql`: far more than a run makes.
MOST_ROWS = 1_000_000


def repeated(values):
    return [value for value, count in collections.Counter(values).items() if count > 1]


def exported(fleet):
    """The receipts of the tenant as control's history has them, with those of every edge."""
    text = fleet.tenant.get("/v1/receipts/export").text
    return [json.loads(line) for line in text.splitlines()]


def verify(fleet, lines):
    """The verifier's report under the pinned keys."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        roots = [part for root in fleet.roots for part in ("--root", root)]
        return json.loads(fleet.control.cli(file.name, *roots, "--json", program=VERIFIER))


def assert_nothing_wrong(told):
    assert not told.wrong, "\n".join([f"{len(told.wrong)} answers that should not have been given:", *told.wrong[:10]])
    assert not told.unanswered, "\n".join([f"{len(told.unanswered)} calls without an answer:", *told.unanswered[:10]])
    assert told.slowest_s, "no answer was timed"
    for edge_id, slowest_s in told.slowest_s.items():
        assert_answered_soon(slowest_s, edge_id)


def assert_receipts(fleet, told):
    """Every acknowledged receipt is in the history once, in a chain that verifies."""
    def arrived():
        lines = exported(fleet)
        is_all = told.receipts.keys() <= {line.get("receipt_hash") for line in lines} and not holes(lines)
        return lines if is_all else None

    try:
        lines = wait_until("the history has every acknowledged receipt", arrived, ARRIVED_WITHIN_S, longest_pause_s=2)
    except AssertionError as late:
        lines = exported(fleet)
        raise AssertionError(f"{late}\n{missing(told, lines)}; holes: {holes(lines)}") from None
    assert not (again := repeated(line["receipt_hash"] for line in lines)), f"receipts that stand twice in the history: {again[:5]}"
    assert not (again := repeated(line["event_id"] for line in lines)), f"events with two receipts: {again[:5]}"
    check_chain(lines)
    report = verify(fleet, lines)
    assert report["verdict"] == "valid", report
    return lines


def holes(lines):
    """The lanes in which a receipt is missing before a later one, and how many. One that nobody was told of may still be on its way."""
    newest = collections.defaultdict(int)
    for line in lines:
        newest[line["lane"]] = max(newest[line["lane"]], line["seq"])
    there = collections.Counter(lane for lane, _ in {(line["lane"], line["seq"]) for line in lines})
    return {lane: seq - there[lane] for lane, seq in newest.items() if there[lane] < seq}


def missing(told, lines):
    """Which acknowledged receipts are in none of these lines, by edge."""
    there = {line.get("receipt_hash") for line in lines}
    lost = [(edge_id, decision) for receipt_hash, (decision, edge_id) in told.receipts.items() if receipt_hash not in there]
    return f"{len(lost)} of {len(told.receipts)} are missing {dict(collections.Counter(edge for edge, _ in lost))}, e.g. {lost[:3]}"


def assert_events(fleet, told):
    """The same for what the tenant sees of it: decisions, and GitHub's deliveries."""
    decisions = {decision for decision, _ in told.receipts.values()}
    for path, wanted in ((GITHUB_EVENTS, told.webhooks), ("/v1/decisions", decisions)):
        def arrived(path=path, wanted=wanted):
            listed = fleet.tenant.list(path)
            return listed if wanted <= {event["event_id"] for event in listed} else None

        listed = wait_until(f"everything acknowledged is in {path}", arrived, ARRIVED_WITHIN_S, longest_pause_s=2)
        assert not (again := repeated(event["event_id"] for event in listed)), f"{path}: events that stand twice: {again[:5]}"
        if path == "/v1/decisions":
            unverified = [event["event_id"] for event in listed if not event["verified"]]
            assert not unverified, f"{len(unverified)} decisions are not verified, e.g. {unverified[:3]}"


def in_the_lake(fleet):
    """The tenant's rows of the lake, which lies in control's folder wherever its tables do; read beside the process that writes them."""
    query = "SELECT event_id, receipt_hash, verified FROM events"
    options = ["--data", fleet.control.data, "--tenant", fleet.tenant.name, "--limit", MOST_ROWS, "--json"]
    rows = [json.loads(line) for line in fleet.control.cli("sql", query, *options).splitlines()]
    assert len(rows) < MOST_ROWS, "the answer is cut"
    return rows


def assert_lake(fleet, told):
    """L-LAKE-ONCE: every acknowledged receipt is a row of the lake once, and verified. What GitHub sent is there too; it has no receipt, and may be
    a second row behind a restart (docs/lake.md). The lake is a flush behind the bus, and reads what a fault held back when that is over."""
    def arrived():
        rows = in_the_lake(fleet)
        hashes, events = {row["receipt_hash"] for row in rows}, {row["event_id"] for row in rows}
        return rows if told.receipts.keys() <= hashes and told.webhooks <= events else None

    try:
        rows = wait_until("the lake has everything acknowledged", arrived, ARRIVED_WITHIN_S, longest_pause_s=2)
    except AssertionError as late:
        rows = in_the_lake(fleet)
        webhooks = len(told.webhooks - {row["event_id"] for row in rows})
        raise AssertionError(f"{late}\n{missing(told, rows)}; {webhooks} webhooks of {len(told.webhooks)}") from None
    wanted = collections.Counter((decision, receipt_hash) for receipt_hash, (decision, _) in told.receipts.items())
    decisions = {decision for decision, _ in wanted}
    rows = [row for row in rows if row["receipt_hash"] in told.receipts or row["event_id"] in decisions]
    there = collections.Counter((row["event_id"], row["receipt_hash"]) for row in rows)
    twice_or_other = list((there - wanted).items())
    assert there == wanted, f"{len(twice_or_other)} rows of the lake stand twice or for another event or receipt, e.g. {twice_or_other[:3]}"
    unverified = [row for row in rows if not row["verified"]]
    assert not unverified, f"{len(unverified)} acknowledged receipts are not verified in the lake, e.g. {unverified[:3]}"


def assert_no_broken_chain(fleet):
    for tenant in (fleet.tenant, fleet.watched):
        broken = [alert for alert in tenant.list("/v1/alerts") if "AEG-3004" in json.dumps(alert)]
        assert not broken, f"a failure is no broken chain: {json.dumps(broken[:2])}"


def assert_a_storm_is_contained(fleet):
    """Detection and response work: an agent that is denied five times at one edge is frozen at all."""
    agent = fleet.watched.register_agent()
    edges = fleet.running_edges
    for number in range(STORM):
        answer = edges[number % len(edges)].ask(agent, tool="unheard", action="of")
        assert answer["decision"] == "deny", answer
    for edge in edges:
        frozen = lambda edge=edge: edge.would(agent, action="read_customer", mutates_state=False)["reason"] == "agent_frozen"
        wait_until(f"a storm is contained at {edge.edge_id}", frozen, ARRIVED_WITHIN_S)


def assert_whole(fleet, told):
    """All of it. The load must have stopped."""
    assert_nothing_wrong(told)
    # First: it writes receipts of its own.
    assert_approvals(fleet, told, lambda: exported(fleet))
    lines = assert_receipts(fleet, told)
    assert_events(fleet, told)
    assert_no_broken_chain(fleet)
    assert_a_storm_is_contained(fleet)
    assert_seen_once(fleet.tenant, lines, lambda: exported(fleet), ARRIVED_WITHIN_S)
    # Last: by now it has been written, and one query tells.
    assert_lake(fleet, told)
    return lines
