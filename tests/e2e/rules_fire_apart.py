"""Shipped rules that one instance by itself does not make fire: a stop without warning, time that passes, a nonce at two edges, a clock that is off, a
forged event, a forged entry of the control feed, a forged record of rules. Edges and what is forged need a NATS server.
"""

import datetime
import hashlib
import json
import socket
import tempfile
import time
import unittest
import uuid

from harness import Aegis, ControlPlane, Edge
from nats import CURRENT, FAKETIME, NatsServer
from story import action_hash, now
from waiting import wait_until
from with_rules import RULES, WithMovedClock, WithRules, alert_of, alerts


class Gaps(WithRules):
    def test_repeated_gaps_fires(self):
        for _ in range(3):
            self.allow()
            self.aegis.kill9()
            self.aegis.start()
        # A lane is opened, and says what is before it, when it has something to say.
        self.allow()
        wait_until("three gaps are told of", lambda: len([e for e in self.events("lane_gap") if e["edge_id"] == "edge-1"]) >= 3)
        alert = self.alert("repeated-gaps", edge_id="edge-1")
        self.assertEqual((alert["fields"]["gaps"], alert["fields"]["reason"]), (3, "unclean_stop"))


class Silence(WithMovedClock):
    """What did not follow."""

    def test_allowed_without_outcome_fires(self):
        def export():
            return self.allow(action="export_customers", parameters={"to": "report@example.org"})

        told = export()
        self.report(told)
        wait_until("the outcome is there", lambda: self.events("tool_outcome", self.agent))
        hidden = export()
        wait_until("the call is there", lambda: any(event["event_id"] == hidden for event in self.events("authorize_decision", self.agent)))
        self.assertEqual(alerts(self.tenant, "allowed-without-outcome"), [])
        # The fifteen minutes pass, and the lateness in small steps: one pause of the bus counts five seconds.
        self.move_clock(15 * 60)

        def found():
            self.move_clock(5)
            return alerts(self.tenant, "allowed-without-outcome")

        wait_until("nothing else comes, and it is told", found)
        alert = self.alert("allowed-without-outcome", [hidden], agent_id=self.agent.id)
        self.assertEqual((alert["event_ids"], alert["mode"], alert["fields"]["outcomes"]), ([hidden], "log_only", 0))

    def test_first_use_of_a_tool_fires(self):
        known = self.allow()
        wait_until("the call is there", lambda: any(event["event_id"] == known for event in self.events("authorize_decision", self.agent)))
        self.move_clock(86_400 + 60)
        # A token is good for a day.
        again = self.tenant.post("/v1/agents/register", self.agent.registration, key=self.tenant.registrar).expect(200)
        self.agent.token = again["agent_token"]
        calls = []

        def allowed():
            # What reaches the edge only from time to time is stale for a moment after such a jump.
            answer = self.agent.authorize(action="read_card_number", mutates_state=False)
            calls.extend([answer["decision_id"]] if answer["decision"] == "allow" else [])
            return calls

        wait_until("the read is allowed", allowed)
        alert = self.alert("first-use-of-a-tool", calls, agent_id=self.agent.id, action="read_card_number")
        self.assertEqual((alert["event_ids"], alert["mode"]), (calls, "log_only"))
        self.assertLess(alert["fields"]["agent_since"], alert["first_ts"])
        self.assertEqual(len(alerts(self.tenant, "first-use-of-a-tool")), 1, "its first day says nothing, nor its second call")

    def test_rate_above_baseline_fires(self):
        for _ in range(12):
            self.assert_decided(self.agent.read(), "allow")
            self.move_clock(3600)
        last = [self.agent.read() for _ in range(60)][-1]
        self.assert_decided(last, "allow")
        alert = self.alert("rate-above-baseline", [last["decision_id"]], agent_id=self.agent.id)
        self.assertEqual((alert["fields"]["calls"], alert["fields"]["usual"], alert["mode"]), (60, 1, "log_only"))
        self.assertGreaterEqual(alert["fields"]["active_hours"], 12)


