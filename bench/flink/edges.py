"""Sequences at the edges of the two rules, each of an agent of its own, and what must be told of them: no log has any that are so close."""

import collections

SECOND = 1_000_000
MINUTES = 300 * SECOND
DENY = {"decision": "deny", "reason": "policy_denied", "destination": "internal", "mutates_state": "true"}
FROZEN = DENY | {"reason": "agent_frozen"}
READ = {"decision": "allow", "reason": "policy_allowed", "data_access": "sensitive", "destination": "internal", "mutates_state": "false"}
SEND = {"decision": "allow", "reason": "policy_allowed", "destination": "external", "mutates_state": "true"}
REFUSED = SEND | {"decision": "deny"}
STORM, EXFIL = "deny-storm", "read-sensitive-then-exfil"


def at(call, *times):
    return [(time, call) for time in times]


def seconds(call, *times):
    return at(call, *(time * SECOND for time in times))


# Calls, and the rule that tells of them, with the places of the first and the last evidence and how much there is.
SEQUENCES = [
    (seconds(DENY, 0, 1, 2, 3, 60), (STORM, 0, 4, 5)),
    (at(DENY, 0, 1, 2, 3, 60 * SECOND + 1), None),
    (seconds(DENY, 0, 1, 2, 3), None),
    (seconds(DENY, 0, 50, 55, 61, 70, 75), (STORM, 1, 5, 5)),
    (seconds(FROZEN, 0, 1, 2, 3, 4), None),
    (seconds(DENY, 0, 1, 2) + seconds(FROZEN, 3) + seconds(DENY, 4, 5), (STORM, 0, 5, 5)),
    (at(READ, 0) + at(SEND, MINUTES), (EXFIL, 0, 1, 2)),
    (at(READ, 0) + at(SEND, MINUTES + 1), None),
    (at(READ, 0, 1, 2) + at(SEND, MINUTES), (EXFIL, 0, 3, 4)),
    (at(READ, 0, 1) + at(SEND, MINUTES + 1), (EXFIL, 1, 2, 2)),
    (at(SEND, 0) + at(READ, 1), None),
    (at(READ, 0) + at(REFUSED, 1), None),
]


def write(path, columns, null):
    """The table for Flink, all of it for each of two tenants; what must be told."""
    rows, told = [], []
    for tenant in ("tenant-0", "tenant-1"):
        for place, (calls, match) in enumerate(SEQUENCES):
            agent = f"agent-{place}"
            same = {"tenant_id": tenant, "agent_id": agent, "kind": "authorize_decision"}
            ids = [f"{tenant}.{agent}.{nth}" for nth in range(len(calls))]
            rows += [(time, same | call | {"event_id": event}) for (time, call), event in zip(calls, ids, strict=True)]
            if match:
                rule, first, last, evidence = match
                told.append((rule, tenant, agent, ids[first], ids[last], str(evidence)))
    with path.open("w") as table:
        for time, event in sorted(rows, key=lambda row: row[0]):
            table.write("\t".join([str(time), *(event.get(column, null) for column in columns)]) + "\n")
    return collections.Counter(told)
