"""What was said over HTTP, kept as lines of JSON for whoever looks at it later: tests/openapi holds it against the document."""

import base64
import json
import threading


def recording(send, file):
    """`send` of exchange.py, each of whose exchanges becomes a line of the file."""
    lock = threading.Lock()

    def sent(connection, method, path, body=None, headers=None):
        reply = send(connection, method, path, body, headers)
        asked = base64.b64encode(body or b"").decode()
        said = base64.b64encode(reply.body).decode()
        with lock:
            file.write(json.dumps([method, path, asked, reply.status, reply.headers.get("content-type"), said]) + "\n")
            file.flush()
        return reply

    return sent


def recorded(path):
    """Method, path, body, status, content type and body of the reply of each exchange."""
    with path.open() as file:
        for line in file:
            method, path, asked, status, content_type, said = json.loads(line)
            yield method, path, base64.b64decode(asked), status, content_type, base64.b64decode(said)
