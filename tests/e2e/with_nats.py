"""What the tests over a NATS server stand on: a server of their own, that is gone when the test is over."""

import unittest

from nats import SERVERS, NatsServer


class WithNats(unittest.TestCase):
    def server(self, name="current", secured=False):
        server = NatsServer(SERVERS[name], secured)
        self.addCleanup(server.close)
        return server if secured else server.start()
