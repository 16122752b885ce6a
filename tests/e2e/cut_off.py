"""An edge that is cut off for longer than detection waits for anybody, and ships what it decided afterwards: it is caught up over the lake.

Two minutes of lateness and more have to pass by the clock of the NATS server, which is its own, so that it runs where everything does (`make test-full`)."""

import pathlib
import tempfile
import time
import unittest

from harness import NATS, ControlPlane, Edge
from waiting import wait_until
from with_nats import WithNats
from with_rules import UNTRUSTED, alerts

# Two minutes of lateness, and the rule's window; and some for an edge that is still waited for, of whom nothing comes.
CUT_OFF_S = 150
RULE = """/* rule
id: OWN-1
name: three-denied
version: 1
severity: low
window: 10s
key: [agent_id]
mode: log_only
requires: verified
owner: test
description: a test
false_positives: none
changelog:
  - {version: 1, date: 2026-11-27, note: first}
*/
SELECT agent_id, count(*) OVER w AS denied, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny'
WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW) QUALIFY denied >= 3
"""
DENIED = "events: [{at: 0s, agent_id: a, decision: deny}, {at: 1s, agent_id: a, decision: deny}, {at: AT, agent_id: a, decision: deny}]\n"


@unittest.skipUnless(NATS == "current", "it takes minutes, and the others' server is not its own")
class CutOff(WithNats):
    def setUp(self):
        self.nats = self.server(secured=True)
        self.control = ControlPlane(nats=self.nats, environment={"AEGIS_LAKE_FLUSH_S": "1"})
        self.addCleanup(self.control.close)
        self.control.start()
        self.tenant = self.control.tenant().register_tools()
        self.agent, self.other = self.tenant.register_agent(), self.tenant.register_agent()
        self.here, self.there = (self.edge(f"edge-{n}") for n in (1, 2))

    def edge(self, edge_id):
        edge = Edge(nats=self.nats)
        self.addCleanup(edge.close)
        edge.enroll(self.control, edge_id, self.tenant).start()
        wait_until("the edge knows the tools", lambda: self.decide(edge, self.other, dry_run=True)["decision"] == "allow")
        return edge

    def decide(self, edge, agent, **options):
        return edge.post("/v1/authorize", agent.token, agent.request(**options)).expect(200)

    def activate(self):
        own = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "three-denied"
        (own / "tests").mkdir(parents=True)
        (own / "rule.sql").write_text(RULE)
        (own / "tests/fires.yaml").write_text("name: three fire\n" + DENIED.replace("AT", "10s") + "expect: [{key: {agent_id: a}}]\n")
        (own / "tests/silent.yaml").write_text("name: too late\n" + DENIED.replace("AT", "10001ms") + "expect: []\n")
        self.control.cli("rules", "activate", own, "--tenant", self.tenant.name, "--data", self.control.data)
        wait_until("it runs", lambda: 'rule="of_tenants"' in self.control.get("/metrics").text)

    def told(self):
        return alerts(self.tenant, "three-denied")

    def test_what_it_ships_too_late_is_told_all_the_same(self):
        self.activate()
        self.assertEqual(self.decide(self.there, self.other)["decision"], "allow")
        self.nats.kill9()
        denied = [self.decide(self.there, self.agent, trust=UNTRUSTED) for _ in range(3)]
        self.assertEqual({answer["decision"] for answer in denied}, {"deny"})
        self.there.kill9()
        self.nats.start()
        over = time.monotonic() + CUT_OFF_S

        def is_over():
            # The tenant's time goes on, once a second.
            self.decide(self.here, self.other, action="read_customer", mutates_state=False)
            return time.monotonic() > over

        wait_until("it is cut off for long enough", is_over, 2 * CUT_OFF_S, longest_pause_s=1)
        self.assertEqual(self.told(), [])
        self.there.start()
        (alert,) = wait_until("what came too late is caught up", lambda: is_over() and self.told(), 2 * CUT_OFF_S, longest_pause_s=1)
        self.assertEqual(alert["event_ids"], [answer["decision_id"] for answer in denied])
        self.assertEqual((alert["found_late"], alert["respond"], len(alert["receipt_hashes"])), (True, [], 3))
        of_lane = [alert for alert in alerts(self.tenant, "detection-impaired") if alert["key"]["what"] == "late"]
        self.assertTrue(of_lane, "that it came too late is told as ever")
        self.assertGreaterEqual(self.control.metric("aegis_detect_late_verified_total"), 3)
        self.assertGreaterEqual(self.control.metric("aegis_detect_late_alerts_total"), 1)
        self.assertEqual(self.control.metric("aegis_detect_late_given_up_total"), 0)
