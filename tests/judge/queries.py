"""Random rules, of every shape that both engines can run: what is stateless, windows over one another, groups, sequences by joins, EXISTS and IN,
what did not follow, columns of side tables, and rules on rules."""

from rule import Rule

KEYS = ["agent_id", "agent_id", "agent_id", "edge_id", "tool", "run_id", "token_id", "resource"]
TEXTS = ["agent_id", "edge_id", "tool", "action", "resource", "target", "run_id", "decision", "source_trust", "user_id", "action_hash"]
SECONDS = [1, 5, 10, 30, 60]

CONDITIONS = [
    "decision = 'deny'", "decision <> 'deny'", "decision IN ('allow', 'require_approval')", "decision IS NULL", "decision NOT IN ('deny')",
    "kind = 'authorize_decision'", "kind IN ('tool_outcome', 'approval_decided')", "kind <> 'tool_outcome'",
    "data_access = 'sensitive'", "data_access IS DISTINCT FROM 'none'", "destination = 'external'", "coalesce(destination, 'external') = 'external'",
    "source_trust IN ('unknown', 'untrusted_external', 'malicious_suspected')", "risk_level NOT IN ('low', 'high')", "environment = 'production'",
    "mutates_state", "NOT mutates_state", "mutates_state IS NOT TRUE", "contains_sensitive_data IS NOT FALSE", "clock_suspect",
    "reason IS NULL", "reason = 'policy_denied'", "target IS NOT NULL", "lower(target) = 'a@x'", "target LIKE '%@x'", "tool = action",
    "lower(resource) LIKE 'org/%'", "coalesce(tool, '') <> 'mail'", "run_id <> 'r1'", "nullif(user_id, 'u1') IS NULL", "length(resource) > 3",
    "CASE WHEN mutates_state THEN decision = 'allow' ELSE decision = 'deny' END", "tool || '/' || action = 'github/merge'",
]  # fmt: skip
OF_SIDES = [
    "first_seen_agent_tool_action = ts", "first_seen_agent < ts", "first_seen_agent IS NULL", "ts >= first_seen_agent + INTERVAL '1' DAY",
    "first_seen_agent_tool_action > first_seen_agent", "first_seen_agent_tool_action IS NOT NULL",
    "baseline_hourly_uses >= 2", "baseline_active_hours IS NULL", "baseline_active_hours >= 2", "baseline_hourly_uses < 3",
    "registry_owner_team = 'billing'", "registry_agent_key = agent_id", "cardinality(registry_frozen_siblings) > 0", "registry_risk_tier = 'high'",
    "registry_owner_team IS NULL", "registry_trust_ceiling IS NOT NULL", "registry_environment = environment",
    "registry_action_risk IN ('low', 'medium')", "registry_action_approval_required", "NOT registry_action_mutates_state",
    "ts <= registry_action_lowered + INTERVAL '1' HOUR", "registry_action_lowered_from = 'high'", "registry_action_lowered IS NULL",
    "ts >= registry_action_since + INTERVAL '1' MINUTE", "registry_action_default_decision = 'deny'", "registry_action_data_access = data_access",
]  # fmt: skip

HEADER = """/* rule
id: R-{number}
name: {name}
version: 1
severity: low
window: {window}s
key: [{key}]
mode: log_only
requires: {requires}
{suppress}owner: soc
description: a random rule
false_positives: none
changelog:
  - {{version: 1, date: 2026-11-27, note: first version}}
*/
{query}
"""


class Draft:
    """A rule while it is made: the random numbers, what it is keyed by, and how far it looks."""

    def __init__(self, rng, sides, window=None):
        self.rng, self.sides = rng, sides
        # Where windows make lists, all of them are of one partition, and of what can be followed event by event.
        self.lists = rng.random() < 0.5
        self.key = rng.choice(KEYS)
        self.window = window or rng.choice(SECONDS)

    def condition(self, most=2):
        """A condition over columns of one event, of which none is asked for twice."""
        chosen = self.rng.sample(CONDITIONS, self.rng.randrange(1, most + 1))
        if self.sides and self.rng.random() < 0.7:
            chosen[0] = self.rng.choice([one for one in OF_SIDES if one.startswith(self.sides)])
        parts = [f"NOT ({part})" if self.rng.random() < 0.1 else part for part in chosen]
        # In parentheses: what follows IS DISTINCT FROM is taken whole by the engine's parser, an AND included.
        return "(" + self.rng.choice([" AND ", " AND ", " OR "]).join(f"({part})" for part in parts) + ")"

    def frame(self, seconds):
        """Of a window: the rows of so many seconds before each. Lists end at the row itself: else its evidence would be of another time."""
        earlier = [] if self.lists else ["INTERVAL '1' SECOND PRECEDING", "INTERVAL '1 microsecond' PRECEDING"]
        end = self.rng.choice(["CURRENT ROW"] * 6 + earlier)
        by = [self.key] if self.lists else [self.rng.choice([self.key, *KEYS]), self.rng.choice(KEYS)][: self.rng.choice([1, 1, 2])]
        return f"(PARTITION BY {', '.join(dict.fromkeys(by))} ORDER BY ts RANGE BETWEEN INTERVAL '{seconds}' SECOND PRECEDING AND {end})"

    def asked(self, over, counted="*"):
        """A comparison of what is aggregated: over a window (`OVER w`), or of a group (nothing)."""
        pick, some = self.rng.choice, self.rng.choice(TEXTS)
        only = f" FILTER (WHERE {self.condition(1)})" if self.rng.random() < 0.3 else ""
        number = pick([1, 2, 2, 3, 3, 4, 5])
        summed = [] if self.lists and over else [f"sum(CASE WHEN {self.condition(1)} THEN 1 ELSE 0 END){over} >= {number}"]
        return pick([
            f"count({counted}){only}{over} >= {number}", f"count({counted}){only}{over} = {number}", f"count({counted}){only}{over} <= {number}",
            f"count({some}){only}{over} >= {number}",
            f"count(DISTINCT {some}){only}{over} >= {pick([2, 2, 3])}", f"count(DISTINCT {some}){only}{over} = {pick([1, 2])}",
            f"min({some}){only}{over} <> max({some}){only}{over}", f"max({some}){only}{over} = {some}" if over else f"max({some}){only} = min({some})",
            f"min(ts){only}{over} <= {'ts' if over else 'max(ts)'} - INTERVAL '{pick([s for s in SECONDS if s <= self.window])}' SECOND",
            *summed,
        ])  # fmt: skip


