"""What an agent's actions go through: decisions, approvals, replays, containment, trust; and that a restart forgets none of it."""

import base64
import concurrent.futures
import datetime
import hashlib
import json
import pathlib
import shutil
import tempfile
import threading
import unittest

from ed25519 import SigningKey
from harness import VERIFIER, Aegis, canonical, check_chain, unique, wait_until

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
        self.agent = self.tenant.register_agent()

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


class Decisions(Story):
    def test_a_read_is_allowed_whatever_its_source_and_its_receipt_follows(self):
        for trust in ("trusted_internal_unsigned", "untrusted_external", "malicious_suspected"):
            answer = self.agent.read(trust=trust)
            self.assert_decided(answer, "allow", policy="default-allow-read")
            # A read that taints its run waits for its receipt, so that a crash cannot forget the taint.
            waits = trust != "trusted_internal_unsigned"
            self.assertEqual(answer["receipt"]["receipt_hash"] is not None, waits, trust)
            receipt = self.tenant.get(f"/v1/receipts/{answer['decision_id']}").expect(200)
            self.assertRegex(receipt["receipt_hash"], HEX)
            self.assertEqual(receipt["source_trust"], trust)

    def test_a_sensitive_read_waits_for_its_receipt(self):
        self.assertRegex(self.agent.read(action="read_card_number")["receipt"]["receipt_hash"], HEX)
        self.assertRegex(self.agent.read(context={"contains_sensitive_data": True})["receipt"]["receipt_hash"], HEX)

    def test_each_trust_label_decides_a_write_as_the_default_pack_says(self):
        expected = {"trusted_internal_unsigned": "allow", "semi_trusted_customer": "require_approval", "unknown": "require_approval",
                    "no such label": "require_approval", "untrusted_external": "deny", "malicious_suspected": "deny",
                    # Unsigned, because nothing signed it.
                    "trusted_internal_signed": "allow"}
        for trust, decision in expected.items():
            with self.subTest(trust):
                answer = self.agent.authorize(trust=trust)
                self.assert_decided(answer, decision)
                self.assertTrue(answer["reason"])
                self.assertRegex(answer["receipt"]["receipt_hash"], HEX)
                self.assertEqual(answer["approval"] is not None, decision == "require_approval")
                self.assertEqual((answer["risk_level"], answer["risk_score"]), ("medium", 40))

    def test_what_a_caller_calls_harmless_is_what_the_registry_says(self):
        answer = self.agent.authorize(action="update_customer", mutates_state=False, trust="untrusted_external")
        self.assert_decided(answer, "deny", policy="default-deny-untrusted-write")
        # And the other way round a caller may tighten.
        answer = self.agent.authorize(action="read_customer", mutates_state=True, trust="untrusted_external")
        self.assert_decided(answer, "deny")

    def test_what_is_not_registered_is_denied(self):
        for tool, action in (("crm", "drop_tables"), ("crmx", "read_customer"), ("CRM", "read_customer"), ("mcp:files", "read_customer")):
            self.assert_decided(self.agent.read(tool=tool, action=action), "deny")
        self.assert_decided(self.agent.read(action="drop_tables"), "deny", reason="unknown_action")

    def test_a_registration_only_tightens(self):
        self.assert_decided(self.agent.authorize(action="delete_all"), "require_approval")
        self.assert_decided(self.agent.authorize(action="refund"), "require_approval")
        self.assert_decided(self.agent.authorize(action="format_disk"), "deny")
        self.assert_decided(self.agent.authorize(action="delete_all", trust="untrusted_external"), "deny")
        risky = self.tenant.register_agent(risk_tier="high")
        self.assert_decided(risky.authorize(), "require_approval", policy="default-approve-risky-agent-write")

    def test_the_action_hash_is_that_of_the_five_values(self):
        for parameters in ({}, {"title": "Café ☕ déjà vu"}, {"z": 1, "a": [True, None, {"é": "x"}]}, {"big": 2**53 - 1}):
            body = self.agent.request(parameters=parameters)
            self.assertEqual(self.agent.send(body).expect(200)["action_hash"], action_hash(body["tool_call"]))

    def test_the_agent_is_the_token_s_not_the_body_s(self):
        other = self.tenant.register_agent()
        body = self.agent.request() | {"agent": {"id": other.id, "environment": "production"}}
        decision = self.agent.send(body).expect(200)["decision_id"]
        self.assertEqual(self.tenant.get(f"/v1/decisions/{decision}").expect(200)["agent_id"], self.agent.id)

    def test_a_dry_run_answers_and_changes_nothing(self):
        before = len(self.tenant.list("/v1/decisions"))
        self.assert_decided(self.agent.authorize(dry_run=True), "allow")
        self.assert_decided(self.agent.authorize(dry_run=True, trust="untrusted_external", run_id="dry"), "deny")
        held = self.agent.authorize(dry_run=True, action="refund", request_id="dry-1")
        self.assert_decided(held, "require_approval")
        # The run was not tainted, the request id not bound, and no approval made.
        self.assert_decided(self.agent.authorize(run_id="dry", request_id="dry-1"), "allow")
        fence = self.agent.authorize()["decision_id"]
        decisions = wait_until("the fence", lambda: (d := self.tenant.list("/v1/decisions")) and fence in {x["event_id"] for x in d} and d)
        self.assertEqual(len(decisions), before + 2)
        self.assertEqual(self.tenant.list("/v1/approvals"), [])

    def test_another_canonicalisation_is_refused_and_seen(self):
        self.agent.authorize(canon_version="aegis-jcs-1")
        reply = self.agent.send(self.agent.request(canon_version="aegis-jcs-2"))
        self.assertEqual((reply.status, reply.code), (400, "canonicalization_skew"))
        self.event("canonicalization_skew", agent_id=self.agent.id)
        self.assertGreaterEqual(self.aegis.metric("canonicalization_version_skew"), 1)

    def test_no_parameter_ever_stands_in_a_receipt_or_an_event(self):
        secret = "hunter2-and-the-rest"
        self.agent.authorize(parameters={"email": secret})
        held = self.agent.authorize(action="refund", parameters={"note": secret})
        wait_until("the approval", lambda: self.tenant.get(f"/v1/approvals/{held['approval']['approval_id']}").status == 200)
        self.assertNotIn(secret, json.dumps(self.tenant.export()))
        self.assertNotIn(secret, json.dumps(self.tenant.list("/v1/audit/events")))
        self.assertNotIn(secret, self.aegis.get("/metrics").text)
        self.assertNotIn(secret, self.aegis.log())

    def test_a_rate_over_the_limit_is_429_and_only_for_that_agent(self):
        self.tenant.settings(agent_rate_per_s=1)
        greedy = self.tenant.register_agent()
        replies = [greedy.send(greedy.request()) for _ in range(8)]
        refused = [reply for reply in replies if reply.status == 429]
        self.assertTrue(refused)
        self.assertEqual({(reply.code, reply.headers["retry-after"]) for reply in refused}, {("rate_limited", "1")})
        self.agent.authorize()


