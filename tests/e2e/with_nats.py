"""What the tests over a NATS server stand on: a server of their own, that is gone when the test is over."""

import shutil
import unittest

from nats import SERVERS, NatsServer


class WithNats(unittest.TestCase):
    def server(self, name="current", secured=False):
        server = NatsServer(SERVERS[name], secured)
        self.addCleanup(server.close)
        return server if secured else server.start()

    def lose_streams(self, aegis):
        """What the server (`self.nats`) held is gone, and its streams are there again; nobody but the ledgers has what was in it."""
        self.nats.kill9()
        shutil.rmtree(self.nats.folder / "jetstream")
        self.nats.start()
        aegis.apply_streams(self.nats)
