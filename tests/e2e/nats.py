"""A real NATS server on loopback, with the streams that `aegis streams apply` makes."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile

DEBIAN = pathlib.Path("/usr/sbin/nats-server")
CURRENT = pathlib.Path(os.environ.get("AEGIS_CACHE", pathlib.Path.home() / ".cache/aegis")) / "bin/nats-server"
SERVERS = {"debian": DEBIAN, "current": CURRENT}


class NatsServer:
    """One server with its own folder."""

    def __init__(self, binary=CURRENT):
        self.binary = binary
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="aegis-nats-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process = None

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def start(self):
        from harness import wait_until

        log = self.folder / "log"
        with log.open("wb") as stderr:
            command = [self.binary, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.folder / "jetstream"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        wait_until("nats-server is ready", lambda: b"Server is ready" in log.read_bytes())
        return self

    def kill9(self):
        self._process.kill()
        self._process.wait()
        self._process = None

    def freeze(self):
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def close(self):
        if self._process is not None:
            self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)
