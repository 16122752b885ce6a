"""Callbacks: what became of an approval is told to a receiver, once at least, signed, and to nobody else."""

import pathlib
import tempfile

from harness import Aegis
from nats import make_certificates
from receiver import Receiver, signature
from story import Story
from waiting import wait_until

SECRET = "the callback secret of an end-to-end test"
NEXT_SECRET = "the one that comes after it, as long as that"


class Asking(Story):
    """A tenant with a receiver on its list."""

    def setUp(self):
        super().setUp()
        self.approver = self.tenant.key("approver", "rita", groups=("release", "security"))
        self.tenant.put("/v1/callbacks/secret", {"secret": SECRET}).expect(200)

    def receiver(self, **options):
        receiver = Receiver(**options)
        self.addCleanup(receiver.close)
        return receiver

    def allow(self, *receivers):
        self.tenant.settings(callback_allow_list=[receiver.url for receiver in receivers])

    def ask(self, receiver):
        """An approval whose request names the receiver, once control can show it."""
        body = self.agent.request(action="refund", parameters={"amount": 5}, callback={"url": receiver.url})
        answer = wait_until("the edge knows the list", lambda: (reply := self.agent.send(body)).status == 200 and reply.json)
        self.assert_decided(answer, "require_approval")
        approval = answer["approval"]["approval_id"]
        wait_until("the approval is there", lambda: self.tenant.get(f"/v1/approvals/{approval}").status == 200)
        return approval

    def decide(self, approval, verb="approve", **body):
        self.tenant.post(f"/v1/approvals/{approval}/{verb}", body, key=self.approver).expect(200)

    def callback(self, approval):
        """What the approval's view says of its callback: status, attempts, last error."""
        callback = self.tenant.get(f"/v1/approvals/{approval}").expect(200)["callback"]
        return callback and (callback["status"], callback["attempts"], callback["last_error"])

    def until_callback(self, approval, status, last_error=None):
        def is_so():
            seen = self.callback(approval)
            return seen and (seen[0], seen[2]) == (status, last_error)

        wait_until(f"the callback is {status}, {last_error}", is_so)


