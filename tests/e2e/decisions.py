"""Decisions: trust labels, the registry, the packs, replays; and that a restart forgets none of it."""

import base64
import concurrent.futures
import hashlib
import json

from ed25519 import SigningKey
from receipts import canonical
from story import HEX, Story, action_hash, now
from waiting import unique, wait_until


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
        # At once: one after the other they could be a second apart on a busy machine.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: greedy.send(greedy.request()), range(8)))
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
