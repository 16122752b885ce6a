"""What the tests of the shipped rules stand on: an instance that runs the rules of the repository's folder, so that a rule is tried before it is
compiled in; and its alerts."""

import json
import tempfile
import unittest

from deliveries import webhook_headers
from harness import NATS, REPOSITORY, Aegis
from nats import FAKETIME
from story import Story
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
    """An instance that runs the rules of the repository."""

    @classmethod
    def setUpClass(cls):
        cls.aegis = Aegis(environment={"AEGIS_DETECT_RULES": str(RULES)})
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
        agent.freeze()
        wait_until("it is frozen", lambda: agent.authorize(dry_run=True)["reason"] == "agent_frozen")

    def deliver(self, event, payload):
        """A signed webhook of GitHub, and the id of its event."""
        body = json.dumps(payload).encode()
        headers = webhook_headers(event, unique("delivery"), body, SECRET)
        return self.aegis.call("POST", f"/v1/webhooks/github/{self.tenant.name}", None, body, headers).expect(202)["event_id"]


@unittest.skipIf(NATS, "the server's clock is its own")
class WithMovedClock(WithRules):
    """The same, and its clock is moved on."""

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
