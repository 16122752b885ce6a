"""Every shipped rule, made to fire by the real program: what it is about is done over the public API, and the alert is awaited. And a day's
honest work, which raises none.

The rules are read from the repository's folder, so that a rule is tried before it is compiled in. What one program alone does not do (a nonce at two
edges, a clock that is off, a forged event) is done over a NATS server.
"""

import concurrent.futures
import datetime
import json
import pathlib
import re
import shutil
import socket
import tempfile
import time
import unittest
import uuid

from deliveries import webhook_headers
from harness import NATS, REPOSITORY, Aegis, ControlPlane, Edge
from nats import CURRENT, FAKETIME, NatsServer
from story import Story, action_hash, now
from tenants import Agent
from waiting import unique, wait_until

RULES = REPOSITORY / "rules"
UNTRUSTED = "untrusted_external"
SECRET = "the webhook secret of this tenant"


def alerts(tenant, rule=None):
    return [alert for alert in tenant.list("/v1/alerts") if rule in (None, alert["rule_name"])]


def alert_of(tenant, rule, evidence=(), **key):
    """The one alert of this rule about this key, once it is there; all of `evidence` must be in it."""
    found = wait_until(f"an alert of {rule} about {key}", lambda: [alert for alert in alerts(tenant, rule) if key.items() <= alert["key"].items()])
    assert len(found) == 1, found
    missing = set(evidence) - set(found[0]["event_ids"])
    assert not missing, f"{missing} is not in the evidence of {found[0]}"
    return found[0]


