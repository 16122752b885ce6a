"""The control plane's Postgres goes away under load."""

import signal

from case import SOME, FleetTest
from waiting import wait_until


class Stores(FleetTest):
    def test_postgres_is_restarted(self):
        """In its immediate mode: connections break and no transaction is finished."""
        self.through(signal.SIGQUIT)

    def test_postgres_is_killed(self):
        """kill -9 of all that it is."""
        self.through(signal.SIGKILL)

    def through(self, how):
        """Edges do not notice, control says what it cannot do, and goes on by itself when the store is back."""
        postgres, agent = self.fleet.postgres, self.fleet.tenant.register_agent()
        with self.unfelt():
            postgres.stop(how)
            self.load.more(SOME)
            reply = agent.tenant.post(f"/v1/agents/{agent.id}/freeze", {"reason": "a test"})
            self.assertGreaterEqual(reply.status, 500, reply)
        postgres.start()
        wait_until("control works again", lambda: agent.tenant.get("/v1/agents").status == 200)
        self.webhooks_go_on()
        frozen, reply = self.freeze_later()
        self.wait_denied(frozen)
        self.whole()