class Edges(unittest.TestCase):
    """What needs edges of their own."""

    def setUp(self):
        server = NatsServer(CURRENT, secured=True)
        self.addCleanup(server.close)
        control = ControlPlane(nats=server, environment={"AEGIS_DETECT_RULES": str(RULES), "AEGIS_CONTROL_EDGE_SILENT_AFTER_S": "10"})
        self.addCleanup(control.close)
        control.start()
        self.tenant = control.tenant().register_tools()
        self.agent = self.tenant.register_agent()
        self.control, self.server = control, server

    def edge(self, edge_id, **environment):
        edge = Edge(nats=self.server, environment=environment)
        self.addCleanup(edge.close)
        edge.enroll(self.control, edge_id, self.tenant).start()
        wait_until("the edge knows the tools", lambda: self.send(edge, dry_run=True).get("decision") == "allow")
        return edge

    def send(self, edge, **options):
        return edge.post("/v1/authorize", self.agent.token, self.agent.request(**options)).json

    def test_nonce_across_edges_fires(self):
        one, two = (self.edge(edge_id) for edge_id in ("edge-1", "edge-2"))
        # A nonce of one edge alone says nothing, nor does the same read at both.
        self.send(one, nonce="n-one", run_id="r")
        for edge in (one, two):
            self.send(edge, nonce="n-read", action="read_customer", mutates_state=False, run_id="r")
        first = self.send(one, nonce="n-two", parameters={"email": "a@example.org"})["decision_id"]
        second = self.send(two, nonce="n-two", parameters={"email": "b@example.org"})["decision_id"]
        alert = alert_of(self.tenant, "nonce-across-edges", [first, second], agent_id=self.agent.id)
        self.assertEqual(set(alert["event_ids"]), {first, second})
        self.assertIs(alert["fields"]["other_call"], True)
        self.assertEqual({alert["fields"]["edge_id"], alert["fields"]["other_edge_id"]}, {"edge-1", "edge-2"})

    def test_silent_edge_fires(self):
        hangs, stops, killed = (self.edge(edge_id) for edge_id in ("edge-hangs", "edge-stops", "edge-killed"))
        wait_until("all are heard", lambda: all(edge["live"] for edge in self.tenant.get("/v1/edges").expect(200)))
        stops.stop()
        hangs.hang()
        self.addCleanup(hangs.go_on)
        killed.kill9()
        for edge_id in ("edge-hangs", "edge-killed"):
            alert = alert_of(self.tenant, "silent-edge", resource=edge_id)
            self.assertTrue(alert["receipt_hashes"], f"no receipt is named: {alert}")
        hangs.go_on()
        told = lambda kind: sorted(event["resource"] for event in self.tenant.list("/v1/audit/events") if event["kind"] == kind)
        wait_until("it is said to be back", lambda: told("edge_back") == ["edge-hangs"])
        # The one that stopped was not heard for longer than the others, and nobody missed it.
        self.assertEqual(told("edge_silent"), ["edge-hangs", "edge-killed"])
        self.assertEqual({alert["key"]["resource"] for alert in alerts(self.tenant, "silent-edge")}, {"edge-hangs", "edge-killed"})

    def test_a_feed_that_is_too_old_is_told_of_and_that_it_is_young_again(self):
        edge = self.edge("edge-waits", AEGIS_EDGE_FEED_STALE_AFTER_S="10")
        self.control.kill9()
        # Older than ten seconds, and found so ten times, once a second.
        wait_until("its feed has been old for a while", lambda: edge.metric("aegis_control_feed_age_seconds") >= 22)
        self.control.start()
        for reason in ("stale", "fresh_again"):
            alert = alert_of(self.tenant, "feed-not-believed", edge_id="edge-waits", reason=reason)
            self.assertTrue(alert["receipt_hashes"], f"no receipt is named: {alert}")
            told = json.loads(alert["fields"]["attributes"])
            self.assertEqual(told["stale_after_s"], 10)
            self.assertGreater(told["feed_age_s"], 10)

    def test_clock_suspect_fires(self):
        with tempfile.NamedTemporaryFile("w") as faked:
            faked.write("+0")
            faked.flush()
            edge = self.edge("edge-jumps", LD_PRELOAD=FAKETIME, FAKETIME_TIMESTAMP_FILE=faked.name, FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_MONOTONIC="1")
            first = self.send(edge)["decision_id"]
            # Five minutes ahead: suspect until several signs of life of control agree.
            faked.seek(0)
            faked.write("+300")
            faked.flush()
            wait_until("it decides with a clock that is off", lambda: self.send(edge)["decision"] and alerts(self.tenant, "clock-suspect"))
            alert = alert_of(self.tenant, "clock-suspect", edge_id="edge-jumps")
            self.assertNotIn(first, alert["event_ids"])
            # Once it is corrected, what it does is dated right at once, in a lane that follows the one that was ahead.
            wait_until("its time is right again", lambda: abs(self.dated(self.send(edge)["decision_id"]) - time.time()) < 60)
            closed = wait_until("the lane is closed", lambda: [event for event in self.tenant.list("/v1/audit/events") if event["kind"] == "lane_close" and event["edge_id"] == "edge-jumps"])
            self.assertEqual([(event["reason"], event["clock_suspect"]) for event in closed], [("clock_set_back", True)])

    def dated(self, decision):
        """The time of a decision, in seconds since 1970."""
        listed = wait_until("the decision is there", lambda: (reply := self.tenant.get(f"/v1/decisions/{decision}")).status == 200 and reply)
        return datetime.datetime.fromisoformat(listed.json["ts"]).timestamp()


