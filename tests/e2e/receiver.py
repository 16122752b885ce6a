"""A receiver of callbacks: a real HTTP server, with TLS where it has a certificate, and what came to it."""

import collections
import hashlib
import hmac
import http.server
import json
import ssl
import threading

Came = collections.namedtuple("Came", "headers body answered")


class Receiver:
    """Answers `status` to every POST, with `location` if that is set."""

    def __init__(self, certificate=None):
        """`certificate`: a folder with `server.pem` and `server.key`, for TLS."""
        self.came, self.connections = [], 0
        self.status, self.location = 200, None
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = receiver.status
                receiver.came.append(Came(self.headers, body, status))
                self.send_response(status)
                if receiver.location:
                    self.send_header("location", receiver.location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def get_request(self):
                request = super().get_request()
                receiver.connections += 1
                return request

            def handle_error(self, *_):
                """A caller that does not believe the certificate hangs up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "server.pem", certificate / "server.key")
            # The handshake is the handler's, so that one that fails holds up nobody.
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/approvals?of=e2e"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def taken(self):
        """The bodies that were answered 200."""
        return [json.loads(came.body) for came in self.came if came.answered == 200]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def signature(secret, came):
    """What a holder of the secret says of a callback that came."""
    signed = came.headers["AegisAgent-Timestamp"].encode() + b"." + came.body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