class WithRules(Story):
    """An instance that runs the rules of the repository, the disabled ones too."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        rules = pathlib.Path(folder.name) / "rules"
        shutil.copytree(RULES, rules)
        for rule in rules.glob("*/rule.sql"):
            rule.write_text(rule.read_text().replace("\nmode: disabled\n", "\nmode: active\n"))
        cls.aegis = Aegis(environment={"AEGIS_DETECT_RULES": str(rules)})
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()

    def alert(self, rule, evidence=(), **key):
        alert = alert_of(self.tenant, rule, evidence, **key)
        self.assertTrue(alert["receipt_hashes"], f"no receipt is named: {alert}")
        return alert

    def deny(self, agent=None, **options):
        """A call that an untrusted source drives, and that is denied for it."""
        answer = (agent or self.agent).authorize(**({"trust": UNTRUSTED} | options))
        self.assert_decided(answer, "deny")
        return answer["decision_id"]

    def allow(self, agent=None, **options):
        answer = (agent or self.agent).authorize(**options)
        self.assert_decided(answer, "allow")
        return answer["decision_id"]

    def ask(self, agent=None, **options):
        """Asks for a refund, which is registered as one that needs approval, and waits until control has it."""
        answer = (agent or self.agent).authorize(**({"action": "refund", "parameters": {"amount": 5}} | options))
        self.assert_decided(answer, "require_approval")
        approval = answer["approval"] | {"decision_id": answer["decision_id"]}
        wait_until("the approval is there", lambda: self.tenant.get(f"/v1/approvals/{approval['approval_id']}").status == 200)
        return approval

    def approver(self, name):
        return self.tenant.key("approver", name, groups=["*"])

    def decide(self, approval, verb="approve", by="rita"):
        return self.tenant.post(f"/v1/approvals/{approval['approval_id']}/{verb}", key=self.approver(by))

    def consume(self, approval, agent=None, claimed=None):
        body = {"claimed_action_hash": claimed or approval["action_hash"]}
        return self.tenant.post(f"/v1/approvals/{approval['approval_id']}/consume", body, key=(agent or self.agent).token)

    def report(self, decision_id, status="ok", agent=None, **fields):
        return self.tenant.post(f"/v1/decisions/{decision_id}/outcome", {"status": status} | fields, key=(agent or self.agent).token).expect(201)

    def freeze(self, agent):
        self.tenant.post(f"/v1/agents/{agent.id}/freeze", {"reason": "test"}).expect(200)
        wait_until("it is frozen", lambda: agent.authorize(dry_run=True)["reason"] == "agent_frozen")

    def deliver(self, event, payload):
        """A signed webhook of GitHub, and the id of its event."""
        body = json.dumps(payload).encode()
        headers = webhook_headers(event, unique("delivery"), body, SECRET)
        return self.aegis.call("POST", f"/v1/webhooks/github/{self.tenant.name}", None, body, headers).expect(202)["event_id"]


class Complete(unittest.TestCase):
    def test_each_rule_of_the_repository_is_made_to_fire(self):
        rules = {rule.parent.name for rule in RULES.glob("*/rule.sql")}
        self.assertGreaterEqual(len(rules), 20)
        from siblings import Campaign, Siblings  # They stand on this module.

        cases = (RulesFire, Gaps, Silence, Edges, Forged, Siblings, Campaign)
        tried = {name for case in cases for name in dir(case) if name.startswith("test_")}
        for rule in rules:
            method = f"test_{rule.replace('-', '_')}_fires"
            self.assertIn(method, tried, f"nothing here makes {rule} fire")

    def test_the_list_of_rules_is_right(self):
        listed = re.findall(r"^\| (\S+) \| \[(.*?)\]\(.*?\) \| (\w+) \| (\w+)(?: \((\w+)\))? \|", (RULES / "README.md").read_text(), re.MULTILINE)
        headers = [(rule.read_text().split("*/")[0], rule.parent.name) for rule in RULES.glob("*/rule.sql")]

        def of(key, header):
            found = re.search(rf"^{key}: \[?(\w[\w-]*)", header, re.MULTILINE)
            return found[1] if found else ""

        expected = [(of("id", h), name, of("severity", h), of("mode", h), of("respond", h)) for h, name in headers]
        self.assertEqual(listed, sorted(expected))


class RulesFire(WithRules):
    def test_approve_then_swap_fires(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        self.assertEqual(self.consume(approval, claimed="0" * 64).code, "action_hash_mismatch")
        self.alert("approve-then-swap", agent_id=self.agent.id)

    def test_confused_deputy_fires(self):
        self.alert("confused-deputy", [self.deny()], agent_id=self.agent.id)

    def test_deny_storm_fires(self):
        denied = [self.deny() for _ in range(5)]
        self.alert("deny-storm", denied, agent_id=self.agent.id)

    def test_read_sensitive_then_exfil_fires(self):
        read = self.allow(action="read_card_number", mutates_state=False)
        sent = self.allow(action="export_customers", parameters={"to": "x@example.org"})
        self.alert("read-sensitive-then-exfil", [read, sent], agent_id=self.agent.id)

    def test_replay_fires(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        self.consume(approval).expect(200)
        self.assertEqual(self.consume(approval).code, "approval_consumed")
        self.assertEqual(self.alert("replay", agent_id=self.agent.id)["fields"]["reason"], "approval_consumed")
        # The other ways, each by an agent of its own.
        def reused(**second):
            agent = self.tenant.register_agent()
            first = agent.request(nonce="n", request_id="r", run_id="one")
            agent.send(first).expect(200)
            return agent, agent.send(first | second)

        for second, code in (({"nonce": "n", "request_id": "s"}, "replay_nonce_reused"),
                             ({"nonce": "m", "trace": {"run_id": "two"}}, "idempotency_payload_mismatch"),
                             ({"timestamp": now(-3600)}, "replay_timestamp_expired")):
            with self.subTest(code):
                agent, reply = reused(**second)
                self.assertEqual((reply.status, reply.code), (409, code))
                self.assertEqual(self.alert("replay", agent_id=agent.id)["fields"]["reason"], code)

    def test_runaway_fires(self):
        for _ in range(20):
            self.allow()
        alert = self.alert("runaway", agent_id=self.agent.id)
        self.assertEqual((len(alert["event_ids"]), alert["mode"], alert["respond"]), (20, "log_only", ["freeze_agent"]))
        # It only tells: nobody is frozen, and nobody's incident it is.
        self.assert_decided(self.agent.read(), "allow")
        self.assertIsNone(alert["incident_id"])

    def test_denial_of_wallet_fires(self):
        # Within a minute, however busy the machine: a few at a time.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: self.agent.read(), range(120)))
        self.assertGreaterEqual(self.alert("denial-of-wallet", agent_id=self.agent.id)["fields"]["calls"], 120)

    def test_repeated_approval_fires(self):
        asked = [self.ask(parameters={"amount": amount}) for amount in range(5)]
        alert = self.alert("repeated-approval", agent_id=self.agent.id)
        self.assertEqual((alert["fields"]["requests"], alert["fields"]["different_requests"]), (5, 5))
        self.assertEqual(len(asked), len(alert["event_ids"]))

    def test_rejected_then_approved_fires(self):
        self.decide(self.ask(), "reject", by="rita").expect(200)
        self.decide(self.ask(), by="sam").expect(200)
        fields = self.alert("rejected-then-approved", agent_id=self.agent.id)["fields"]
        self.assertEqual((fields["rejected_by"], fields["approved_by"]), ("rita", "sam"))

    def test_rubber_stamp_fires(self):
        # Of several agents: nobody asks for ten of them.
        asked = [self.ask(self.tenant.register_agent()) for _ in range(10)]
        for approval in asked:
            self.decide(approval).expect(200)
        self.assertEqual(self.alert("rubber-stamp", approver="rita")["fields"]["agents"], 10)

    def test_self_approval_fires(self):
        approval = self.ask(user={"id": "rita"})
        self.assertEqual(self.decide(approval).code, "self_approval")
        fields = self.alert("self-approval", approver="rita")["fields"]
        self.assertEqual(fields["approval_id"], approval["approval_id"])

    def test_trust_escalation_fires(self):
        denied = self.deny(parameters={"email": "a@example.org"}, run_id=unique("run"))
        allowed = self.allow(parameters={"email": "b@example.org"}, run_id=unique("run"))
        self.alert("trust-escalation", [denied, allowed], agent_id=self.agent.id)

    def test_run_rotation_fires(self):
        denied = self.deny(run_id="tainted")
        # In its run no label helps; in another it does.
        self.deny(run_id="tainted", trust="trusted_internal_unsigned")
        allowed = self.allow(run_id="fresh")
        fields = self.alert("run-rotation", [allowed], agent_id=self.agent.id)["fields"]
        self.assertEqual((fields["denied_run"], fields["run_id"]), ("tainted", "fresh"))
        self.assertTrue(denied)

    def test_cross_repository_fires(self):
        read = self.allow(tool="github", action="get_file_contents", mutates_state=False, resource="acme/payroll")
        write = self.allow(tool="github", action="create_issue_comment", resource="acme/site#7")
        fields = self.alert("cross-repository", [read, write], agent_id=self.agent.id)["fields"]
        self.assertEqual((fields["read_from"], fields["written_to"]), ("acme/payroll", "acme/site"))

    def test_agent_in_two_environments_fires(self):
        # Registered again, with its own key, for another environment: one agent with two tokens.
        moved = self.agent.registration | {"environment": "staging"}
        registered = self.tenant.post("/v1/agents/register", moved, key=self.tenant.registrar).expect(200)
        self.assertEqual(registered["id"], self.agent.id)
        there = Agent(self.tenant, registered["id"], registered["agent_token"], moved)
        for agent in (self.agent, there, self.agent):
            agent.read()
        again = there.authorize()["decision_id"]
        fields = self.alert("agent-in-two-environments", [again], agent_id=self.agent.id)["fields"]
        self.assertEqual({fields["one_environment"], fields["other_environment"]}, {"production", "staging"})
        self.assertLess(fields["last_call_here"], fields["last_call"])

    def test_allowed_after_policy_change_fires(self):
        forbid = '@id("stop") @reason("no updates") forbid (principal, action == Action::"crm/update_customer", resource);'
        self.tenant.put("/v1/policies", {"policies": forbid}).expect(200)
        wait_until("it is in force", lambda: self.agent.authorize(dry_run=True)["decision"] == "deny")
        denied = self.deny(trust="trusted_internal_unsigned")
        widened = self.tenant.put("/v1/policies", {"policies": ""}).expect(200)
        wait_until("it is in force", lambda: self.agent.authorize(dry_run=True)["decision"] == "allow")
        allowed = self.allow()
        alert = self.alert("allowed-after-policy-change", [denied, allowed], agent_id=self.agent.id)
        self.assertEqual(alert["fields"]["allowed_under"], widened["digest"])
        # Who changed it stands in the event that the runbook names.
        changed = [e for e in self.events("config_changed") if e.get("policy_digest") == widened["digest"]]
        self.assertEqual({event["approver"] for event in changed}, {"ada"})

    def test_freeze_evasion_fires(self):
        self.freeze(self.agent)
        denied = self.agent.authorize(resource="customer-9")
        self.assert_decided(denied, "deny", reason="agent_frozen")
        sibling = self.tenant.register_agent()
        taken_over = self.allow(sibling, resource="customer-9")
        alert = self.alert("freeze-evasion", [denied["decision_id"], taken_over], agent_id=sibling.id)
        self.assertEqual(alert["fields"]["contained_agent_id"], self.agent.id)

    def test_slow_probing_fires(self):
        denied = [self.deny(resource=f"customer-{n}") for n in range(8)]
        self.assertEqual(self.alert("slow-probing", denied, agent_id=self.agent.id)["fields"]["things"], 8)

    def test_deny_spray_fires(self):
        denied = [self.deny(self.tenant.register_agent()) for _ in range(5)]
        self.alert("deny-spray", denied, tool="crm", action="update_customer")

    def test_executed_unauthorized_fires(self):
        self.assertEqual(self.report(self.deny())["violation"], "executed_despite_deny")
        self.assertEqual(self.alert("executed-unauthorized", agent_id=self.agent.id)["fields"]["reason"], "executed_despite_deny")
        hasty = self.tenant.register_agent()
        approval = self.ask(hasty)
        self.assertEqual(self.report(approval["decision_id"], agent=hasty)["violation"], "executed_without_approval")
        self.assertEqual(self.alert("executed-unauthorized", agent_id=hasty.id)["fields"]["reason"], "executed_without_approval")
        self.assertEqual(alerts(self.tenant, "approve-then-swap"), [], "it is told of once")

    def test_canonicalization_skew_fires(self):
        self.assertEqual(self.agent.send(self.agent.request(canon_version="aegis-jcs-2")).code, "canonicalization_skew")
        self.alert("canonicalization-skew", agent_id=self.agent.id)

    def test_automatic_cap_reached_fires(self):
        # The cap of these tenants is 0.
        for _ in range(5):
            self.deny()
        fields = self.alert("automatic-cap-reached", tenant_id=self.tenant.name)["fields"]
        self.assertEqual(fields["agent_id"], self.agent.id)
        self.assertIn("AEG-3002", fields["asked_by"])

    def test_mass_external_send_fires(self):
        sent = [self.allow(action="export_customers", parameters={"to": f"{name}@example.org"}) for name in "abcde"]
        alert = self.alert("mass-external-send", sent, agent_id=self.agent.id)
        self.assertEqual((alert["fields"]["targets"], alert["mode"]), (5, "log_only"))

    def test_label_against_source_fires(self):
        self.tenant.set_webhook_secret(SECRET)
        comment = self.deliver("issue_comment", {
            "action": "created", "issue": {"number": 7, "author_association": "NONE"}, "comment": {"body": "do it", "author_association": "NONE"},
            "repository": {"full_name": "acme/site", "private": False, "visibility": "public"}, "sender": {"login": "stranger"},
        })
        change = self.allow(tool="github", action="create_issue_comment", resource="acme/site#7")
        alert = self.alert("label-against-source", [comment, change], agent_id=self.agent.id)
        self.assertEqual((alert["fields"]["written_by"], alert["key"]["resource"]), ("stranger", "acme/site#7"))


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


@unittest.skipIf(NATS, "the server's clock is its own")
class Silence(WithRules):
    """What did not follow: an instance whose clock is moved on."""

    @classmethod
    def setUpClass(cls):
        cls.clock = tempfile.NamedTemporaryFile("w")
        cls.addClassCleanup(cls.clock.close)
        cls.moved = 0
        cls.move_clock(0)
        environment = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": cls.clock.name, "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        cls.aegis = Aegis(environment=environment | {"AEGIS_DETECT_RULES": str(RULES)})
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()

    @classmethod
    def move_clock(cls, seconds):
        cls.moved += seconds
        cls.clock.seek(0)
        cls.clock.write(f"+{cls.moved}")
        cls.clock.flush()

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
        control = ControlPlane(nats=server, environment={"AEGIS_DETECT_RULES": str(RULES)})
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
        aegis = Aegis(nats=self.server, environment={"AEGIS_DETECT_RULES": str(RULES)})
        self.addCleanup(aegis.close)
        self.tenant = aegis.start().tenant()
        self.agent = self.tenant.register_agent()

    def publish(self, subject, message):
        body = json.dumps(message).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection, connection.makefile("rb") as said:
            self.assertTrue(said.readline().startswith(b"INFO "))
            connection.sendall(b'CONNECT {"verbose":false}\r\n' + f"PUB {subject} {len(body)}\r\n".encode() + body + b"\r\nPING\r\n")
            self.assertEqual(said.readline(), b"PONG\r\n")

    def test_receipt_chain_broken_fires(self):
        lane = f"{self.tenant.name}.edge-9.1"
        forged = [str(uuid.uuid4()) for _ in range(5)]
        partition = 0x811C9DC5
        for byte in self.tenant.name.encode():
            partition = (partition ^ byte) * 0x01000193 % 2**32
        subject = f"ase.{partition % 64:02}.{self.tenant.name}.authorize_decision"
        for seq, event_id in enumerate(forged, 1):
            self.publish(subject, {"event_id": event_id, "tenant_id": self.tenant.name, "edge_id": "edge-9", "ts": now(), "lane": lane, "seq": seq, "source": "edge",
                          "kind": "authorize_decision", "verified": True, "agent_id": self.agent.id, "tool": "crm", "action": "refund", "decision": "deny"})
        self.assertIn(alert_of(self.tenant, "receipt-chain-broken", chain=lane)["fields"]["ref_event_id"], forged)
        self.assertEqual(alerts(self.tenant, "deny-storm"), [], "forged denies freeze nobody")

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


class Honest(WithRules):
    """Agents and people who do their work raise nothing."""

    def setUp(self):
        super().setUp()
        self.tenant.set_webhook_secret(SECRET)

    def test_honest_work_raises_no_alert(self):
        clerk, triage, release, staging = (self.tenant.register_agent(environment=where) for where in ("production", "production", "production", "staging"))
        # A clerk looks at many customers and changes some, sends one report, and sends a call again whose answer was lost.
        for n in range(30):
            self.allow(clerk, action="read_customer", mutates_state=False, resource=f"customer-{n}")
        for n in range(12):
            decided = self.allow(clerk, resource=f"customer-{n}", parameters={"amount": n})
            self.assertIsNone(self.report(decided, agent=clerk)["violation"])
        self.allow(clerk, action="export_customers", parameters={"to": "report@example.org"})
        lost = clerk.request(request_id=unique("request"), nonce=unique("nonce"), timestamp=now())
        self.assertEqual([clerk.send(lost).expect(200)["decision"] for _ in range(3)], ["allow"] * 3)
        # Approvals: one that is used, one that is rejected and asked for with other arguments, by one person.
        used = self.ask(clerk)
        self.decide(used).expect(200)
        self.consume(used, clerk).expect(200)
        self.assertIsNone(self.report(used["decision_id"], agent=clerk)["violation"])
        self.decide(self.ask(clerk, parameters={"amount": 900}), "reject").expect(200)
        self.decide(self.ask(clerk, parameters={"amount": 9}), by="sam").expect(200)
        # A stranger's issue: the agent reads it, under its label, and a person inside has the release agent answer elsewhere.
        self.deliver("issues", {"action": "opened", "issue": {"number": 3, "author_association": "NONE", "title": "broken", "body": "it is"},
                                "repository": {"full_name": "acme/site", "private": False, "visibility": "public"}, "sender": {"login": "stranger"}})
        for action in ("get_issue", "get_file_contents"):
            self.allow(triage, tool="github", action=action, mutates_state=False, resource="acme/site#3", trust=UNTRUSTED, run_id="issue-3")
        for n in (1, 2, 3):
            self.allow(release, tool="github", action="get_file_contents", mutates_state=False, resource="acme/app")
            self.allow(release, tool="github", action="create_pull_request", resource="acme/app", parameters={"title": f"release {n}"})
        # The same work in staging, by the agent that belongs there; a tool that nobody knows, once; a new policy that takes nobody anything.
        for n in range(5):
            self.allow(staging, resource=f"customer-{n}", parameters={"amount": n})
        self.assert_decided(staging.authorize(tool="crm", action="rename_customer"), "deny", reason="unknown_action")
        policy = '@id("careful") forbid (principal, action == Action::"crm/format_disk", resource);'
        self.tenant.put("/v1/policies", {"policies": policy}).expect(200)
        self.allow(clerk, parameters={"amount": 77})
        # A freeze by hand, and a release.
        self.freeze(staging)
        self.tenant.post(f"/v1/agents/{staging.id}/unfreeze", {"reason": "test"}).expect(200)
        wait_until("it is free", lambda: staging.authorize(dry_run=True)["decision"] == "allow")
        self.allow(staging)
        self.assertEqual([(alert["rule_name"], alert["key"], alert["fields"]) for alert in self.behind_a_fence()], [])

    def behind_a_fence(self):
        """The tenant's alerts once detection has seen all that was done so far, less those that show it: one behind what the edge said, one behind
        what control did."""
        fence = self.tenant.register_agent()
        fence.send(fence.request(canon_version="aegis-jcs-0"))
        approval = self.ask(fence, user={"id": "sam"})
        self.assertEqual(self.decide(approval, by="sam").code, "self_approval")
        shown = {self.alert("canonicalization-skew", agent_id=fence.id)["alert_id"], self.alert("self-approval", approver="sam")["alert_id"]}
        return [alert for alert in alerts(self.tenant) if alert["alert_id"] not in shown]
