"""A day's honest work, which raises no alert of any shipped rule."""

from story import now
from waiting import unique, wait_until
from with_rules import SECRET, UNTRUSTED, WithRules, alerts


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
        self.assertEqual(self.decide(self.ask(fence), by="registrar-person").code, "self_approval")
        shown = {self.alert("canonicalization-skew", agent_id=fence.id)["alert_id"],
                 self.alert("self-approval", approver="registrar-person")["alert_id"]}
        return [alert for alert in alerts(self.tenant) if alert["alert_id"] not in shown]
