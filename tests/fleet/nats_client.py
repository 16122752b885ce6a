"""A NATS client for what no program of ours would do: it logs in with somebody's nkey and writes what it likes."""

import base64
import binascii
import itertools
import json
import secrets
import socket
import ssl
import urllib.parse

from ed25519 import SigningKey

PREFIX_USER = 20 << 3
ANSWER_S = 30


class Refused(AssertionError):
    """The server, or a stream, said no."""


def read_nkey(path):
    """The key of a file with an nkey's seed (`SU...`)."""
    seed = next(line for line in path.read_text().split() if line.startswith("SU"))
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    # Two bytes say what it is, then come the 32 of the seed, then two that check them.
    return SigningKey(raw[2:34])


def public_nkey(key):
    """The public half as the server has it: `U...`."""
    raw = bytes([PREFIX_USER]) + key.public
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


class Client:
    """One connection. Every call waits for its answer."""

    def __init__(self, url, folder, nkey_file, user):
        """`folder`: where the certificates are. `user`: whose nkey it is, and so in which inbox its answers come."""
        self._inbox = f"_INBOX_{user}.{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)
        key = read_nkey(nkey_file)
        address = urllib.parse.urlsplit(url)
        plain = socket.create_connection((address.hostname, address.port), timeout=ANSWER_S)
        info = json.loads(plain.makefile("rb", buffering=0).readline().removeprefix(b"INFO "))
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
        self._socket = context.wrap_socket(plain, server_hostname=address.hostname)
        self._lines = self._socket.makefile("rb")
        signature = base64.urlsafe_b64encode(key.sign(info["nonce"].encode())).decode().rstrip("=")
        login = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "protocol": 1, "lang": "python", "version": "0",
                 "name": "forger", "nkey": public_nkey(key), "sig": signature}
        self._write(f"CONNECT {json.dumps(login)}\r\nSUB {self._inbox}.* 1\r\n".encode())
        self.flush()

    def _write(self, data):
        self._socket.sendall(data)

    def _read(self):
        """The next message as (subject, payload); None for a PONG. Raises what the server says against us."""
        while True:
            word, _, rest = self._lines.readline().rstrip(b"\r\n").partition(b" ")
            if word == b"PING":
                self._write(b"PONG\r\n")
            elif word == b"PONG":
                return None
            elif word == b"-ERR":
                raise Refused(rest.decode())
            elif word in (b"MSG", b"HMSG"):
                parts = rest.split()
                headers = int(parts[-2]) if word == b"HMSG" else 0
                payload = self._lines.read(int(parts[-1]))
                self._lines.read(2)
                return parts[0].decode(), payload[headers:]
            elif word == b"":
                raise Refused("the server closed the connection")

    def flush(self):
        """Returns once the server has taken everything."""
        self._write(b"PING\r\n")
        while self._read() is not None:
            pass

    def publish(self, subject, payload, headers=None, reply=""):
        if headers is None:
            self._write(f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n")
            return
        block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        self._write(f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n{block}".encode() + payload + b"\r\n")

    def request(self, subject, payload, headers=None):
        """The answer as JSON; an error in it is raised."""
        reply = f"{self._inbox}.{next(self._numbers)}"
        self.publish(subject, payload, headers, reply)
        while True:
            message = self._read()
            if message is not None and message[0] == reply:
                answer = json.loads(message[1] or b'{"error": "nobody answers"}')
                if "error" in answer:
                    raise Refused(f"{subject}: {answer['error']}")
                return answer

    def put(self, bucket, key, value, headers=None):
        """Writes over an entry of a bucket, whatever stands there; answers its revision."""
        return self.request(f"$KV.{bucket}.{key}", value, headers)["seq"]

    def get(self, bucket, key):
        """The value that a bucket holds, as its leader has it; of an empty one the server says nothing."""
        wanted = json.dumps({"last_by_subj": f"$KV.{bucket}.{key}"}).encode()
        return base64.b64decode(self.request(f"$JS.API.STREAM.MSG.GET.KV_{bucket}", wanted)["message"].get("data", ""))

    def close(self):
        self._socket.close()
