"""Containment and trust: what an agent may no longer do, and what a run has seen; also after a restart."""

import datetime
import pathlib
import shutil
import tempfile
import time

from harness import Aegis
from story import Story
from tenants import until_enforced
from waiting import unique, wait_until

HOLD_S = 6


class Containment(Story):
    def contain(self, verb, **body):
        return self.tenant.post(f"/v1/agents/{self.agent.id}/{verb}", {"reason": "test"} | body).expect(200)

    def read_becomes(self, decision, reason=None):
        """Waits for the answer to a harmless read to change; control waits for the edge only so long."""
        return wait_until(f"a read is {decision} {reason or ''}", lambda: (a := self.agent.read())["decision"] == decision and (reason is None or a["reason"] == reason))

    def test_a_frozen_agent_is_denied_everything_also_after_a_restart(self):
        until_enforced(self.agent.freeze)
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
        until_enforced(self.agent.freeze)
        self.assert_decided(self.agent.send(body).expect(200), "deny", reason="agent_frozen")

    def test_a_hold_ends_with_its_time_and_not_before(self):
        # Long enough for a busy machine to answer before its end.
        asked = time.monotonic()
        self.contain("freeze", ttl_s=HOLD_S)
        self.read_becomes("deny", "agent_frozen")
        self.read_becomes("allow")
        self.assertGreaterEqual(time.monotonic() - asked, HOLD_S - 0.5)

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
        wait_until("an incident", lambda: self.tenant.list("/v1/incidents"))
        evidence = {event_id for record in alerts for event_id in record.get("alert", record)["event_ids"]}
        wait_until("its evidence is in the history", lambda: evidence & {decision["event_id"] for decision in self.tenant.list("/v1/decisions")})


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
