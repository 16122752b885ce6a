"""Approvals: who decides, what is consumed and how often, and what came of it."""

import concurrent.futures
import threading

from story import Story, action_hash
from waiting import unique, wait_until

# Bytes of a frozen action's JSON form: a message of a MiB, less room for headers.
LARGEST_FROZEN = (1 << 20) - (16 << 10)


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

    def consume(self, approval, claimed=None, agent=None, request_id=None):
        body = {"claimed_action_hash": claimed or approval["action_hash"]} | ({} if request_id is None else {"request_id": request_id})
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

    def test_a_consume_whose_answer_was_lost_is_told_again_and_done_once(self):
        approval = self.ask()
        self.assertEqual(self.get(approval).expect(200)["expires_in"] // 60, 14)
        self.assertIn(approval["expires_in"], range(840, 901))
        self.decide(approval).expect(200)
        requests = [unique("request") for _ in range(4)]
        start = threading.Barrier(32)

        def consume(n):
            start.wait()
            return requests[n % 4], self.consume(approval, request_id=requests[n % 4])

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            replies = list(pool.map(consume, range(32)))
        told = {request for request, reply in replies if reply.status == 200}
        self.assertEqual(len(told), 1, replies)
        refused = {reply.code for _, reply in replies if reply.status != 200}
        self.assertLessEqual(refused, {"approval_consumed", "receipt_pending"})
        [mine] = told
        first = self.consume(approval, request_id=mine).expect(200)
        self.assert_refused(self.consume(approval, "0" * 64, request_id=mine), "idempotency_payload_mismatch")
        self.assert_refused(self.consume(approval, agent=self.tenant.register_agent(), request_id=mine), "wrong_agent")
        self.agent.freeze()
        self.assert_refused(self.consume(approval, request_id=mine), "agent_frozen")
        self.tenant.post(f"/v1/agents/{self.agent.id}/unfreeze", {"reason": "test"}).expect(200)
        self.aegis.restart()
        self.assertEqual(self.consume(approval, request_id=mine).expect(200), first)
        wait_until("the consume is an event", lambda: self.events("approval_consumed", self.agent))
        self.assertEqual(len(self.events("approval_consumed", self.agent)), 1)
        self.assert_chained()

    def test_an_outcome_that_is_reported_again_is_one_receipt(self):
        answer = self.agent.authorize()
        path = f"/v1/decisions/{answer['decision_id']}/outcome"
        report = {"status": "ok", "executed_hash": answer["action_hash"], "output": {"rows": 1}, "request_id": unique("request")}
        send = lambda body: self.tenant.post(path, body, key=self.agent.token)
        first = send(report).expect(201)
        self.assertEqual([send(report).expect(201) for _ in range(3)], [first] * 3)
        self.aegis.restart()
        self.assertEqual(send(report).expect(201), first)
        for other in ({"status": "error"}, {"executed_hash": "0" * 64}, {"output": {"rows": 2}}, {"output": None}):
            self.assert_refused(send(report | other), "idempotency_payload_mismatch")
        wait_until("the attempts are events", lambda: len(self.events("replay_attempt", self.agent)) == 4)
        self.assertEqual(len(self.events("tool_outcome", self.agent)), 1)

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

    def test_who_gave_an_agent_its_token_stays_on_its_side_when_the_key_is_revoked(self):
        registered = self.tenant.post("/v1/agents/register", self.agent.registration).expect(200)
        self.agent.token = registered["agent_token"]
        approval = self.ask()
        key_ids = {key["name"]: key["key_id"] for key in self.tenant.list("/v1/keys")}
        self.aegis.call("DELETE", f"/v1/keys/{key_ids['registrar-person']}", self.tenant.admin).expect(200)
        # The last two in other characters: Cyrillic ones that look the same, and wide ones.
        for name in ("registrar-person", "Registrar-Person", "ada", " ADA", "\u0430d\u0430", "\uff41\uff44\uff41"):
            self.assert_refused(self.decide(approval, key=self.tenant.key("approver", name, groups=("release",))), "self_approval", 403)
        self.decide(approval).expect(200)
        self.consume(approval).expect(200)

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
        self.agent.freeze()
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

    def test_an_action_too_large_to_reach_anybody_is_denied_and_one_that_just_fits_is_shown(self):
        refund = lambda size: {"tool": "crm", "action": "refund", "parameters": {"amount": 5, "note": "x" * size}}
        approval = self.ask(**refund(LARGEST_FROZEN - 4096))
        self.decide(approval).expect(200)
        self.consume(approval).expect(200)
        denied = self.agent.authorize(**refund(LARGEST_FROZEN))
        self.assert_decided(denied, "deny", reason="approval_too_large")
        self.assertIsNone(denied["approval"])
        self.assertEqual(self.tenant.get(f"/v1/receipts/{denied['decision_id']}").expect(200)["decision"], "deny")

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
