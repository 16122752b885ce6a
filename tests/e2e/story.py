"""What every part of the story stands on: an instance for a class, a tenant and an agent for a test."""

import datetime
import hashlib
import unittest

from harness import Aegis
from receipts import canonical, check_chain
from waiting import wait_until

HEX = r"^[0-9a-f]{64}$"


def action_hash(tool_call):
    """As CONTRACTS section 1 has it, computed apart from the program."""
    five = {"tool": tool_call["tool"], "action": tool_call["action"], "resource": tool_call.get("resource"),
            "mutates_state": tool_call["mutates_state"], "parameters": tool_call["parameters"]}
    return hashlib.sha256(canonical(five)).hexdigest()


class Story(unittest.TestCase):
    """One instance for the whole class; a tenant for each test."""

    @classmethod
    def setUpClass(cls):
        cls.aegis = Aegis()
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()

    def setUp(self):
        self.tenant = self.aegis.tenant().register_tools()
        # Denies are what these tests are made of: detection must not freeze their agents for it.
        self.tenant.settings(automatic_freezes_per_hour=0)
        self.agent = self.tenant.register_agent().until_tools_are_known()

    def assert_decided(self, answer, decision, reason=None, policy=None):
        self.assertEqual(answer["decision"], decision, answer)
        if reason is not None:
            self.assertEqual(answer["reason"], reason)
        if policy is not None:
            self.assertIn(policy, answer["matched_policies"])

    def events(self, kind, agent=None):
        agent = f"&agent_id={agent.id}" if agent else ""
        return self.tenant.list(f"/v1/audit/events?kind={kind}{agent}")

    def event(self, kind, **columns):
        """The one event of this kind with these columns, once it has arrived."""
        def found():
            return [e for e in self.events(kind) if all(e.get(name) == value for name, value in columns.items())]

        events = wait_until(f"a {kind} event with {columns}", found)
        self.assertEqual(len(events), 1, events)
        return events[0]

    def assert_chained(self):
        """The tenant's export verifies under the pinned keys, and by this suite's own arithmetic."""
        lines = self.tenant.export()
        check_chain(lines)
        self.assertEqual(self.aegis.verify(lines)["verdict"], "valid")
        return lines


def now(offset_s=0):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)).isoformat().replace("+00:00", "Z")
