"""A real NATS server on loopback, with the streams that `aegis streams apply` makes."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile

from own_process import OwnServer
from waiting import wait_until

DEBIAN = pathlib.Path("/usr/sbin/nats-server")
CURRENT = pathlib.Path(os.environ.get("AEGIS_CACHE", pathlib.Path.home() / ".cache/aegis")) / "bin/nats-server"
# Debian keeps it in a folder of the machine's kind.
FAKETIME = str(next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), "libfaketime is missing: run scripts/setup.sh"))
SERVERS = {"debian": DEBIAN, "current": CURRENT}


# Ports that clients are given are left alone: a server that is down for a moment must find its own again.
# Those below these are the crates' tests', which run beside (crates/aegis-bus/tests/nats/port.rs).
LOWEST = 14_000
# A group takes some dozens.
ENOUGH = 200
_given = set()


def share_of_ports():
    """Which of how many equal parts of the ports this process has, by AEGIS_E2E_PORTS (`0/3`: the first of three): who runs beside others never
    takes a port of a server of theirs that is down for a moment."""
    share, shares = map(int, os.environ.get("AEGIS_E2E_PORTS", "0/1").split("/"))
    return share, shares


def part_of_ports(part, parts):
    """AEGIS_E2E_PORTS for one of so many processes that have what this one has."""
    share, shares = share_of_ports()
    return f"{share * parts + part}/{shares * parts}"


def own_ports():
    """Those that this process may give. None of a range that is too small."""
    lowest_of_clients = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    share, shares = share_of_ports()
    each = (lowest_of_clients - LOWEST) // shares
    return range(LOWEST + share * each, LOWEST + (share + 1) * each) if each >= ENOUGH else None


def free_port():
    """A port of loopback that nobody has now, and no client will be given."""
    own = own_ports()
    dice = random.SystemRandom()
    while True:
        port = dice.choice(own) if own else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            port = probe.getsockname()[1]
            if port not in _given:
                _given.add(port)
                return port


class Reached:
    """How a process is told of a server, or of several: what `url`, `folder` and `is_secured` say."""

    # What else `aegis streams apply` is told.
    apply_options = ()
    # It waits for TLS before it says anything.
    is_tls_first = False

    @property
    def scheme(self):
        return "tls" if self.is_secured else "nats"

    @property
    def environment(self):
        """In its environment."""
        of_tls = {"CA_FILE": "ca.pem", "CERTIFICATE_FILE": "client.pem", "KEY_FILE": "client.key"} if self.is_secured else {}
        first = {"AEGIS_NATS_TLS_FIRST": "true"} if self.is_tls_first else {}
        return {"AEGIS_NATS_SERVERS": self.url} | first | {f"AEGIS_NATS_{key}": str(self.folder / name) for key, name in of_tls.items()}

    @property
    def options(self):
        """On its command line, beside the server itself."""
        of_tls = {"--ca": "ca.pem", "--tls-certificate": "client.pem", "--tls-key": "client.key"} if self.is_secured else {}
        first = ["--tls-first"] if self.is_tls_first else []
        return [part for option, name in of_tls.items() for part in (option, self.folder / name)] + first


class NatsServer(OwnServer, Reached):
    """One server with its own folder."""

    def __init__(self, binary=CURRENT, secured=False):
        """`secured`: with the users that `aegis streams users` writes, and TLS on both sides; it is started by whoever writes them."""
        self.binary, self.is_secured = binary, secured
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="aegis-nats-"))
        self.port = free_port()
        self.users = self.folder / "users.conf"
        if secured:
            make_certificates(self.folder)

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def configure(self):
        lines = [f'listen: "127.0.0.1:{self.port}"', f'jetstream {{ store_dir: "{self.folder / "jetstream"}" }}']
        if self.is_secured:
            lines += [tls_block(self.folder, "server", self.is_tls_first), 'include "users.conf"']
        path = self.folder / "server.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def start(self):
        log = self.folder / "log"
        with log.open("wb") as stderr:
            command = [self.binary, "-c", self.configure()]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        wait_until("nats-server is ready", self._is_ready)
        return self

    def _is_ready(self):
        said = (self.folder / "log").read_bytes()
        if self._process.poll() is not None:
            raise AssertionError(f"nats-server ended:\n{said.decode('utf-8', 'replace')[-2000:]}")
        return b"Server is ready" in said

    def reload(self):
        """It reads its users again."""
        log = self.folder / "log"
        before = log.read_bytes().count(b"Reloaded")
        self.signal(signal.SIGHUP)
        wait_until("nats-server has read its configuration again", lambda: log.read_bytes().count(b"Reloaded") > before)


def tls_block(folder, name, is_first=False):
    """The server's own certificate, that it asks for one of the same authority, and whether it waits for that before it says anything."""
    files = {key: folder / file for key, file in (("cert_file", f"{name}.pem"), ("key_file", f"{name}.key"), ("ca_file", "ca.pem"))}
    return "tls { " + ", ".join(f'{key}: "{path}"' for key, path in files.items()) + f", verify: true{', handshake_first: true' if is_first else ''} }}"


def make_certificates(folder, names="IP:127.0.0.1,DNS:localhost"):
    """An authority, and certificates of it for the server, for its clients, and for servers of a cluster among themselves. `names`: whose they are."""

    def openssl(*arguments):
        # Valid since yesterday: clocks of tests are minutes apart.
        environment = os.environ | {"LD_PRELOAD": FAKETIME, "FAKETIME": "-1d"}
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder, env=environment)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-days", 3, "-subj", "/CN=aegis test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth"), ("route", "serverAuth,clientAuth")):
        openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={names}\nextendedKeyUsage={usage}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", 3, "-extfile", extensions, "-out", f"{name}.pem")
