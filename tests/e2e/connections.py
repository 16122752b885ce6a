"""Connections of one peer: it has its part of the listener's and no more, and everybody else is answered meanwhile."""

import socket
import unittest

from harness import Aegis
from waiting import wait_until

MOST = 3
REQUEST = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def own_address():
    """An address of this machine that is not its loopback's; None where it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = asked.getsockname()[0]
    return None if address.startswith("127.") else address


class PerPeer(unittest.TestCase):
    def start(self, most=None):
        """The program, and how many connections it is told that a peer may have: None leaves the default."""
        self.aegis = Aegis(environment={} if most is None else {"AEGIS_CONNECTIONS_PER_PEER": str(most)})
        self.addCleanup(self.aegis.close)
        self.aegis.listen = "0.0.0.0:0"
        self.aegis.start()

    def connect(self, host):
        connection = socket.create_connection((host, self.aegis.port), timeout=30)
        self.addCleanup(connection.close)
        return connection

    def is_answered(self, connection):
        """Whether a request on it is answered; closed unread, it is not."""
        try:
            connection.sendall(REQUEST)
            answer = connection.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return False
        self.assertIn(answer[:12], (b"HTTP/1.1 200", b""))
        return bool(answer)

    def refused(self):
        return self.aegis.metric("aegis_connections_refused_total")

    def test_a_peer_that_has_its_part_gets_no_more_until_one_of_them_ends(self):
        host = own_address()
        if host is None:
            self.skipTest("this machine has no address but its loopback's")
        self.start(MOST)
        self.assertEqual(self.refused(), 0)
        held = [self.connect(host) for _ in range(MOST)]
        self.assertEqual([self.is_answered(connection) for connection in held], [True] * MOST)
        self.assertEqual([self.is_answered(self.connect(host)) for _ in range(5)], [False] * 5)
        self.assertEqual(self.refused(), 5, "asked from this machine itself, which is not counted")
        self.assertEqual([self.is_answered(connection) for connection in held], [True] * MOST, "what stands goes on")
        self.assertIn("a peer has as many connections as it may", self.aegis.log())
        held.pop().close()
        wait_until("its place is free", lambda: self.is_answered(self.connect(host)))

    def test_this_machine_is_not_counted(self):
        self.start(MOST)
        held = [self.connect("127.0.0.1") for _ in range(4 * MOST)]
        self.assertEqual([self.is_answered(connection) for connection in held], [True] * len(held))
        self.assertEqual(self.refused(), 0)

    def test_a_peer_has_hundreds_unless_it_is_told_otherwise(self):
        host = own_address()
        if host is None:
            self.skipTest("this machine has no address but its loopback's")
        self.start()
        held = [self.connect(host) for _ in range(200)]
        self.assertEqual([self.is_answered(connection) for connection in held], [True] * len(held))
        self.assertEqual(self.refused(), 0)
