"""Every shipped rule, made to fire by the real program: what it is about is done over the public API, and the alert is awaited. Here is what one
instance by itself does; the rest is in `rules_fire_apart`.
"""

import concurrent.futures
import re
import unittest

import rules_fire_apart as apart
import siblings
from story import now
from tenants import Agent
from waiting import unique, wait_until
from with_rules import RULES, SECRET, WithRules, alerts


class Complete(unittest.TestCase):
    def test_each_rule_of_the_repository_is_made_to_fire(self):
        rules = {rule.parent.name for rule in RULES.glob("*/rule.sql")}
        self.assertGreaterEqual(len(rules), 20)
        cases = (RulesFire, apart.Gaps, apart.Silence, apart.Edges, apart.Forged, siblings.Siblings, siblings.Campaign)
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
        # Within ten seconds, however busy the machine and slow its disk: all at once.
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: self.allow(), range(20)))
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
        # What an agent claims of its user keeps that person from deciding, and accuses nobody.
        self.assertEqual(self.decide(self.ask(user={"id": "rita"})).code, "self_approval")
        approval = self.ask()
        self.assertEqual(self.decide(approval, by="registrar-person").code, "self_approval")
        fields = self.alert("self-approval", approver="registrar-person")["fields"]
        self.assertEqual(fields["approval_id"], approval["approval_id"])
        self.assertEqual([alert["key"] for alert in alerts(self.tenant) if alert["rule_name"] == "self-approval"], [{"approver": "registrar-person"}])

    def test_trust_escalation_fires(self):
        denied = self.deny(parameters={"email": "a@example.org"}, run_id=unique("run"))
        allowed = self.allow(parameters={"email": "b@example.org"}, run_id=unique("run"))
        self.alert("trust-escalation", [denied, allowed], agent_id=self.agent.id)

    def test_denied_until_allowed_fires(self):
        denied = [self.deny(parameters={"email": f"{name}@example.org"}, run_id=unique("run")) for name in "abcd"]
        allowed = self.allow(parameters={"email": "e@example.org"}, run_id=unique("run"))
        alert = self.alert("denied-until-allowed", [*denied, allowed], agent_id=self.agent.id)
        self.assertEqual((alert["key"]["tool"], alert["fields"]["denied_calls"], len(alert["event_ids"])), ("crm", 4, 5))

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
        # Control's own, so it may arrive behind the alert.
        self.assertEqual(self.event("config_changed", policy_digest=widened["digest"], reason="policies_changed")["approver"], "ada")

    def test_allowed_after_policy_change_sees_a_registration_that_was_widened(self):
        wipe = {"action": "wipe", "risk": "medium", "mutates_state": True, "default_decision": "deny"}
        tool = {"tool": "disk", "name": "Disk", "default_risk": "medium", "actions": [wipe]}
        self.tenant.post("/v1/tools", tool).expect(201)
        call = {"tool": "disk", "action": "wipe", "trust": "trusted_internal_unsigned"}
        wait_until("it is registered", lambda: self.agent.authorize(dry_run=True, **call)["reason"] == "registered_deny")
        denied = self.deny(**call)
        self.tenant.post("/v1/tools", tool | {"actions": [wipe | {"default_decision": "policy"}]}).expect(201)
        wait_until("it is in force", lambda: self.agent.authorize(dry_run=True, **call)["decision"] == "allow")
        fields = self.alert("allowed-after-policy-change", [denied, self.allow(**call)], agent_id=self.agent.id)["fields"]
        changed = self.event("config_changed", policy_digest=fields["allowed_under"])
        self.assertEqual((changed["reason"], changed["approver"]), ("tool_registered", "ada"))

    def test_allowed_after_policy_change_sees_what_needed_approval(self):
        refund = {"action": "refund", "risk": "medium", "mutates_state": True, "approval_required": True}
        tool = {"tool": "till", "name": "Till", "default_risk": "medium", "actions": [refund]}
        self.tenant.post("/v1/tools", tool).expect(201)
        call = {"tool": "till", "action": "refund", "trust": "trusted_internal_unsigned"}
        wait_until("it is registered", lambda: self.agent.authorize(dry_run=True, **call)["decision"] == "require_approval")
        held = self.ask(**call)["decision_id"]
        self.tenant.post("/v1/tools", tool | {"actions": [refund | {"approval_required": False}]}).expect(201)
        wait_until("it is in force", lambda: self.agent.authorize(dry_run=True, **call)["decision"] == "allow")
        fields = self.alert("allowed-after-policy-change", [held, self.allow(**call)], agent_id=self.agent.id)["fields"]
        self.assertEqual(fields["refused"], "require_approval")

    def test_risk_lowered_then_used_fires(self):
        pay = {"action": "pay", "risk": "medium", "mutates_state": True, "approval_required": True}
        # A tool of so many actions is told in several events.
        others = [pay | {"action": f"other-{n}-{'x' * 100}"} for n in range(300)]
        tool = {"tool": "bank", "name": "Bank", "default_risk": "medium", "actions": [*others, pay]}
        self.tenant.post("/v1/tools", tool).expect(201)
        call = {"tool": "bank", "action": "pay", "trust": "trusted_internal_unsigned"}
        wait_until("it is registered", lambda: self.agent.authorize(dry_run=True, **call)["decision"] == "require_approval")
        self.tenant.post("/v1/tools", tool | {"actions": [*others, pay | {"approval_required": False}]}).expect(201)
        wait_until("it is in force", lambda: self.agent.authorize(dry_run=True, **call)["decision"] == "allow")
        alert = self.alert("risk-lowered-then-used", [self.allow(**call)], agent_id=self.agent.id, tool="bank", action="pay")
        fields = alert["fields"]
        self.assertEqual((fields["risk_before"], fields["risk_now"], fields["approval_required_now"]), ("medium", "medium", False))
        # Who changed it stands in the event that the alert names.
        (lowered,) = [event for event in self.events("config_changed") if event["event_id"] == fields["lowered_by"]]
        self.assertEqual((lowered["reason"], lowered["approver"]), ("tool_registered_more", "ada"))

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
