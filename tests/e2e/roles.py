"""Each role behind the edges is a user of the NATS server with a connection of its own: one that is cut is named, comes back by itself, and holds up
nobody else."""

import json
import re
import uuid

from deliveries import GITHUB_EVENTS, webhook_headers
from harness import Aegis, StartFailed
from waiting import wait_until
from with_nats import WithNats

PARTS = ["detect", "respond", "history", "ingest", "lake"]
ALL = dict.fromkeys(["control", *PARTS], True)
SECRET = "a secret of the webhooks"


def without(users, *parts):
    """The users file without those of some roles. A user is a line that names it and the four that follow."""
    lines = users.splitlines(keepends=True)
    for part in parts:
        [at] = [number for number, line in enumerate(lines) if line.strip().startswith(f"# soc.{part}:")]
        del lines[at:at + 5]
    return "".join(lines)


class Roles(WithNats):
    SERVER = "current"

    def setUp(self):
        self.nats = self.server(self.SERVER, secured=True)
        self.aegis = Aegis(nats=self.nats)
        self.addCleanup(self.aegis.close)
        self.aegis.start()
        self.tenant = self.aegis.tenant().register_tools()
        self.tenant.set_webhook_secret(SECRET)
        self.agent = self.tenant.register_agent()

    def connections(self):
        """Whether it is ready, and who is connected, as readiness says it; and metrics say the same."""
        reply = self.aegis.get("/readyz")
        found = re.findall(r'^aegis_nats_connected\{role="(\w+)"\} (\d)', self.aegis.get("/metrics").text, re.MULTILINE)
        shown = reply.json["connections"]
        return reply.status == 200, shown, {role: value == "1" for role, value in found} == shown

    def deliver(self):
        body = b'{"action":"opened"}'
        headers = webhook_headers("issues", str(uuid.uuid4()), body, SECRET)
        return self.aegis.call("POST", f"/v1/webhooks/github/{self.tenant.name}", None, body, headers)

    def arrives(self):
        """A call and a webhook are taken, and the history has both."""
        receipt = self.agent.authorize()["receipt"]["receipt_hash"]
        event = self.deliver().expect(202)["event_id"]
        wait_until("the history has the call", lambda: receipt in [line["receipt_hash"] for line in self.tenant.list("/v1/receipts")])
        wait_until("the history has the webhook", lambda: event in [line["event_id"] for line in self.tenant.list(GITHUB_EVENTS)])

    def is_contained(self):
        """Detection alerts, response asks, control freezes."""
        agent = self.tenant.register_agent()
        for _ in range(5):
            self.assertEqual(agent.authorize(tool="unheard", action="of")["decision"], "deny")
        wait_until("the agent is frozen", lambda: agent.read()["reason"] == "agent_frozen")

    def set_users(self, text):
        self.nats.users.write_text(text)
        self.nats.reload()

    def test_a_role_that_is_cut_off_is_named_and_comes_back_and_the_others_go_on(self):
        self.assertEqual(self.connections(), (True, ALL, True))
        self.arrives()
        users = self.nats.users.read_text()
        self.set_users(without(users, "lake"))
        wait_until("the lake's connection is down", lambda: self.connections() == (False, ALL | {"lake": False}, True))
        self.arrives()
        self.is_contained()
        rows = self.aegis.metric("aegis_lake_rows_total")
        self.set_users(users)
        wait_until("the lake is back", lambda: self.connections() == (True, ALL, True))
        wait_until("it writes what it missed", lambda: self.aegis.metric("aegis_lake_rows_total") > rows)
        self.set_users(without(users, "ingest", "detect"))
        wait_until("both are down", lambda: self.connections() == (False, ALL | {"ingest": False, "detect": False}, True))
        self.assertEqual(self.deliver().status, 503)
        self.assertEqual(self.agent.authorize()["decision"], "allow")
        self.set_users(users)
        wait_until("both are back", lambda: self.connections() == (True, ALL, True))
        self.arrives()
        self.is_contained()

    def test_a_server_that_does_not_know_the_roles_is_told_of_at_the_start(self):
        users = self.nats.users.read_text()
        self.aegis.stop()
        self.set_users(without(users, "detect", "lake"))
        # It writes no users itself: those that the server has would be whole again.
        path = self.aegis.environment.pop("AEGIS_NATS_USERS_FILE")
        with self.assertRaises(StartFailed) as failed:
            self.aegis.start()
        self.assertRegex(failed.exception.output, r"not its roles detect, lake.*aegis streams users --data")
        self.aegis.environment["AEGIS_NATS_USERS_FILE"] = path
        self.set_users(users)
        self.aegis.start()
        self.arrives()

    def test_a_folder_of_before_goes_on_with_one_user_until_it_is_told(self):
        self.aegis.stop()
        keys = self.aegis.data / "keys"
        logins = [keys / f"nats-{part}.nk" for part in PARTS]
        seeds = [login.read_text() for login in logins]
        for login in logins:
            self.assertEqual(login.stat().st_mode & 0o777, 0o600)
            login.unlink()
        # As the server was told before: control may all.
        nkey = re.search(r"# control:.*\n\s*\{ nkey: (U\w+)", self.nats.users.read_text())[1]
        of_before = without(self.nats.users.read_text(), *PARTS)
        self.set_users(re.sub(rf"(nkey: {nkey}, permissions: \{{\s*publish: \{{ allow: )\[.*?\]", r'\1[">"]', of_before))
        self.aegis.start()
        self.assertIn("are one NATS user", self.aegis.log())
        self.assertEqual(self.connections(), (True, {"control": True}, True))
        # What it wrote itself gives its one user what all need.
        self.assertEqual(self.nats.users.read_text().count("# soc."), 0)
        self.nats.reload()
        self.arrives()
        self.is_contained()

        login = logins.pop()
        login.write_text(seeds.pop())
        login.chmod(0o600)
        self.aegis.stop()
        with self.assertRaises(StartFailed) as failed:
            self.aegis.start()
        self.assertRegex(failed.exception.output, r"no NATS login of detect, respond, history, ingest.*aegis streams users")
        self.aegis.cli("streams", "users", "--data", self.aegis.data, "--write", self.nats.users)
        self.nats.reload()
        self.aegis.start()
        self.assertEqual(self.connections(), (True, ALL, True))
        self.arrives()
        self.is_contained()
        for text in [self.aegis.log(), self.nats.users.read_text(), json.dumps(self.aegis.get("/readyz").json)]:
            self.assertNotRegex(text, r"\bSU[A-Z2-7]{56}\b")


class RolesOnDebian(Roles):
    """The same on the oldest server that is supported."""

    SERVER = "debian"
