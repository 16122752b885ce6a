"""What stands between the program and an S3 server and does each wrong that a network or a store does: it refuses, answers 503, cuts an answer,
loses one, and brings a request to the server long after whoever sent it has given it up."""

import collections
import contextlib
import random
import socket
import threading

# How much later a request comes that is late, seconds: the program has begun again by then.
LATE_S = 3
PATIENCE_S = 60
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Fickle:
    """Takes the program's connections, one request each: the server closes them behind an answer. Good until it is told to be fickle."""

    WRONGS = ("refuse", "unavailable", "cut", "lose", "late")

    def __init__(self, server, seed):
        self.server, self.dice = server, random.Random(seed)
        self.is_fickle = False
        # How often it did what.
        self.done = collections.Counter()
        self._late = []
        # Held while it is decided what becomes of a connection, so that none is missed that is late.
        self._deciding = threading.Lock()
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def heal(self):
        """Does no more wrong, and waits until what is late has come to the server."""
        with self._deciding:
            self.is_fickle = False
            late = list(self._late)
        for thread in late:
            thread.join(PATIENCE_S)

    def close(self):
        self._closing.set()
        self._socket.close()

    def _accept(self):
        while not self._closing.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with self._deciding:
                what = self.dice.choice(self.WRONGS) if self.is_fickle and self.dice.random() < 0.3 else "pass"
                thread = threading.Thread(target=self._serve, args=(client, what), daemon=True)
                thread.start()
                if what == "late":
                    self._late.append(thread)

    def _serve(self, client, what):
        with contextlib.suppress(OSError):
            client.settimeout(PATIENCE_S)
            with client:
                if what != "refuse":
                    request = whole_request(client)
                    if not request:
                        return
                    self._answer(client, request, what)
            self.done[what] += 1
            if what == "late":
                self._closing.wait(LATE_S)
                with self._sent(request) as server:
                    all_of(server)

    def _answer(self, client, request, what):
        if what == "unavailable":
            client.sendall(UNAVAILABLE)
        elif what != "late":
            with self._sent(request) as server:
                answer = all_of(server)
            if what == "cut":
                # Somewhere in its head or its body.
                client.sendall(answer[: len(answer) // 2])
            elif what == "pass":
                client.sendall(answer)

    def _sent(self, request):
        server = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)
        server.sendall(request)
        return server


def whole_request(client):
    """The bytes of one request, its body with it; none where the client went away first."""
    request = b""
    while (end := request.find(b"\r\n\r\n")) < 0:
        if not (part := client.recv(65536)):
            return b""
        request += part
    lengths = [line.split(b":", 1)[1] for line in request[:end].split(b"\r\n") if line.lower().startswith(b"content-length:")]
    wanted = end + 4 + (int(lengths[0]) if lengths else 0)
    while len(request) < wanted:
        if not (part := client.recv(65536)):
            return b""
        request += part
    return request


def all_of(server):
    answer = b""
    while part := server.recv(65536):
        answer += part
    return answer
