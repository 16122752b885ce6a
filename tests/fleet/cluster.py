"""Three real NATS servers on loopback that are one cluster: TLS among them and towards clients, and the users that `aegis streams users` writes."""

import http.client
import json
import pathlib
import shutil
import tempfile

from nats import CURRENT, NatsServer, Reached, free_port, make_certificates, tls_block
from waiting import wait_until

NODES = 3
# Streams and buckets, as `streams/` has them.
STREAMS = 10
# What a node may store: more than all streams may take, whatever disk is below.
MAX_FILE_STORE = "16GB"
# A stream of three copies has a new leader after some seconds of elections; a busy machine takes longer.
ELECTED_WITHIN_S = 120


class Node(NatsServer):
    """One server of the cluster. Its certificates and its users are the cluster's."""

    def __init__(self, cluster, number):
        self.cluster, self.name, self.binary = cluster, f"nats-{number}", cluster.binary
        self.is_secured = True
        self.folder = cluster.folder / self.name
        self.folder.mkdir(mode=0o700)
        self.port, self.monitor, self.route = free_port(), free_port(), free_port()

    @property
    def store(self):
        """Where its copies of the streams are."""
        return self.folder / "jetstream"

    def configure(self):
        routes = ", ".join(f'"nats-route://127.0.0.1:{node.route}"' for node in self.cluster.nodes if node is not self)
        lines = [
            f'server_name: "{self.name}"',
            f'listen: "127.0.0.1:{self.port}"',
            f'http: "127.0.0.1:{self.monitor}"',
            f'jetstream {{ store_dir: "{self.store}", max_file_store: {MAX_FILE_STORE} }}',
            f'cluster {{ name: "aegis", listen: "127.0.0.1:{self.route}", routes: [{routes}], {tls_block(self.cluster.folder, "route")} }}',
            tls_block(self.cluster.folder, "server"),
            'include "../users.conf"',
        ]
        path = self.folder / "server.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def ask(self, path):
        """What its monitoring port says; None where it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.monitor, timeout=5)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def streams(self):
        """Its streams by name, as it sees them."""
        said = self.ask("/jsz?accounts=1&streams=1") or {}
        accounts = said.get("account_details") or []
        return {stream["name"]: stream for account in accounts for stream in account.get("stream_detail") or []}

    @property
    def is_healthy(self):
        """True once it answers, its copies of the streams are as far as the others', and each has a leader."""
        is_well = (self.ask("/healthz") or {}).get("status") == "ok"
        return is_well and all(stream.get("cluster", {}).get("leader") for stream in self.streams().values())

    def lose_its_folder(self):
        """Everything that it stored is gone; while it runs it goes on writing into files that nobody finds any more, and makes others."""
        shutil.rmtree(self.store, ignore_errors=True)


class Cluster(Reached):
    """The servers as a client is told of them; started by whoever writes their users, like a single one."""

    is_secured = True
    apply_options = ("--replicas", str(NODES))

    def __init__(self, binary=CURRENT, folder=None):
        self.binary = binary
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="aegis-cluster-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.users = self.folder / "users.conf"
        make_certificates(self.folder)
        self.nodes = [Node(self, number) for number in range(1, NODES + 1)]

    @property
    def url(self):
        return ",".join(node.url for node in self.nodes)

    def start(self):
        """Starts those that do not run, and waits until they are one cluster."""
        for node in self.nodes:
            if not node.running:
                node.start()
        return self.wait_healthy()

    def wait_healthy(self):
        wait_until("the NATS servers are one cluster", lambda: all(node.is_healthy for node in self.nodes), ELECTED_WITHIN_S)
        return self

    def reload(self):
        """Each reads its users again."""
        for node in self.nodes:
            if node.running:
                node.reload()

    def leader(self, stream):
        """The node that leads a stream, once the others say so."""
        def found():
            said = [node.streams().get(stream, {}).get("cluster", {}).get("leader") for node in self.nodes if node.running]
            return next((node for node in self.nodes if node.name == said[0]), None) if len(set(said)) == 1 else None

        return wait_until(f"all say who leads {stream}", found, ELECTED_WITHIN_S)

    @property
    def copies_are_whole(self):
        """True once each stream's leader says that the two others are as far as it is."""
        led = {}
        for node in self.nodes:
            led |= {name: stream for name, stream in node.streams().items() if stream.get("cluster", {}).get("leader") == node.name}
        followers = [stream["cluster"].get("replicas") or [] for stream in led.values()]
        return len(led) == STREAMS and all(len(those) == NODES - 1 and all(one["current"] for one in those) for those in followers)

    def kill9(self):
        for node in self.nodes:
            if node.running:
                node.kill9()

    def hang(self):
        for node in self.nodes:
            node.hang()

    def go_on(self):
        for node in self.nodes:
            node.go_on()

    def close(self):
        self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)