class Callbacks(Asking):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="aegis-e2e-")
        cls.addClassCleanup(folder.cleanup)
        cls.known, cls.unknown = (pathlib.Path(folder.name) / name for name in ("known", "unknown"))
        for authority in (cls.known, cls.unknown):
            authority.mkdir()
            make_certificates(authority)
        cls.aegis = Aegis(environment={"AEGIS_CONTROL_CALLBACK_LOOPBACK": "true", "SSL_CERT_FILE": str(cls.known / "ca.pem")})
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()

    def test_every_decision_is_told_with_a_signature_that_only_the_secret_s_holders_make(self):
        receiver = self.receiver()
        self.allow(receiver)
        approved, rejected = self.ask(receiver), self.ask(receiver)
        self.tenant.settings(approval_ttl_s=1)
        expired = self.ask(receiver)
        self.decide(approved)
        self.decide(rejected, "reject")
        for approval in (approved, rejected, expired):
            self.until_callback(approval, "delivered")
        told = {body["approval_id"]: body["status"] for body in receiver.taken()}
        self.assertEqual(told, {approved: "APPROVED", rejected: "REJECTED", expired: "EXPIRED"})
        for came, body in zip(receiver.came, receiver.taken(), strict=True):
            self.assertEqual(came.headers["AegisAgent-Signature"], signature(SECRET, came))
            self.assertNotEqual(came.headers["AegisAgent-Signature"], signature(NEXT_SECRET, came))
            self.assertEqual(body["tenant_id"], self.tenant.name)
            asked = self.tenant.get(f"/v1/approvals/{body['approval_id']}").expect(200)
            self.assertEqual((asked["status"], asked["action_hash"]), (body["status"], body["action_hash"]))
        receipts = {line["receipt_hash"] for line in self.export_with_decisions(3)}
        self.assertLessEqual({body["receipt_hash"] for body in receiver.taken()}, receipts)
        wait_until("they are counted", lambda: (self.aegis.metric("aegis_callbacks_total") or 0) >= 3)

    def export_with_decisions(self, count):
        wait_until("the decisions are events", lambda: len(self.events("approval_decided")) == count)
        return self.assert_chained()

    def test_an_edit_is_told_as_pending_with_the_new_hash(self):
        receiver = self.receiver()
        self.allow(receiver)
        approval = self.ask(receiver)
        call = {"tool": "crm", "action": "refund", "resource": "customer-1", "mutates_state": True, "parameters": {"amount": 4}}
        self.decide(approval, "edit", tool_call=call)
        self.until_callback(approval, "delivered")
        [body] = receiver.taken()
        self.assertEqual((body["status"], body["version"]), ("PENDING", 1))
        self.assertEqual(body["action_hash"], self.tenant.get(f"/v1/approvals/{approval}").expect(200)["action_hash"])

    def test_a_decision_before_a_kill_is_told_after_it(self):
        receiver = self.receiver()
        receiver.status = 503
        self.allow(receiver)
        approvals = [self.ask(receiver) for _ in range(3)]
        for approval in approvals:
            self.decide(approval, "reject")
        self.aegis.kill9()
        receiver.status = 200
        self.aegis.start()
        for approval in approvals:
            self.until_callback(approval, "delivered")
        self.assertLessEqual(set(approvals), {body["approval_id"] for body in receiver.taken()})
        ids = {}
        for body in receiver.taken():
            ids.setdefault(body["approval_id"], set()).add(body["callback_id"])
        self.assertTrue(all(len(known) == 1 for known in ids.values()), "a callback that comes twice has the id it had")

    def test_a_failure_is_tried_again_and_a_redirect_is_not_followed(self):
        receiver, elsewhere = self.receiver(), self.receiver()
        receiver.status = 500
        self.allow(receiver, elsewhere)
        approval = self.ask(receiver)
        self.decide(approval)
        self.until_callback(approval, "waiting", "answered_500")
        receiver.status, receiver.location = 307, elsewhere.url
        self.until_callback(approval, "waiting", "redirected")
        receiver.status, receiver.location = 200, None
        self.until_callback(approval, "delivered")
        self.assertEqual((elsewhere.came, len(receiver.taken())), ([], 1))

    def test_what_is_taken_off_the_list_is_not_called_again(self):
        receiver = self.receiver()
        receiver.status = 500
        self.allow(receiver)
        approval = self.ask(receiver)
        self.decide(approval)
        self.until_callback(approval, "waiting", "answered_500")
        self.allow()
        receiver.status = 200
        self.until_callback(approval, "given_up", "not_allowed")
        self.assertEqual(receiver.taken(), [])
        # Said once it is noted.
        wait_until("it is said", lambda: "a callback is given up" in self.aegis.log())

    def test_while_the_secret_is_changed_both_sign_and_neither_is_told(self):
        receiver = self.receiver()
        self.allow(receiver)
        set_again = self.tenant.put("/v1/callbacks/secret", {"secret": NEXT_SECRET, "overlap_s": 600}).expect(200)
        self.assertIsNotNone(set_again["previous_until"])
        approval = self.ask(receiver)
        self.decide(approval)
        self.until_callback(approval, "delivered")
        [came] = receiver.came
        self.assertEqual(came.headers["AegisAgent-Signature"].split(","), [signature(NEXT_SECRET, came), signature(SECRET, came)])
        self.tenant.put("/v1/callbacks/secret", {"secret": NEXT_SECRET, "overlap_s": 0}).expect(200)
        second = self.ask(receiver)
        self.decide(second)
        self.until_callback(second, "delivered")
        self.assertEqual(receiver.came[1].headers["AegisAgent-Signature"], signature(NEXT_SECRET, receiver.came[1]))
        self.assertEqual(len(wait_until("the changes are events", lambda: self.secret_changes(3))), 3)
        told = self.aegis.log() + str(self.tenant.export()) + str([came.body for came in receiver.came])
        for secret in (SECRET, NEXT_SECRET):
            self.assertNotIn(secret, told)

    def secret_changes(self, count):
        changes = [event for event in self.events("config_changed") if event["reason"] == "callback_secret_changed"]
        return changes if len(changes) >= count else None

    def test_over_tls_a_receiver_is_told_only_if_it_proves_its_name(self):
        known, unknown = self.receiver(certificate=self.known), self.receiver(certificate=self.unknown)
        self.allow(known, unknown)
        told, untold = self.ask(known), self.ask(unknown)
        self.decide(told)
        self.decide(untold)
        self.until_callback(told, "delivered")
        self.until_callback(untold, "waiting", "tls_failed")
        self.assertEqual((len(known.taken()), unknown.came), (1, []))

    def test_a_receiver_that_is_down_holds_up_neither_the_decision_nor_other_tenants(self):
        down, receiver = Receiver(), self.receiver()
        down.close()
        self.allow(down)
        approvals = [self.ask(down) for _ in range(6)]
        for approval in approvals:
            self.decide(approval, "reject")
        other = Callbacks("test_an_edit_is_told_as_pending_with_the_new_hash")
        other.setUp()
        self.addCleanup(other.doCleanups)
        other.allow(receiver)
        approval = other.ask(receiver)
        other.decide(approval)
        other.until_callback(approval, "delivered")
        for approval in approvals:
            self.until_callback(approval, "waiting", "unreachable")
        wait_until("they are counted", lambda: self.aegis.metric("aegis_callbacks_waiting") >= 6)


class AsShipped(Asking):
    """Without the setting that tests need."""

    def test_addresses_of_this_machine_are_not_called(self):
        self.assertEqual(self.tenant.put("/v1/settings", {"callback_allow_list": ["http://127.0.0.1:8080/"]}).status, 400)
        receiver = self.receiver()
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0"):
            receiver.url = f"https://{host}:{receiver.url.split(':')[-1]}"
            self.allow(receiver)
            approval = self.ask(receiver)
            self.decide(approval)
            wait_until(f"{host} is refused", lambda approval=approval: (self.callback(approval) or [None] * 3)[2] in ("address_refused", "name_unknown"))
        self.assertEqual(receiver.connections, 0)

