"""Random histories for a rule: events in which the words that its query names are common, at times that lie on and around its
frames, in an order of arrival that is no more than the lateness apart from the order of time."""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta

import yaml

NAMESPACE = uuid.UUID(int=0x6165_6769_732D_6578_7465_726E_616C_3031)
"""The namespace of ids that are derived from (tenant, adapter, delivery id), as in aegis-model."""

START = datetime(2026, 1, 1, tzinfo=UTC)
"""Time zero of a rule test."""

MOST_APART_MS = 100_000
"""Less than the lateness of 120 s: no event may be late."""

UNITS_MS = {"SECOND": 1_000, "MINUTE": 60_000, "HOUR": 3_600_000}
DAY_MS = 24 * 3_600_000

PAUSES_MS = {
    "first_seen": [DAY_MS, 30 * DAY_MS, 90 * DAY_MS],
    "baseline": [3_600_000, 3_600_000, 7_200_000, DAY_MS, 7 * DAY_MS],
    "registry": [60_000, 3_600_000, 3_600_000, 3_600_000, 3_600_000, 3_600_000, DAY_MS, 90 * DAY_MS],
    "registry_action": [60_000, 3_600_000, 3_600_000, DAY_MS, 90 * DAY_MS],
}
"""What of the time before an event the side tables tell apart."""

VOCABULARY = {
    "agent_id": ["a1", "a1", "a2", "a3", "a4", "a5", "a6", None],
    "edge_id": ["edge-1", "edge-1", "edge-2", "edge-3"],
    "tool": ["github", "github", "mail", None],
    "action": ["merge", "merge", "read", None],
    "decision": ["allow", "allow", "deny", "deny", "require_approval", None],
    "reason": [None, None, "policy_denied"],
    "status": ["APPROVED", "REJECTED", None],
    "environment": ["production", "staging", None],
    "resource": ["org/one#1", "Org/One", "org/two#7", "org/three", "x", None],
    "target": ["a@x", "A@X", "b@x", "c@x", "d@x", "e@x", "f@x", None],
    "destination": ["external", "external", "internal", None],
    "data_access": ["sensitive", "sensitive", "internal", "none", None],
    "mutates_state": [True, True, False, None],
    "contains_sensitive_data": [False, True, None],
    "source_trust": ["trusted_internal_signed", "trusted_internal_unsigned", "semi_trusted_customer", "unknown",
                     "untrusted_external", "malicious_suspected", None],
    "risk_level": ["low", "high", "critical", None],
    "run_id": ["r1", "r2", "r3", None],
    "policy_digest": ["p1", "p2", None],
    "action_hash": ["h1", "h1", "h2", "h3", None],
    "nonce_hash": ["n1", "n2", "n3", None],
    "approver": ["ann", "ann", "bob"],
    "approval_id": ["x1", "x2", "x3", None],
    "token_id": ["k1", "k2"],
    "user_id": ["u1", "u2", None],
    "clock_suspect": [False, False, True],
    "verified": [True, True, True, False],
}
"""Values of the columns; those that a rule's query compares with are added."""

KINDS = ["authorize_decision", "tool_outcome", "approval_decided"]


def event_id(tenant, label):
    """The id that a rule test gives the event with this label."""
    return str(uuid.uuid5(NAMESPACE, f"{tenant}\0rule-test\0{label}"))


def words_of(query):
    """What the query compares columns with: column to texts."""
    found = {}
    for column, words in re.findall(r"(\w+)\s*(?:=|<>|(?:NOT\s+)?IN)\s*(\([^()]*\)|'[^']*')", query):
        found.setdefault(column, []).extend(re.findall(r"'([^']*)'", words))
    for column, words in re.findall(r"coalesce\((\w+), ''\) (?:NOT )?IN\s*(\([^()]*\))", query):
        found.setdefault(column, []).extend(re.findall(r"'([^']*)'", words))
    return found


def frames_of(query):
    """The lengths of the query's frames, milliseconds."""
    return sorted({int(n) * UNITS_MS[unit] for n, unit in re.findall(r"INTERVAL '(\d+)' (SECOND|MINUTE|HOUR)", query)}) or [10_000]


