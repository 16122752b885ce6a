"""The real program behind an edge that lies: what was asked is done, and the answer that comes is another one. The function does not run."""

import json
import os
import threading

import pytest
from between import changing
from world import REFUND, wait_until

import aegisagent

SWAPPED = {"note": "swapped", "amount": 1000}
OTHER = aegisagent.action_hash("crm", "refund", "customer-1", True, SWAPPED)


def failing(handler, _status, _data):
    handler.answer(500, b'{"error":{"code":"internal","message":"m"}}')


def garbage(handler, _status, _data):
    handler.answer(200, b"<html>allow</html>")


def swapped(handler, status, data):
    """Another action, hashed rightly wherever the answer says which."""
    value = json.loads(data)
    for holder in (value, value.get("approval") or {}):
        holder |= {name: OTHER for name in ("action_hash", "original_action_hash") if name in holder}
    if "tool_call" in value:
        value["tool_call"]["parameters"] = SWAPPED
    handler.answer(status, json.dumps(value).encode())


class Slow:
    """Says nothing, until the test is over."""

    def __init__(self):
        self.is_over = threading.Event()

    def __call__(self, _handler, _status, _data):
        self.is_over.wait(60)


@pytest.fixture
def slow():
    made = Slow()
    yield made
    made.is_over.set()


HOW = {
    "500": (failing, aegisagent.DeniedUnavailable, "internal"), "garbage": (garbage, aegisagent.DeniedUnverified, "bad_reply"),
    "slow": (None, aegisagent.DeniedUnavailable, "no_answer"), "another hash": (swapped, aegisagent.DeniedUnverified, "action_hash_mismatch"),
}  # fmt: skip
FEATURES = {"500": "hostile-500", "garbage": "hostile-garbage", "slow": "hostile-slow", "another hash": "hostile-hash"}


@pytest.mark.parametrize("how", [pytest.param(how, marks=pytest.mark.feature(name)) for how, name in FEATURES.items()])
@pytest.mark.parametrize("where", ["authorize", "approval", "consume"])
def test_an_edge_that_lies_about_what_the_program_said_is_a_denial(world, mode, recorder, slow, where, how):
    change, kind, code = HOW[how]
    if (where, how) == ("consume", "slow"):
        code = "consume_ambiguous"
    changed = []

    def change_of(path):
        parts = path.split("/")
        if where != (parts[-1] if parts[-1] in ("authorize", "consume", "outcome") else "approval"):
            return None
        changed.append(path)
        return change or slow

    def work(protect):
        approve = world.when_asked(world.approver.approve)
        return protect(recorder, resource="customer-1", unreachable_s=0, on_pending=approve, **REFUND)("a")

    with (
        changing(world.url, change_of) as url, aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run(os.urandom(8).hex()),
        pytest.raises(aegisagent.Denied) as denied,
    ):  # fmt: skip
        mode.run(url, work, token=world.agent.agent_token, timeout_s=3.0 if how == "slow" else 10.0)
    assert (type(denied.value), denied.value.code) == (kind, code)
    assert changed
    assert recorder.calls == []
    if where == "consume":
        # The program gave the leave, and nobody used it: what is not sure is not run.
        assert world.approver.approval(denied.value.approval_id).status == "CONSUMED"
        wait_until("the consume is an event", lambda: "approval_consumed" in world.kinds())
    assert world.outcomes() == []
