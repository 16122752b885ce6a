"""What waits for a person must come through a fault as well: each action that an edge said it would hold is shown by control, bound to its hash, and
once somebody approves it exactly one of those who consume it at once may act."""

import collections
import threading
from concurrent.futures import ThreadPoolExecutor

from waiting import wait_until

# How many are approved and consumed behind each fault: the newest, which have not expired.
CONSUMED = 4
ARRIVED_WITHIN_S = 180


def assert_approvals(fleet, told, exported):
    """`exported`: reads the tenant's receipts."""
    wanted = {approval_id: action_hash for approval_id, (action_hash, _) in told.approvals.items()}
    assert wanted, "nothing was held"
    assert_shown(fleet, wanted)
    newest = list(told.approvals.items())[-CONSUMED:]
    for approval_id, (action_hash, agent) in newest:
        assert_consumed_once(fleet, approval_id, action_hash, agent)
    assert_receipts_of(dict(newest), exported)


def assert_shown(fleet, wanted):
    """Each once, with the hash that the agent was told."""
    def shown():
        entries = fleet.tenant.list("/v1/approvals")
        return entries if wanted.keys() <= {entry["approval_id"] for entry in entries} else None

    try:
        entries = wait_until("control shows every action that was held", shown, ARRIVED_WITHIN_S, longest_pause_s=2)
    except AssertionError as late:
        there = {entry["approval_id"] for entry in fleet.tenant.list("/v1/approvals")}
        lost = sorted(wanted.keys() - there)
        raise AssertionError(f"{late}: {len(lost)} of {len(wanted)} are missing, e.g. {lost[:3]}") from None
    twice = [approval_id for approval_id, count in collections.Counter(entry["approval_id"] for entry in entries).items() if count > 1]
    assert not twice, f"approvals that are shown twice: {twice[:3]}"
    other = [entry for entry in entries if entry["action_hash"] != wanted.get(entry["approval_id"], entry["action_hash"])]
    assert not other, f"approvals of another action than the one that was held: {other[:2]}"


def assert_consumed_once(fleet, approval_id, action_hash, agent):
    """Approved by a person, and consumed at two edges at once."""
    approver = fleet.tenant.key("approver", groups=["*"])
    approved = fleet.tenant.post(f"/v1/approvals/{approval_id}/approve", {"action_hash": action_hash}, key=approver).expect(200)
    assert approved["status"] == "APPROVED", approved
    edges = (fleet.running_edges * 2)[:2]
    start = threading.Barrier(len(edges))

    def consume(edge):
        start.wait()
        return edge.post(f"/v1/approvals/{approval_id}/consume", agent.token, {"claimed_action_hash": action_hash})

    with ThreadPoolExecutor(len(edges)) as together:
        replies = sorted(together.map(consume, edges), key=lambda reply: reply.status)
    assert [reply.status for reply in replies] == [200, 409] and replies[1].code == "approval_consumed", replies
    shown = fleet.tenant.get(f"/v1/approvals/{approval_id}").expect(200)
    assert shown["status"] == "CONSUMED", shown


def assert_receipts_of(newest, exported):
    def consumed():
        lines = [line for line in exported() if line["kind"] == "approval_consumed"]
        return collections.Counter(line["receipt"]["approval_id"] for line in lines)

    counts = wait_until("each consume has a receipt", lambda: (found := consumed()).keys() >= newest.keys() and found, ARRIVED_WITHIN_S, longest_pause_s=2)
    twice = {approval_id: count for approval_id, count in counts.items() if count != 1}
    assert not twice, f"approvals with more than one receipt of their consumption: {twice}"