def stateless(draft):
    return f"SELECT {draft.key}, event_id FROM events WHERE {draft.condition(3)}"


def evidence(draft, over):
    """The row itself, or all that its window has, or some of that."""
    only = f" FILTER (WHERE {draft.condition(1)})" if draft.rng.random() < 0.3 else ""
    return f"array_agg(event_id){only}{over} AS event_ids" if draft.lists else "event_id"


def windows(draft):
    over = [f" OVER {draft.frame(draft.window)}", f" OVER {draft.frame(draft.rng.choice([s for s in SECONDS if s <= draft.window]))}"]
    asked = [draft.asked(over[0])] + [draft.asked(over[1])] * draft.rng.choice([0, 0, 1])
    where = f"WHERE {draft.condition()}" if draft.rng.random() < 0.8 else ""
    return f"SELECT {draft.key}, {evidence(draft, over[0])} FROM events {where} QUALIFY {' AND '.join(asked)}"


def windows_on_windows(draft):
    below, above = draft.window, draft.rng.choice(SECONDS)
    draft.window = below + above
    inner = f"SELECT *, count(*) OVER {draft.frame(below)} AS n, min(ts) OVER {draft.frame(below)} AS since FROM events WHERE {draft.condition()}"
    over = f" OVER {draft.frame(above)}"
    where = draft.rng.choice([f"n >= {draft.rng.choice([1, 2, 3])}", f"n = {draft.rng.choice([1, 2])}", "since < ts", "since = ts"])
    return f"SELECT {draft.key}, {evidence(draft, over)} FROM ({inner}) WHERE {where} QUALIFY {draft.asked(over)}"


def groups(draft):
    by = ", ".join(dict.fromkeys([draft.key, draft.rng.choice([draft.key, *KEYS])]))
    having = " AND ".join(draft.asked("") for _ in range(draft.rng.choice([1, 1, 2])))
    only = f" FILTER (WHERE {draft.condition(1)})" if draft.rng.random() < 0.3 else ""
    return f"SELECT {draft.key}, array_agg(event_id){only} AS event_ids FROM events WHERE {draft.condition()} GROUP BY {by} HAVING {having}"


def within(draft, earlier, later):
    """How two steps of a sequence lie to each other."""
    near = f" AND {earlier}.ts >= {later}.ts - INTERVAL '{draft.rng.choice([s for s in SECONDS if s <= draft.window])}' SECOND"
    return f"{earlier}.ts {draft.rng.choice(['<', '<', '<='])} {later}.ts" + (near if draft.rng.random() < 0.5 else "")


def sequences(draft):
    key, steps = draft.key, ["a", "b", "c"][: draft.rng.choice([2, 2, 3])]
    tables = [f"(SELECT * FROM events WHERE {draft.condition()}) {step}" for step in steps]
    joined = tables[0]
    for before, step, table in zip(steps, steps[1:], tables[1:], strict=False):
        other = draft.rng.choice(["", "", f" AND {before}.{draft.rng.choice(TEXTS)} <> {step}.{draft.rng.choice(TEXTS)}"])
        joined += f" JOIN {table} ON {before}.{key} = {step}.{key} AND {within(draft, before, step)}{other}"
    if draft.rng.random() < 0.3:
        joined += f" LEFT JOIN (SELECT * FROM events WHERE {draft.condition()}) d ON d.{key} = b.{key} AND {within(draft, 'd', 'b')} WHERE d.event_id IS NULL"
    listed = ", ".join(f"{step}.event_id" for step in steps)
    return f"SELECT b.{key} AS {key}, make_array({listed}) AS event_ids FROM {joined}"