class GitHubPack(Story):
    def setUp(self):
        super().setUp()
        for name, visibility in (("acme/site", "public"), ("acme/payroll", "private")):
            self.tenant.post("/v1/resources", {"resource": name, "tool": "github", "visibility": visibility}).expect(201)

    def call(self, action, resource, mutates_state, trust, **parameters):
        return self.agent.authorize(tool="github", action=action, resource=resource, mutates_state=mutates_state, trust=trust, parameters=parameters)

    def test_an_untrusted_context_reads_no_private_repository(self):
        for resource in ("acme/payroll", "acme/payroll#3", "acme/nobody-knows"):
            answer = self.call("get_file_contents", resource, False, "untrusted_external", path="salaries.csv")
            self.assert_decided(answer, "deny", policy="github-deny-untrusted-private-read")
        self.assert_decided(self.call("get_issue", "acme/site#1", False, "untrusted_external", issue_number=1), "allow")
        self.assert_decided(self.call("get_file_contents", "acme/payroll", False, "trusted_internal_unsigned"), "allow")

    def test_an_untrusted_context_writes_to_no_public_and_no_foreign_repository(self):
        answer = self.call("create_pull_request", "acme/site", True, "untrusted_external", title="t", source_repository="acme/site")
        self.assert_decided(answer, "deny", policy="github-deny-untrusted-public-write")
        answer = self.call("create_pull_request", "acme/payroll", True, "untrusted_external", title="t", source_repository="acme/site")
        self.assert_decided(answer, "deny", policy="github-deny-untrusted-foreign-write")

    def test_data_between_repositories_needs_a_person(self):
        answer = self.call("create_pull_request", "acme/site", True, "trusted_internal_unsigned", head_repository="acme/payroll")
        self.assert_decided(answer, "require_approval", policy="github-approve-cross-repository")
        self.assert_decided(self.call("create_pull_request", "acme/site", True, "trusted_internal_unsigned", head_repository="acme/site"), "allow")

    def test_a_merge_to_main_is_the_release_group_s_unless_a_registered_channel_signed(self):
        answer = self.call("merge_pull_request", "acme/site#9", True, "trusted_internal_unsigned", pr_number=9, base_branch="main")
        self.assert_decided(answer, "require_approval", policy="github-approve-merge-to-main")
        self.assertEqual(answer["approval"]["approver_group"], "release")
        self.assert_decided(self.call("merge_pull_request", "acme/site#9", True, "trusted_internal_unsigned", base_branch="wip"), "allow")

        key, forger = SigningKey(hashlib.sha256(b"channel").digest()), SigningKey(hashlib.sha256(b"forger").digest())
        channel = {"channel": "release-bot", "source_trust": "trusted_internal_signed", "public_key": key.public_base64()}
        self.tenant.post("/v1/channels", channel).expect(201)

        def signed_merge(signer, run_id, signed_run=None):
            statement = {"run_id": signed_run or run_id, "source": "release-bot", "source_trust": "trusted_internal_signed"}
            signature = base64.b64encode(signer.sign(canonical(statement))).decode()
            return self.agent.authorize(
                tool="github", action="merge_pull_request", resource="acme/site#9", parameters={"base_branch": "main"}, run_id=run_id,
                trust="trusted_internal_signed", context={"channel": "release-bot", "source_signature": signature})

        self.assert_decided(signed_merge(key, unique("run")), "allow")
        self.assert_decided(signed_merge(forger, unique("run")), "require_approval")
        self.assert_decided(signed_merge(key, unique("run"), signed_run="another run"), "require_approval")


