"""Rules that know an agent's owner: what control registers and holds goes into the log, and detection reads it there, also after a restart. And
rules that read what others told, once that is final."""

from waiting import wait_until
from with_rules import WithMovedClock, WithRules, alerts


class Siblings(WithRules):
    def agents(self, *owners):
        return [self.tenant.register_agent(owner_team=owner) for owner in owners]

    def test_sibling_evasion_fires(self):
        driven, sibling, stranger, moved, alone = self.agents("billing", "billing", "sales", "billing", None)
        customer = {"resource": "customer-7"}
        denied = self.deny(driven, **customer)
        self.freeze(driven)
        # Registered again, it is another owner's from there on.
        again = moved.registration | {"owner_team": "sales"}
        moved.token = self.tenant.post("/v1/agents/register", again, key=self.tenant.registrar).expect(200)["agent_token"]
        # Who decides and who registers are two producers: what is behind it in the log is seen after it.
        self.event("config_changed", reason="agent_registered_again")
        for agent in (stranger, moved, alone):
            self.allow(agent, **customer)
        self.allow(sibling, resource="customer-8")
        tried = self.allow(sibling, **customer)
        alert = self.alert("sibling-evasion", [denied, tried], agent_id=sibling.id)
        self.assertEqual((alert["event_ids"], alert["key"]["resource"]), ([denied, tried], "customer-7"))
        fields = alert["fields"]
        self.assertEqual((fields["frozen_agent_id"], fields["owner_team"], fields["decision"]), (driven.id, "billing", "allow"))
        self.assertEqual(len(alerts(self.tenant, "sibling-evasion")), 1, "the others are no siblings of it")

    def test_what_is_registered_and_held_is_known_after_a_restart(self):
        driven, sibling, other = self.agents("billing", "billing", "billing")
        denied = self.deny(driven)
        self.freeze(driven)
        wait_until("the freeze is in the history", lambda: self.events("containment_applied", driven))
        self.aegis.restart()
        tried = self.allow(sibling)
        self.alert("sibling-evasion", [denied, tried], agent_id=sibling.id)
        # Who is free again has no siblings that evade anything.
        self.tenant.post(f"/v1/agents/{driven.id}/unfreeze", {"reason": "test"}).expect(200)
        wait_until("so is its release", lambda: len(self.events("containment_applied", driven)) == 2)
        self.allow(other)
        second = self.deny(driven, resource="customer-9")
        self.freeze(driven)
        # Who freezes and who decides are two producers: what is behind it in the log is seen after it.
        wait_until("so is the second freeze", lambda: [event["status"] for event in self.events("containment_applied", driven)].count("applied") == 2)
        after = self.allow(sibling, resource="customer-9")
        self.alert("sibling-evasion", [second, after], agent_id=sibling.id, resource="customer-9")
        self.assertEqual(len(alerts(self.tenant, "sibling-evasion")), 2)


class Campaign(WithMovedClock):
    """What is told of alerts waits until nothing can come any more that would take them back."""

    def test_campaign_fires(self):
        other = self.tenant.register_agent()
        first = self.agent.request(nonce="n", request_id="r")
        self.agent.send(first).expect(200)
        self.assertEqual(self.agent.send(first | {"request_id": "s"}).code, "replay_nonce_reused")
        self.deny()
        self.deny(other)
        approval = self.ask()
        self.decide(approval).expect(200)
        self.assertEqual(self.consume(approval, claimed="0" * 64).code, "action_hash_mismatch")
        told = [self.alert(rule, agent_id=self.agent.id) for rule in ("replay", "confused-deputy", "approve-then-swap")]
        self.assertEqual(alerts(self.tenant, "campaign"), [], "they may still be taken back")
        self.move_clock(200)

        def found():
            # Both producers of the tenant say that its time goes on.
            self.agent.read()
            self.tenant.register_agent()
            return alerts(self.tenant, "campaign")

        wait_until("the three are final, and it is told", found)
        alert = self.alert("campaign", [of["event_ids"][-1] for of in told], agent_id=self.agent.id)
        self.assertGreaterEqual(alert["fields"]["ways"], 3)
        self.assertLessEqual({of["rule_name"] for of in told}, set(alert["fields"]["rules"]))
        self.assertEqual(len(alerts(self.tenant, "campaign")), 1, "of the other agent one rule told")
