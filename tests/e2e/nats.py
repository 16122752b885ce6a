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
# Debian keeps it in a folder of the machine's kind.
FAKETIME = str(next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), "libfaketime is missing: run scripts/setup.sh"))
SERVERS = {"debian": DEBIAN, "current": CURRENT}


class NatsServer:
    """One server with its own folder."""

    def __init__(self, binary=CURRENT, secured=False):
        """`secured`: with the users that `aegis streams users` writes, and TLS on both sides; it is started by whoever writes them."""
        self.binary, self.is_secured = binary, secured
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="aegis-nats-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process = None
        self.users = self.folder / "users.conf"
        if secured:
            make_certificates(self.folder)

    @property
    def url(self):
        return f"{'tls' if self.is_secured else 'nats'}://127.0.0.1:{self.port}"

    @property
    def environment(self):
        """How a process is told of it."""
        of_tls = {"CA_FILE": "ca.pem", "CERTIFICATE_FILE": "client.pem", "KEY_FILE": "client.key"} if self.is_secured else {}
        return {"AEGIS_NATS_SERVERS": self.url} | {f"AEGIS_NATS_{key}": str(self.folder / name) for key, name in of_tls.items()}

    @property
    def options(self):
        """The same on a command line."""
        of_tls = {"--ca": "ca.pem", "--tls-certificate": "client.pem", "--tls-key": "client.key"} if self.is_secured else {}
        return [part for option, name in of_tls.items() for part in (option, self.folder / name)]

    def configure(self):
        lines = [f'listen: "127.0.0.1:{self.port}"', f'jetstream {{ store_dir: "{self.folder / "jetstream"}" }}']
        if self.is_secured:
            files = {key: self.folder / name for key, name in (("cert_file", "server.pem"), ("key_file", "server.key"), ("ca_file", "ca.pem"))}
            lines.append("tls { " + ", ".join(f'{key}: "{path}"' for key, path in files.items()) + ", verify: true }")
            lines.append('include "users.conf"')
        path = self.folder / "server.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def start(self):
        from harness import wait_until

        log = self.folder / "log"
        with log.open("wb") as stderr:
            command = [self.binary, "-c", self.configure()]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        wait_until("nats-server is ready", lambda: b"Server is ready" in log.read_bytes())
        return self

    def reload(self):
        """It reads its users again."""
        from harness import wait_until

        log = self.folder / "log"
        before = log.read_bytes().count(b"Reloaded")
        self._process.send_signal(signal.SIGHUP)
        wait_until("nats-server has read its configuration again", lambda: log.read_bytes().count(b"Reloaded") > before)

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


def make_certificates(folder):
    """An authority, and certificates of it for the server and for its clients."""

    def openssl(*arguments):
        # Valid since yesterday: clocks of tests are minutes apart.
        environment = os.environ | {"LD_PRELOAD": FAKETIME, "FAKETIME": "-1d"}
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder, env=environment)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-days", 3, "-subj", "/CN=aegis test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={usage}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", 3, "-extfile", extensions, "-out", f"{name}.pem")