def subqueries(draft):
    key, pick = draft.key, draft.rng.choice
    some = pick([one for one in TEXTS if one != key])
    exists = f"EXISTS (SELECT 1 FROM (SELECT * FROM events WHERE {draft.condition()}) d WHERE d.{key} = w.{key} AND {within(draft, 'd', 'w')})"
    listed = f"w.{some} {{}} (SELECT {some} FROM events WHERE {draft.condition()} AND {some} IS NOT NULL)"
    asked = pick([exists, f"NOT {exists}", f"NOT {exists}", listed.format("IN"), listed.format("NOT IN")])
    return f"SELECT w.{key} AS {key}, w.event_id FROM (SELECT * FROM events WHERE {draft.condition()}) w WHERE {asked}"


def deferred(draft):
    ahead = draft.rng.choice(SECONDS)
    back = draft.rng.choice([0, *SECONDS])
    draft.window = ahead + back
    start = f"INTERVAL '{back}' SECOND PRECEDING" if back else draft.rng.choice(["CURRENT ROW", "INTERVAL '1 microsecond' FOLLOWING"])
    by = draft.rng.choice([draft.key, draft.key, draft.rng.choice(KEYS)])
    over = f"OVER (PARTITION BY {by} ORDER BY ts RANGE BETWEEN {start} AND INTERVAL '{ahead}' SECOND FOLLOWING)"
    only = f" FILTER (WHERE {draft.condition(1)})"
    asked = draft.rng.choice([f"count(*){only} {over} = 0", f"count(*){only} {over} <= 1", f"count(*) {over} >= 3", f"count(DISTINCT tool){only} {over} = 1"])
    return f"SELECT {draft.key}, event_id FROM events WHERE {draft.condition()} QUALIFY ({draft.condition(1)}) AND {asked}"


def on_rules(draft, source):
    """A rule on what another one tells."""
    key = draft.key = source.key[0]
    named = f"FROM alerts WHERE rule_name = '{source.name}'"
    number = draft.rng.choice([1, 2, 2, 3])
    if draft.rng.random() < 0.3:
        return f"SELECT {key}, array_agg(event_id) AS event_ids {named} GROUP BY {key} HAVING count(*) >= {number}"
    over = f"OVER (PARTITION BY {key} ORDER BY ts RANGE BETWEEN INTERVAL '{draft.window}' SECOND PRECEDING AND CURRENT ROW)"
    shown = draft.rng.choice(["event_id", f"array_agg(event_id) {over} AS event_ids"])
    return f"SELECT {key}, {shown} {named} QUALIFY count({draft.rng.choice(['*', 'DISTINCT event_id'])}) {over} >= {number}"


SHAPES = [stateless, windows, windows, windows, windows_on_windows, groups, groups, sequences, sequences, subqueries, subqueries, deferred]
COLUMNS = {
    "first_seen": ["first_seen_agent", "first_seen_agent_tool_action"],
    "baseline": ["baseline_hourly_uses", "baseline_active_hours"],
    "registry": ["registry_agent_key", "registry_owner_team", "registry_environment", "registry_risk_tier", "registry_trust_ceiling", "registry_frozen_siblings"],
    "registry_action": [f"registry_action_{fact}" for fact in (
        "risk", "mutates_state", "data_access", "destination", "approval_required", "default_decision", "since", "lowered", "lowered_from", "lowered_event")],
}


def columns(table):
    """A rule that tells of each event what a side table says of it, and of what it says nothing: an alert has no field that is null."""
    fields = [*COLUMNS[table], *(f"no_{name}" for name in COLUMNS[table])]
    query = f"SELECT agent_id, event_id, {', '.join(f'{name}, {name} IS NULL AS no_{name}' for name in COLUMNS[table])} FROM events"
    name = f"random-{table.replace('_', '-')}"
    return Rule(HEADER.format(number=table, name=name, window=1, key="agent_id", requires="any", suppress="", query=query), fields)


DRAFTS = 8
NAMES_OF_ALERTS = {"agent_id", "token_id", "run_id", "tool", "resource"}
"""Keys that alerts have a column of."""


def random_rules(rng, number, says_something):
    """A rule, and maybe one that reads its alerts. The first of some of which `says_something` is true, or else the last."""
    shape = SHAPES[number % len(SHAPES)]
    for _ in range(DRAFTS):
        draft = Draft(rng, rng.choice(["", "", "first_seen", "baseline", "registry", "registry_action"]))
        query = shape(draft)
        rule = written(draft, number, f"random-{number}", rng.choice(["any", "verified"]), query)
        if says_something(rule):
            break
    rules = [rule]
    if draft.key in NAMES_OF_ALERTS and shape is not deferred and rng.random() < 0.4:
        above = Draft(rng, "", window=rng.choice([10, 30, 60, 300]))
        query = on_rules(above, rule)
        rules.append(written(above, f"{number}-on", f"random-{number}-on", "any", query))
    return rules


def written(draft, number, name, requires, query):
    suppress = f"suppress: {draft.rng.choice([1, 7, 30, 120])}s\n" if draft.rng.random() < 0.4 else ""
    return Rule(HEADER.format(number=number, name=name, window=draft.window, key=draft.key, requires=requires, suppress=suppress, query=query))