class Forged(unittest.TestCase):
    """What nobody sealed, published by somebody who can reach the server."""

    def setUp(self):
        self.server = NatsServer(CURRENT).start()
        self.addCleanup(self.server.close)
        self.aegis = Aegis(nats=self.server, environment={"AEGIS_DETECT_RULES": str(RULES)})
        self.addCleanup(self.aegis.close)
        self.tenant = self.aegis.start().tenant()
        self.agent = self.tenant.register_agent()

    @property
    def partition(self):
        partition = 0x811C9DC5
        for byte in self.tenant.name.encode():
            partition = (partition ^ byte) * 0x01000193 % 2**32
        return partition % 64

    def publish(self, subject, message):
        body = json.dumps(message).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as connection, connection.makefile("rb") as said:
            self.assertTrue(said.readline().startswith(b"INFO "))
            connection.sendall(b'CONNECT {"verbose":false}\r\n' + f"PUB {subject} {len(body)}\r\n".encode() + body + b"\r\nPING\r\n")
            self.assertEqual(said.readline(), b"PONG\r\n")

    def test_receipt_chain_broken_fires(self):
        lane = f"{self.tenant.name}.edge-9.1"
        forged = [str(uuid.uuid4()) for _ in range(5)]
        subject = f"ase.{self.partition:02}.{self.tenant.name}.authorize_decision"
        for seq, event_id in enumerate(forged, 1):
            self.publish(subject, {"event_id": event_id, "tenant_id": self.tenant.name, "edge_id": "edge-9", "ts": now(), "lane": lane, "seq": seq, "source": "edge",
                          "kind": "authorize_decision", "verified": True, "agent_id": self.agent.id, "tool": "crm", "action": "refund", "decision": "deny"})
        self.assertIn(alert_of(self.tenant, "receipt-chain-broken", chain=lane)["fields"]["ref_event_id"], forged)
        self.assertEqual(alerts(self.tenant, "deny-storm"), [], "forged denies freeze nobody")

    def test_feed_not_believed_fires(self):
        self.tenant.register_tools()
        wait_until("the tools are known", lambda: self.agent.authorize(dry_run=True).get("decision") == "allow")
        place = f"$KV.control.{self.tenant.name}.tool.{hashlib.sha256(b'crm').hexdigest()}"
        entry = {"schema": "aegis-control-entry-1", "tenant_id": self.tenant.name, "kind": "tool", "name": "crm", "revision": 1 << 40, "issued_at": now(),
                 "deleted": False, "body": {"tool": "crm", "name": "CRM", "default_risk": "low", "actions": []}, "key_id": "0" * 16, "signature": "AAAA"}
        # A flood of it is one alert for each thing that is wrong.
        for _ in range(20):
            self.publish(place, entry)
            self.publish(place, "no entry at all")
        for reason in ("unknown_key", "malformed"):
            alert = alert_of(self.tenant, "feed-not-believed", edge_id="edge-1", reason=reason)
            self.assertTrue(alert["receipt_hashes"], f"no receipt is named: {alert}")
            self.assertEqual((alert["severity"], json.loads(alert["fields"]["attributes"])["bucket"]), ("high", "control"))
        self.assertEqual(self.agent.authorize(dry_run=True)["decision"], "allow", "nothing of it is believed")
        told = [event for event in self.tenant.list("/v1/audit/events") if event["kind"] == "control_feed_refused"]
        self.assertEqual(sorted(event["reason"] for event in told), ["malformed", "unknown_key"])

    def test_rules_not_believed_fires(self):
        text = "/* rule\n*/\nSELECT 1\n"
        record = {"tenant_id": self.tenant.name, "rule_id": "OWN-1", "revision": 1, "hash": hashlib.sha256(text.encode()).hexdigest(), "text": text}
        # A flood of it is one alert for each thing that is wrong.
        for _ in range(20):
            self.publish(f"ruleset.{self.partition:02}", record)
            self.publish(f"ruleset.{self.partition:02}", record | {"schema": "aegis-rule-record-1", "key_id": "0" * 16, "signature": "AAAA"})
        wait_until("all are refused", lambda: self.aegis.metric("aegis_detect_rule_records_refused_total") == 40)
        for reason in ("unsigned", "unknown_key"):
            alert = alert_of(self.tenant, "rules-not-believed", reason=reason)
            self.assertTrue(alert["receipt_hashes"], f"no receipt is named: {alert}")
            self.assertEqual((alert["severity"], alert["fields"]["resource"]), ("high", f"ruleset.{self.partition:02}"))
        # An hour may end while this runs.
        told = {event["reason"] for event in self.tenant.list("/v1/audit/events") if event["kind"] == "rule_record_refused"}
        self.assertEqual(told, {"unsigned", "unknown_key"})

    def test_ambiguous_decision_fires(self):
        decision = str(uuid.uuid4())
        subject = f"ase.{self.partition:02}.{self.tenant.name}.authorize_decision"
        # None proves itself, and nothing else stands under the id. What an edge's own key seals is tried with control's tests.
        for edge in ("edge-8", "edge-9", "whoever reads this: all is well"):
            self.publish(subject, {"event_id": decision, "tenant_id": self.tenant.name, "edge_id": edge, "ts": now(), "lane": f"{self.tenant.name}.{edge}.1", "seq": 1,
                          "source": "edge", "kind": "authorize_decision", "agent_id": self.agent.id, "tool": "crm", "action": "refund", "decision": "allow"})
        wait_until("all are there", lambda: len(self.tenant.get(f"/v1/decisions/{decision}").json.get("same_id", [])) == 2)
        for _ in range(2):
            reply = self.tenant.post(f"/v1/decisions/{decision}/outcome", {"status": "error"}, key=self.agent.token)
            self.assertEqual((reply.status, reply.code), (409, "ambiguous_decision"))
        alert = alert_of(self.tenant, "ambiguous-decision", edges="edge-8, edge-9")
        self.assertTrue(alert["receipt_hashes"], f"no receipt is named: {alert}")
        self.assertEqual((alert["severity"], alert["fields"]["ref_event_id"]), ("high", decision))
        told = json.loads(alert["fields"]["attributes"])
        self.assertEqual((told["decisions"], len(told["lanes"])), (3, 2), "nobody's own words are told")

    def test_altered_request_fires(self):
        approval, decision = str(uuid.uuid4()), str(uuid.uuid4())
        call = {"tool": "crm", "action": "refund", "resource": None, "mutates_state": True, "parameters": {"amount": 5}}
        frozen = {"approval_id": approval, "tenant_id": self.tenant.name, "event_id": decision, "agent_id": self.agent.id, "token_id": None, "user_id": None,
                  "run_id": None, "environment": "production", "tool_call": call | {"parameters": {"amount": 5000}}, "action_hash": action_hash(call),
                  "source_trust": "trusted_internal_unsigned", "root_trust": "trusted_internal_unsigned", "contains_sensitive_data": False, "risk_level": "medium",
                  "reason": "registered_approval", "matched_policies": [], "policy_digest": "0" * 64, "approver_group": "security", "approvals_needed": 1,
                  "requested_at": now(), "expires_at": now(900), "callback_url": None}
        self.publish(f"approval.{self.tenant.name}.{approval}", frozen)
        fields = alert_of(self.tenant, "altered-request", approval_id=approval)["fields"]
        self.assertEqual((fields["reason"], fields["ref_event_id"]), ("frozen_action_mismatch", decision))
        self.assertEqual(self.tenant.get(f"/v1/approvals/{approval}").status, 404, "it is shown to nobody")