def times(rng, frames, pauses, count):
    """Ascending times in milliseconds: bursts, ties, and distances of exactly a frame, or a pause, and one millisecond more."""
    frame = rng.choice(frames)
    dense = max(frame // rng.choice([200, 60, 15]), 1)
    patience = rng.choice([0.02, 0.1, 0.3]) if pauses else 0
    now, result = 0, []
    for _ in range(count):
        step = rng.random()
        if result and rng.random() < patience:
            now = max(now, rng.choice(result[-10:]) + rng.choice(pauses) + rng.choice([0, 0, 1, -1, 60_000]))
        elif step < 0.12:
            now += 0
        elif step < 0.90:
            now += rng.randrange(dense + 1)
        elif step < 0.94:
            now += rng.choice([1, frame // 2])
        elif result:
            # Exactly as far from an earlier event as a frame is long, or one more.
            now = max(now, rng.choice(result[-40:]) + frame + rng.choice([0, 0, 1]))
        result.append(now)
    return result


def history(rng, rule, count):
    """Events in the order of arrival, each a dict as a rule test has them, with `ms` beside."""
    words = words_of(rule.query)
    kinds = words.get("kind") or KINDS
    # In each history most columns have a usual value, and a few are spread: what is counted, and what is counted by.
    usual = {name: rng.choice(words.get(name, []) * 2 + values) for name, values in VOCABULARY.items()}
    spread = set(rng.sample(sorted(VOCABULARY), rng.choice([1, 3, 6, len(VOCABULARY)])))
    loyalty = rng.choice([0.6, 0.85, 0.97])
    usual |= {"kind": rng.choice(kinds), "tenant_id": "t1", "verified": True}
    values = VOCABULARY | {"kind": kinds + KINDS, "tenant_id": ["t1", "t2"]}
    events = []
    pauses = [pause for table in rule.sides for pause in PAUSES_MS[table]]
    for index, ms in enumerate(times(rng, frames_of(rule.query), pauses, count)):
        event = {"ms": ms, "id": f"e{index}"}
        for name in values:
            if name not in spread and rng.random() < loyalty:
                event[name] = usual[name]
            else:
                event[name] = rng.choice(values[name] + words.get(name, []))
        if event["kind"].startswith("external_event:"):
            event["verified"] = False
        if "registry" in rule.sides:
            # Few agents, of which much is said: whoever is held at an event was held by several records.
            event |= {"agent_id": rng.choice(["a1", "a2", "a3", "a4", event["agent_id"]])}
            if rng.random() < 0.5:
                event |= record_of_actions(rng) if "registry_action" in rule.sides and rng.random() < 0.8 else record_of_control(rng, ms)
        events.append(event)
    if "registry" in rule.sides:
        end_at_events(rng, events)
    events.sort(key=lambda event: event["ms"] + rng.randrange(MOST_APART_MS) * rng.choice([0, 0, 1]))
    return with_places(events)


def end_at_events(rng, events):
    """Holds that last until some time last until that of another event, or a millisecond more or less."""
    for place, event in enumerate(events):
        said = json.loads(event.get("attributes") or "{}")
        if said.get("until") and rng.random() < 0.8:
            ms = rng.choice(events[place : place + 12])["ms"] + rng.choice([0, 0, 1, -1])
            event["attributes"] = json.dumps(said | {"until": written_time(ms)})


def written_time(ms):
    return (START + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def record_of_control(rng, ms):
    """What control says of an agent: that it is registered, held, free again, or never more to be used. Now and then somebody else says so."""
    edge = rng.choice(["control"] * 9 + ["edge-1"])
    agent = rng.choice(["a1", "a1", "a2", "a3", "a4"])
    # Mostly of one tenant, and proved: what is not makes nobody held.
    sure = {"tenant_id": "t1", "verified": True} if rng.random() < 0.9 else {}
    if rng.random() < 0.4:
        registered = {"id": agent, "agent_key": rng.choice(["k", agent]), "owner_team": rng.choice(["billing", "billing", "billing", "sales", None])}
        registered |= {"environment": "production", "risk_tier": rng.choice(["low", "high"]), "trust_ceiling": "unknown"}
        reason = rng.choice(["agent_registered", "agent_registered_again", "agent_registered", "tool_registered"])
        return sure | {"kind": "config_changed", "edge_id": edge, "reason": reason, "attributes": json.dumps({"agent": registered})}
    status = rng.choice(["applied"] * 10 + ["released"] * 6 + ["revoked"])
    until = written_time(ms + rng.choice([0, 1, 60_000, 3_600_000])) if status == "applied" and rng.random() < 0.4 else None
    held = {"target_type": "agent", "kind": rng.choice(["freeze", "freeze", "quarantine"]), "until": until}
    return sure | {"kind": "containment_applied", "edge_id": edge, "agent_id": agent, "status": status, "attributes": json.dumps(held)}


def record_of_actions(rng):
    """What control says of a tool's actions: how each is registered, and what it was, where that is something else; or that one is gone."""
    edge = rng.choice(["control"] * 9 + ["edge-1"])
    sure = {"tenant_id": "t1", "verified": True} if rng.random() < 0.9 else {}

    def facts():
        risk, approval = rng.choice(["low", "low", "medium", "high", "critical"]), rng.random() < 0.4
        return {"risk": risk, "mutates_state": rng.random() < 0.8, "data_access": rng.choice(["none", "sensitive"]), "destination": "internal",
                "approval_required": approval, "default_decision": rng.choice(["policy", "policy", "deny"])}

    actions, removed = [], []
    for action in rng.choice([["merge"], ["merge"], ["read"], ["merge", "read"]]):
        if rng.random() < 0.2:
            removed.append(facts() | {"action": action})
        else:
            # Now and then the very same again.
            said = {"risk": "high", "mutates_state": True, "data_access": "none", "destination": "internal", "approval_required": True, "default_decision": "policy"}
            said = said if rng.random() < 0.3 else facts()
            actions.append(said | {"action": action} | ({"was": facts()} if rng.random() < 0.5 else {}))
    reason = rng.choice(["tool_registered", "tool_registered", "tool_registered_more", "agent_registered"])
    said = {"tool": rng.choice(["github", "github", "github", "mail"]), "actions": actions, "removed": removed}
    return sure | {"kind": "config_changed", "edge_id": edge, "reason": reason, "attributes": json.dumps(said)}


DEFAULTS = dict.fromkeys([*VOCABULARY, "attributes"]) | {"tenant_id": "t1", "edge_id": "edge-1", "kind": "authorize_decision", "clock_suspect": False}
"""What a rule test fills in where an event does not say it; `verified` goes by the kind."""


IGNORED = {"id", "lane", "seq", "ref", "source", "trace_id"}
"""What a history does not take over from a rule test: no query here asks for it, or the judge fills it in."""


def parse_offset(text):
    """Milliseconds of `10s` after the start."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}[unit]


def tests_of(folder):
    """The events of a rule's own tests, where they have only columns that histories have."""
    found = []
    for file in sorted(folder.glob("tests/*.yaml")):
        test = yaml.safe_load(file.read_text(encoding="utf-8"))
        events = []
        for written in test["events"]:
            columns = test.get("defaults", {}) | written
            event = DEFAULTS | {"ms": parse_offset(columns.pop("at"))} | {k: v for k, v in columns.items() if k not in IGNORED}
            event.setdefault("verified", None)
            if event["verified"] is None:
                event["verified"] = not event["kind"].startswith("external_event:")
            events.append(event)
        if events and all(set(event) <= set(DEFAULTS) | {"ms"} for event in events):
            found.append(events)
    return found


def exactly(test):
    """A test of the rule's own as it is."""
    return with_places([event | {"id": f"e{number}"} for number, event in enumerate(test)])


def near(rng, rule, tests):
    """A test of the rule's own, a little changed: what all but fires, and what just does, between other events."""
    words, frames = words_of(rule.query), frames_of(rule.query)
    events = []
    for event in rng.choice(tests):
        if rng.random() < 0.04:
            continue
        event = dict(event)
        if rng.random() < 0.15:
            event["ms"] = max(event["ms"] + rng.choice([-1, 1, -1_000, 1_000, rng.choice(frames)]), 0)
        if rng.random() < 0.08:
            name = rng.choice(sorted(VOCABULARY))
            event[name] = rng.choice(VOCABULARY[name] + words.get(name, []))
        events.append(event)
    others = history(rng, rule, rng.choice([0, 0, 5, 20]))
    events += [{k: v for k, v in other.items() if k not in ("id", "lane", "seq")} for other in others]
    return arriving(rng, events)


def together(rng, of_sources):
    """Tests of several rules as one history, in which their agents are the same ones: what a rule on rules is about."""
    events = []
    for tests in rng.sample(of_sources, min(rng.choice([2, 3, 4, 5]), len(of_sources))):
        test, shift = rng.choice(tests), rng.choice([0, 600_000, 3_000_000, 3_600_000, 5_000_000])
        agents = sorted({event["agent_id"] for event in test if event["agent_id"]})
        names = dict(zip(agents, rng.sample(["a1", "a1", "a1", "a2", "a3"], 5), strict=False))
        for event in test:
            events.append(event | {"agent_id": names.get(event["agent_id"], event["agent_id"]), "ms": event["ms"] + shift})
    return arriving(rng, events)


def apart(events):
    """The same events, no two of one time: alerts of one time have an order of their own, which no event tells."""
    taken, moved = set(), []
    for event in events:
        ms = event["ms"]
        while ms in taken:
            ms += 1
        taken.add(ms)
        moved.append(event | {"ms": ms})
    return moved


def arriving(rng, events):
    """Events with labels and places, in an order of arrival in which none is late."""
    for number, event in enumerate(events):
        event["id"] = f"e{number}"
        if event["kind"].startswith("external_event:"):
            event["verified"] = False
    events.sort(key=lambda event: event["ms"] + rng.randrange(MOST_APART_MS) * rng.choice([0, 0, 1]))
    return with_places(events)


def with_places(events):
    """Adds lane and seq as a rule test fills them in: by order of arrival."""
    seqs = {}
    for event in events:
        if event["kind"].startswith("external_event:"):
            event["lane"], event["seq"] = None, None
            continue
        lane = f"{event['tenant_id']}.{event['edge_id']}.1"
        seqs[lane] = seqs.get(lane, 0) + 1
        event["lane"], event["seq"] = lane, seqs[lane]
    return events
