"""The real program, and a tenant with its people and an agent. AEGIS_BIN names the program; `test.sh` does not start without one."""

import contextlib
import os
import sys
import threading

import pytest
from where import REPOSITORY

import aegisagent

if "AEGIS_BIN" not in os.environ:
    pytest.skip("AEGIS_BIN names no program", allow_module_level=True)
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))
from harness import Aegis, wait_until

__all__ = ["READ", "REFUND", "Aegis", "World", "wait_until"]

READ = {"action": "read_customer", "mutates_state": False, "risk": "low"}
REFUND = {"action": "refund"}


class World:
    """A tenant with its people, and an agent."""

    def __init__(self, aegis):
        self.aegis = aegis
        self._open = contextlib.ExitStack()
        self._threads = []
        self.tenant = aegis.tenant().register_tools()
        self.tenant.settings(automatic_freezes_per_hour=0)
        self.url = f"http://127.0.0.1:{aegis.port}"
        self.admin = self.client(self.tenant.admin)
        self.approver = self.client(self.tenant.key("approver", "rita", groups=("security",)))
        self.agent = self.client(self.tenant.registrar).register("bot", "Bot", environment="production", risk_tier="low")

    def client(self, key):
        return self._open.enter_context(aegisagent.Client(self.url, key))

    def close(self):
        for thread in self._threads:
            thread.join(60)
        self._open.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def call(self, mode, function, *args, trust="trusted_internal_unsigned", **how):
        """Calls `function` protected, for work of this label, in a run of its own."""
        with aegisagent.source_trust(trust), aegisagent.run(os.urandom(8).hex()):
            defaults = {"action": "update_customer", "resource": "customer-1"}
            return mode.run(self.url, lambda protect: protect(function, **(defaults | how))(*args), token=self.agent.agent_token)

    def when_asked(self, act):
        """`on_pending` that has `act(approval_id)` done by somebody else, once control has the approval."""

        def begin(pending):
            def decide():
                wait_until("control has the approval", lambda: self.has(pending.approval_id))
                act(pending.approval_id)

            self._threads.append(threading.Thread(target=decide, daemon=True))
            self._threads[-1].start()

        return begin

    def has(self, approval_id):
        try:
            return self.approver.approval(approval_id)
        except aegisagent.ApiError as error:
            assert error.code == "approval_not_found", error
            return None

    def outcomes(self):
        return [event["status"] for event in self.tenant.list("/v1/audit/events?kind=tool_outcome")]

    def kinds(self):
        return [event["kind"] for event in self.tenant.list("/v1/audit/events")]
