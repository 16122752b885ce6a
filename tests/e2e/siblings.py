"""Rules that know an agent's owner: what control registers and holds goes into the log, and detection reads it there, also after a restart."""

from rules_fire import WithRules, alerts
from waiting import wait_until


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
        self.allow(other)
        second = self.deny(driven, resource="customer-9")
        self.freeze(driven)
        after = self.allow(sibling, resource="customer-9")
        self.alert("sibling-evasion", [second, after], agent_id=sibling.id, resource="customer-9")
        self.assertEqual(len(alerts(self.tenant, "sibling-evasion")), 2)
