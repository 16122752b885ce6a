"""One exchange over HTTP, and its reply."""

import contextlib
import http.client
import json
import socket

from waiting import DEADLINE_S


class Reply:
    """Status, headers and body of one HTTP reply."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """The code of an error reply, or None."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return self.json["error"]["code"]
        return None

    def expect(self, status):
        """The body as JSON of a reply that must have this status."""
        if self.status != status:
            raise AssertionError(f"expected HTTP {status}, got {self.status}: {self.text[:600]}")
        return self.json

    def __repr__(self):
        return f"Reply({self.status}, {self.text[:300]})"


def send(connection, method, path, body=None, headers=None):
    """One exchange. A server that refuses a body may close before it has read all of it: then the reply still counts."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return Reply(response.status, response.headers, response.read())


class Session:
    """A kept-alive connection, for load. Any failure is raised: the caller must not count what was not answered."""

    def __init__(self, port, timeout_s=DEADLINE_S):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, method, path, body=None, headers=None):
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def close(self):
        self._connection.close()