class Approvals(Story):
    def setUp(self):
        super().setUp()
        self.approver = self.tenant.key("approver", "rita", groups=("release", "security"))

    def ask(self, agent=None, **options):
        """Asks for a merge to main and waits until control can show it."""
        options = {"tool": "github", "action": "merge_pull_request", "resource": "acme/site#9", "parameters": {"pr_number": 9, "base_branch": "main"}} | options
        answer = (agent or self.agent).authorize(**options)
        self.assert_decided(answer, "require_approval")
        approval = answer["approval"]
        self.assertEqual((approval["status"], approval["action_hash"]), ("PENDING", answer["action_hash"]))
        wait_until("the approval is there", lambda: self.get(approval).status == 200)
        return approval

    def get(self, approval, key=None):
        return self.tenant.get(f"/v1/approvals/{approval['approval_id']}", key=key)

    def status(self, approval):
        return self.get(approval).expect(200)["status"]

    def decide(self, approval, verb="approve", key=None, **body):
        return self.tenant.post(f"/v1/approvals/{approval['approval_id']}/{verb}", body, key=key or self.approver)

    def consume(self, approval, claimed=None, agent=None):
        body = {"claimed_action_hash": claimed or approval["action_hash"]}
        return self.tenant.post(f"/v1/approvals/{approval['approval_id']}/consume", body, key=(agent or self.agent).token)

    def assert_refused(self, reply, code, status=409):
        self.assertEqual((reply.status, reply.code), (status, code), reply)

    def test_an_approved_action_is_consumed_once(self):
        approval = self.ask()
        shown = self.get(approval, key=self.agent.token).expect(200)
        self.assertEqual((shown["status"], shown["is_edited"], shown["tool_call"]["parameters"]["pr_number"]), ("PENDING", False, 9))
        self.assertEqual(action_hash(shown["tool_call"]), shown["action_hash"])
        self.assert_refused(self.consume(approval), "approval_pending")
        self.assertEqual(self.decide(approval).expect(200)["status"], "APPROVED")
        self.assertEqual(self.consume(approval).expect(200), {"status": "consumed", "approval_id": approval["approval_id"], "action_hash": approval["action_hash"]})
        self.assertEqual(self.status(approval), "CONSUMED")
        for _ in range(3):
            self.assert_refused(self.consume(approval), "approval_consumed")
        self.assert_refused(self.decide(approval, "reject"), "approval_not_pending")
        wait_until("the replays are events", lambda: len(self.events("replay_attempt", self.agent)) == 3)
        phases = {line["receipt"]["phase"] for line in self.assert_chained()}
        self.assertLessEqual({"decision", "approval", "consume", "attempt"}, phases)

    def test_a_swapped_action_fails_closed_and_burns_nothing(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        swapped = action_hash({"tool": "github", "action": "merge_pull_request", "resource": "acme/payroll#1", "mutates_state": True, "parameters": {}})
        for wrong in (swapped, "0" * 64, approval["action_hash"].upper(), approval["action_hash"][:-1], "x"):
            self.assert_refused(self.consume(approval, wrong), "action_hash_mismatch")
        self.assertEqual(self.status(approval), "APPROVED")
        wait_until("the attempts are events", lambda: len(self.events("tamper_attempt", self.agent)) == 5)
        self.assertGreaterEqual(self.aegis.metric("approval_hash_mismatch_total"), 5)
        self.consume(approval).expect(200)

    def test_of_32_concurrent_consumes_exactly_one_wins(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        start = threading.Barrier(32)

        def consume(_):
            start.wait()
            return self.consume(approval)

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            replies = list(pool.map(consume, range(32)))
        self.assertEqual(sorted(reply.status for reply in replies), [200] + [409] * 31)
        self.assertEqual({reply.code for reply in replies if reply.status == 409}, {"approval_consumed"})
        consumed = wait_until("the consume is an event", lambda: self.events("approval_consumed", self.agent))
        self.assertEqual(len(consumed), 1)

    def test_a_rejected_action_never_runs(self):
        approval = self.ask()
        self.assertEqual(self.decide(approval, "reject", reason="no").expect(200)["status"], "REJECTED")
        self.assert_refused(self.consume(approval), "approval_rejected")
        self.assert_refused(self.decide(approval), "approval_not_pending")

    def test_an_approval_past_its_time_is_expired_which_is_a_deny(self):
        self.tenant.settings(approval_ttl_s=1)
        approved, waiting = self.ask(), self.ask()
        self.decide(approved)
        for approval in (approved, waiting):
            wait_until("it expires", lambda approval=approval: self.status(approval) == "EXPIRED")
            self.assert_refused(self.consume(approval), "approval_expired")
        self.assert_refused(self.decide(waiting), "approval_expired")

    def test_who_asked_and_who_is_not_of_the_group_may_not_approve(self):
        approval = self.ask(user={"id": "Rita"})
        self.assert_refused(self.decide(approval), "self_approval", 403)
        self.assert_refused(self.decide(approval, key=self.tenant.key("approver", "otto", groups=("security",))), "wrong_group", 403)
        self.assert_refused(self.decide(approval, key=self.tenant.key("approver", "registrar-person", groups=("release",))), "self_approval", 403)
        for key in (self.tenant.admin, self.tenant.registrar, self.agent.token, self.tenant.key("analyst"), self.tenant.key("auditor")):
            self.assertEqual(self.decide(approval, key=key).status, 403)
        self.assertEqual(self.status(approval), "PENDING")
        self.decide(approval, key=self.tenant.key("approver", "sam", groups=("release",))).expect(200)

    def test_another_agent_may_not_consume(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        self.assert_refused(self.consume(approval, agent=self.tenant.register_agent()), "wrong_agent")
        self.assertEqual(self.status(approval), "APPROVED")
        self.consume(approval).expect(200)

    def test_an_edit_is_a_new_action_that_somebody_else_approves(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        call = {"tool": "github", "action": "merge_pull_request", "resource": "acme/site#10", "mutates_state": True,
                "parameters": {"pr_number": 10, "base_branch": "main"}}
        edited = self.decide(approval, "edit", tool_call=call).expect(200)
        self.assertEqual((edited["status"], edited["is_edited"]), ("PENDING", True))
        self.assertEqual((edited["action_hash"], edited["original_action_hash"]), (action_hash(call), approval["action_hash"]))
        sam = self.tenant.key("approver", "sam", groups=("release",))
        self.assert_refused(self.decide(approval, key=sam), "action_hash_required")
        self.assert_refused(self.decide(approval, action_hash=action_hash(call)), "self_edited", 403)
        self.decide(approval, key=sam, action_hash=action_hash(call)).expect(200)
        self.assert_refused(self.consume(approval), "action_hash_mismatch")
        self.consume(approval, action_hash(call)).expect(200)

    def test_a_contained_agent_s_approval_does_not_run(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        self.tenant.post(f"/v1/agents/{self.agent.id}/freeze", {"reason": "test"}).expect(200)
        self.assert_refused(self.consume(approval), "agent_frozen")
        self.tenant.post(f"/v1/agents/{self.agent.id}/unfreeze", {"reason": "test"}).expect(200)
        self.consume(approval).expect(200)

    def test_a_policy_that_denies_by_now_stops_an_approved_action(self):
        approval = self.ask()
        self.decide(approval).expect(200)
        forbid = '@id("stop") @reason("release freeze") forbid (principal, action == Action::"github/merge_pull_request", resource);'
        self.tenant.put("/v1/policies", {"policies": forbid}).expect(200)
        self.assert_refused(self.consume(approval), "policy_denied")
        self.tenant.put("/v1/policies", {"policies": ""}).expect(200)
        self.consume(approval).expect(200)

    def test_a_retry_meets_the_one_approval(self):
        options = {"tool": "github", "action": "merge_pull_request", "resource": "acme/site#9", "parameters": {"pr_number": 9, "base_branch": "main"}}
        body = self.agent.request(request_id=unique("request"), **options)
        ids = {self.agent.send(body).expect(200)["approval"]["approval_id"] for _ in range(5)}
        self.assertEqual(len(ids), 1)
        wait_until("the approval", lambda: self.tenant.list("/v1/approvals"))
        self.assertEqual(len(self.tenant.list("/v1/approvals")), 1)

    def test_approvals_and_what_came_of_them_survive_a_restart(self):
        pending, approved, consumed = self.ask(), self.ask(), self.ask()
        for approval in (approved, consumed):
            self.decide(approval).expect(200)
        self.consume(consumed).expect(200)
        self.aegis.restart()
        self.assertEqual([self.status(a) for a in (pending, approved, consumed)], ["PENDING", "APPROVED", "CONSUMED"])
        self.assert_refused(self.consume(consumed), "approval_consumed")
        self.consume(approved).expect(200)
        self.decide(pending).expect(200)
        self.consume(pending).expect(200)
        self.assert_chained()

    def test_an_outcome_is_the_deciding_agent_s_and_another_action_s_hash_is_seen(self):
        answer = self.agent.authorize()
        path = f"/v1/decisions/{answer['decision_id']}/outcome"
        done = {"status": "ok", "executed_hash": answer["action_hash"], "output": {"rows": 1}}
        self.assertEqual(self.tenant.post(path, done, key=self.tenant.register_agent().token).status, 403)
        self.assertIsNone(self.tenant.post(path, done, key=self.agent.token).expect(201)["violation"])
        reply = self.tenant.post(path, done | {"executed_hash": "0" * 64}, key=self.agent.token).expect(201)
        self.assertEqual(reply["violation"], "executed_hash_mismatch")
        self.event("tamper_attempt", reason="executed_hash_mismatch")


class Replays(Story):
    def test_a_request_id_is_bound_to_its_content_also_after_a_restart(self):
        request_id = unique("request")
        body = self.agent.request(request_id=request_id, parameters={"amount": 1}, run_id="r")
        first = self.agent.send(body).expect(200)
        again = self.agent.send(body | {"nonce": "n1", "timestamp": now()}).expect(200)
        self.assertEqual((again["decision"], again["action_hash"]), (first["decision"], first["action_hash"]))
        for changed in (body | {"user": {"id": "eve"}}, self.agent.request(request_id=request_id, parameters={"amount": 2}, run_id="r"),
                        self.agent.request(request_id=request_id, parameters={"amount": 1}, run_id="other")):
            reply = self.agent.send(changed)
            self.assertEqual((reply.status, reply.code), (409, "idempotency_payload_mismatch"))
        # Another agent's request ids are its own.
        other = self.tenant.register_agent()
        other.authorize(request_id=request_id)
        self.aegis.restart()
        reply = self.agent.send(self.agent.request(request_id=request_id, parameters={"amount": 3}, run_id="r"))
        self.assertEqual((reply.status, reply.code), (409, "idempotency_payload_mismatch"))
        self.agent.send(body).expect(200)

    def test_the_stricter_of_two_answers_to_one_request_stands(self):
        body = self.agent.request(request_id=unique("request"))
        self.assert_decided(self.agent.send(body).expect(200), "allow")
        forbid = '@id("stop") forbid (principal, action == Action::"crm/update_customer", resource);'
        self.tenant.put("/v1/policies", {"policies": forbid}).expect(200)
        wait_until("the policy is enforced", lambda: self.agent.authorize()["decision"] == "deny")
        self.assert_decided(self.agent.send(body).expect(200), "deny")
        self.tenant.put("/v1/policies", {"policies": ""}).expect(200)
        wait_until("the policy is gone", lambda: self.agent.authorize()["decision"] == "allow")
        self.assert_decided(self.agent.send(body).expect(200), "deny")

    def test_a_nonce_is_used_once_also_after_a_restart(self):
        nonce = unique("nonce")
        body = self.agent.request(nonce=nonce, parameters={"amount": 1})
        self.agent.send(body).expect(200)
        self.agent.send(body).expect(200)
        for _ in range(2):
            reply = self.agent.send(self.agent.request(nonce=nonce, parameters={"amount": 1000}))
            self.assertEqual((reply.status, reply.code), (409, "replay_nonce_reused"))
            event = wait_until("the attempt is an event", lambda: self.events("replay_attempt", self.agent))[0]
            self.assertEqual(event["reason"], "replay_nonce_reused")
            self.assertNotIn(nonce, json.dumps(event))
            self.aegis.restart()

    def test_a_timestamp_outside_the_window_is_refused(self):
        self.agent.authorize(timestamp=now())
        for offset_s in (-3600, 3600):
            reply = self.agent.send(self.agent.request(timestamp=now(offset_s)))
            self.assertEqual((reply.status, reply.code), (409, "replay_timestamp_expired"))


def now(offset_s=0):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)).isoformat().replace("+00:00", "Z")


class Containment(Story):
    def contain(self, verb, **body):
        return self.tenant.post(f"/v1/agents/{self.agent.id}/{verb}", {"reason": "test"} | body).expect(200)

    def read_becomes(self, decision, reason=None):
        """Waits for the answer to a harmless read to change; control waits for the edge only so long."""
        return wait_until(f"a read is {decision} {reason or ''}", lambda: (a := self.agent.read())["decision"] == decision and (reason is None or a["reason"] == reason))

    def test_a_frozen_agent_is_denied_everything_also_after_a_restart(self):
        self.assertTrue(self.contain("freeze")["enforced"])
        for _ in range(2):
            self.assert_decided(self.agent.read(), "deny", reason="agent_frozen")
            self.assert_decided(self.agent.authorize(), "deny", reason="agent_frozen")
            self.assertEqual(self.agent.read()["matched_policies"], [])
            # The others go on.
            self.assert_decided(self.tenant.register_agent().authorize(), "allow")
            self.aegis.restart()
        self.contain("unfreeze")
        self.read_becomes("allow")
        self.event("containment_applied", status="released")

    def test_a_frozen_agent_never_gets_an_old_allow(self):
        body = self.agent.request(request_id=unique("request"))
        self.assert_decided(self.agent.send(body).expect(200), "allow")
        self.contain("freeze")
        self.assert_decided(self.agent.send(body).expect(200), "deny", reason="agent_frozen")

    def test_a_hold_ends_with_its_time_and_not_before(self):
        self.contain("freeze", ttl_s=2)
        self.assert_decided(self.agent.read(), "deny", reason="agent_frozen")
        self.read_becomes("allow")

    def test_an_ended_hold_leaves_the_others(self):
        self.contain("freeze", ttl_s=1)
        self.contain("freeze", ttl_s=3600)
        wait_until("the short hold ends", lambda: len(live_holds(self.tenant)) == 1)
        self.assert_decided(self.agent.read(), "deny", reason="agent_frozen")

    def test_a_revoked_agent_stays_revoked(self):
        self.contain("revoke")
        self.read_becomes("deny", "agent_revoked")
        self.contain("unfreeze")
        self.aegis.restart()
        self.assert_decided(self.agent.read(), "deny", reason="agent_revoked")
        reply = self.tenant.post("/v1/agents/register", self.agent.registration, key=self.tenant.registrar)
        self.assertEqual((reply.status, reply.code), (409, "agent_revoked"))

    def test_every_containment_is_a_receipt(self):
        self.contain("freeze")
        self.contain("unfreeze")
        self.contain("revoke")
        wait_until("three events", lambda: len(self.events("containment_applied")) == 3)
        changes = [line["receipt"]["detail"]["change"] for line in self.assert_chained() if line["receipt"]["phase"] == "containment"]
        self.assertEqual(changes, ["applied", "released", "revoked"])

    def test_an_agent_that_keeps_probing_is_frozen_by_detection(self):
        self.tenant.settings(automatic_freezes_per_hour=20)
        for _ in range(6):
            self.agent.authorize(trust="untrusted_external")
        self.read_becomes("deny", "agent_frozen")
        alerts = wait_until("an alert", lambda: self.tenant.list("/v1/alerts"))
        self.assertTrue(self.tenant.list("/v1/incidents"))
        evidence = {event_id for record in alerts for event_id in record.get("alert", record)["event_ids"]}
        self.assertTrue(evidence & {decision["event_id"] for decision in self.tenant.list("/v1/decisions")})


def live_holds(tenant):
    present = datetime.datetime.now(datetime.UTC)
    holds = [hold for state in tenant.list("/v1/containment") for hold in state["holds"]]
    return [hold for hold in holds if hold["until"] is None or datetime.datetime.fromisoformat(hold["until"]) > present]


class Trust(Story):
    def test_a_run_s_label_only_tightens_and_survives_a_restart(self):
        self.assert_decided(self.agent.authorize(run_id="r"), "allow")
        self.assert_decided(self.agent.read(run_id="r", trust="untrusted_external"), "allow")
        for _ in range(2):
            answer = self.agent.authorize(run_id="r", trust="trusted_internal_unsigned")
            self.assert_decided(answer, "deny", policy="default-deny-untrusted-write")
            self.assertEqual(answer["root_trust_level"], "untrusted_external")
            self.assert_decided(self.agent.authorize(run_id="another"), "allow")
            self.aegis.restart()

    def test_a_restart_after_kill_9_forgets_no_acknowledged_label(self):
        # A denied write is acknowledged only when it is durable; a read may be lost, and the chain says so.
        self.assert_decided(self.agent.authorize(run_id="k", trust="untrusted_external"), "deny")
        self.aegis.kill9()
        self.aegis.start()
        self.assert_decided(self.agent.authorize(run_id="k"), "deny")

    def test_calls_without_a_run_share_their_agent_s(self):
        def without_run(**options):
            body = self.agent.request(**options)
            del body["trace"]
            return self.agent.send(body).expect(200)

        self.assert_decided(without_run(), "allow")
        without_run(action="read_customer", mutates_state=False, trust="malicious_suspected")
        self.assert_decided(without_run(), "deny")
        self.assert_decided(self.agent.authorize(run_id="named"), "allow")
        self.assert_decided(self.tenant.register_agent().authorize(), "allow")

    def test_no_label_comes_in_softer_than_its_channel_root_parent_or_token(self):
        self.tenant.post("/v1/channels", {"channel": "inbox", "source_trust": "untrusted_external"}).expect(201)
        self.assert_decided(self.agent.authorize(context={"channel": "inbox"}), "deny")
        self.assert_decided(self.agent.authorize(context={"channel": "nobody registered"}), "require_approval")
        self.assert_decided(self.agent.authorize(trace={"root_trust_level": "untrusted_external"}), "deny")
        self.agent.read(run_id="parent", trust="untrusted_external")
        self.assert_decided(self.agent.authorize(run_id="child", trace={"parent_run_id": "parent"}), "deny")
        ceiling = self.tenant.register_agent(trust_ceiling="semi_trusted_customer")
        self.assert_decided(ceiling.authorize(), "require_approval")

    def test_an_edge_that_never_saw_a_run_believes_the_echoed_token(self):
        answer = self.agent.read(run_id="r", trust="untrusted_external")
        token = answer["trust_token"]
        self.assert_decided(self.agent.read(run_id="other"), "allow")
        other_token = self.agent.read(run_id="clean")["trust_token"]
        # Another edge: the same tenants and keys, and a ledger that has none of this.
        self.aegis.stop()
        with tempfile.TemporaryDirectory(prefix="aegis-e2e-") as folder:
            copy = pathlib.Path(folder) / "data"
            shutil.copytree(self.aegis.data, copy)
            self.aegis.start()
            for file in (copy / "edge").glob("ledger.db*"):
                file.unlink()
            edge = Aegis(data=copy).start()
            self.addCleanup(edge.close)

            def ask(trust_token):
                body = self.agent.request(run_id="r", trace={"trust_token": trust_token} if trust_token else {})
                return edge.post("/v1/authorize", self.agent.token, body).expect(200)

            # A token of another run, or a changed one, says nothing, and must not loosen: the first call without taint is allowed.
            for useless in (None, other_token, token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), "", "x"):
                self.assert_decided(ask(useless), "allow")
            self.assert_decided(ask(token), "deny")
            # And from then on it remembers.
            self.assert_decided(ask(None), "deny")
            edge.close()


class Evidence(Story):
    def test_an_export_verifies_and_one_changed_byte_is_found_and_named(self):
        for amount in range(5):
            self.agent.authorize(parameters={"amount": amount})
        exported = self.tenant.export()
        lines = [json.dumps(line) for line in exported]
        self.assertEqual(self.aegis.verify(lines)["verdict"], "valid")
        self.assertEqual(self.aegis.verify(lines, roots=False)["verdict"], "self-consistent")
        decided = [index for index, line in enumerate(exported) if line["kind"] == "authorize_decision"]
        index = decided[1]
        target, text = exported[index], lines[index]
        self.assertEqual(exported[index + 1]["lane"], target["lane"])

        def edited(old, new):
            self.assertIn(old, text)
            return lines[:index] + [text.replace(old, new, 1)] + lines[index + 1:]

        cases = {
            "the decision changed": (edited('"decision": "allow"', '"decision": "deny"'), target["seq"]),
            "an agent exchanged": (edited(target["agent_id"], target["agent_id"][:-1] + "x"), target["seq"]),
            "the hash changed": (edited(target["receipt_hash"], "0" * 64), target["seq"]),
            "the proof changed": (edited(target["proof"]["signature"][:8], "AAAAAAAA"), target["seq"]),
            "one receipt left out": (lines[:index] + lines[index + 1:], target["seq"] + 1),
            "two receipts exchanged": (lines[:index] + [lines[index + 1], text] + lines[index + 2:], target["seq"] + 1),
            "one receipt twice": (lines[:index] + [text, text] + lines[index + 1:], target["seq"]),
        }
        for name, (changed, seq) in cases.items():
            with self.subTest(name):
                report = self.aegis.verify(changed, expect=1)
                self.assertEqual((report["verdict"], report["failure"]["lane"], report["failure"]["seq"]), ("invalid", target["lane"], seq), report)
        with self.subTest("signed by somebody else"):
            stranger = base64.b64encode(SigningKey(b"s" * 32).public).decode()
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
                file.write("\n".join(lines))
                file.flush()
                said = self.aegis.cli(file.name, "--root", stranger, "--json", expect=1, program=VERIFIER)
            self.assertEqual(json.loads(said)["failure"]["code"], "unknown_key")
        with self.subTest("no export at all"):
            self.aegis.verify(["this is no receipt"], expect=2)
            self.aegis.verify([], expect=2)

    def test_the_export_over_http_is_the_export_of_the_command_line(self):
        self.agent.authorize()
        lines = self.assert_chained()
        hashes = {line["receipt_hash"] for line in lines}

        def over_http():
            text = self.tenant.get("/v1/receipts/export").text
            return {json.loads(line)["receipt_hash"] for line in text.splitlines()} >= hashes

        wait_until("the history has all receipts", over_http)
        for line in lines:
            verdict = self.tenant.get(f"/v1/receipts/{line['event_id']}/verify").expect(200)
            self.assertEqual((verdict["verdict"], verdict["checks"]["link"]), ("valid", "ok"), verdict)

    def test_an_export_has_one_tenant_s_receipts_only(self):
        other = self.aegis.tenant().register_tools()
        other.register_agent().authorize()
        self.agent.authorize()
        for tenant in (self.tenant, other):
            self.assertEqual({line["tenant_id"] for line in tenant.export()}, {tenant.name})

    def test_an_export_works_while_stopped_and_is_the_same(self):
        self.agent.authorize()
        running = {line["receipt_hash"] for line in self.tenant.export()}
        self.aegis.stop()
        stopped = self.tenant.export()
        self.assertLessEqual(running, {line["receipt_hash"] for line in stopped})
        check_chain(stopped)
        closed = [line["receipt"]["phase"] for line in stopped].count("close")
        self.assertGreaterEqual(closed, 1)
        self.aegis.start()
