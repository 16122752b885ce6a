"""A fleet on loopback: a cluster of three NATS servers, the control plane on Postgres, and edges of its tenants."""

import pathlib
import shutil
import tempfile

from cluster import Cluster
from harness import ControlPlane, Edge
from nats import SERVERS, free_port
from postgres import Postgres
from waiting import wait_until

WEBHOOK_SECRET = "the webhook secret of the fleet"
AGENTS = 4
# A copy of a stream may come to life behind its leader; a busy machine takes long for that.
STARTED_WITHIN_S = 120
# Seconds between two writes of control's lake: a test waits for one after its fault.
LAKE_FLUSH_S = 2


class Control(ControlPlane):
    """The control plane of a fleet: found at the same address after a restart."""

    def __init__(self, data, cluster, postgres):
        self.cli_environment = postgres.environment
        environment = self.cli_environment | {"AEGIS_LAKE_FLUSH_S": str(LAKE_FLUSH_S)}
        super().__init__(data=data, environment=environment, nats=cluster)
        self.listen = f"127.0.0.1:{free_port()}"


class FleetEdge(Edge):
    """An edge of a fleet."""

    def __init__(self, edge_id, data, cluster):
        super().__init__(data=data, nats=cluster)
        self.edge_id = edge_id
        self.listen = f"127.0.0.1:{free_port()}"

    def ask(self, agent, **options):
        """The decision on a call."""
        return self.post("/v1/authorize", agent.token, agent.request(**options)).expect(200)

    def would(self, agent, **options):
        """What it would decide. A call that is polled for must leave no trace."""
        return self.ask(agent, dry_run=True, **options)


class Fleet:
    """Everything that runs, and the tenant whose agents call. Whoever makes one closes it."""

    def __init__(self, server="current", folder=None):
        self._own = tempfile.TemporaryDirectory(prefix="aegis-fleet-") if folder is None else None
        self.folder = pathlib.Path(folder or self._own.name)
        self.edges, self._started = {}, []
        self.postgres = Postgres()
        try:
            self._start(SERVERS[server])
        except BaseException:
            self.close()
            raise

    def _start(self, nats_server):
        self.cluster = Cluster(nats_server, self.folder / "nats")
        self.control = Control(self.folder / "control", self.cluster, self.postgres)
        self.control.log_file = self.folder / "control.log"
        self._started.append(self.control)
        self.control.start()
        self.tenant = self.control.tenant("acme").register_tools()
        self.tenant.set_webhook_secret(WEBHOOK_SECRET)
        # Its calls are denied all the time: detection must not freeze its agents for it.
        self.tenant.settings(automatic_freezes_per_hour=0)
        # And another one, whose agents detection does freeze.
        self.watched = self.control.tenant("watched").register_tools()
        # One at the end of each fault, of which a run has more in an hour than the cap that a tenant begins with.
        self.watched.settings(automatic_freezes_per_hour=1000)
        self.agents = [self.tenant.register_agent() for _ in range(AGENTS)]
        for number in (1, 2):
            self.add_edge(f"edge-{number}")

    def add_edge(self, edge_id, data=None, **environment):
        """Enrols an edge for both tenants and starts it."""
        edge = self.edge(edge_id, data).enroll(self.control, edge_id, self.tenant, self.watched)
        shutil.copy(edge.data / "keys" / "edge.pub", self.folder / f"{edge_id}.pub")
        edge.environment |= environment
        self.edges[edge_id] = edge
        edge.start()
        self.wait_believes(edge)
        return edge

    def edge(self, edge_id, data=None, name=None):
        """An edge that is not enrolled and does not run. `name`: of its log, where two bear one id."""
        edge = FleetEdge(edge_id, data or self.folder / (name or edge_id), self.cluster)
        edge.log_file = self.folder / f"{name or edge_id}.log"
        self._started.append(edge)
        return edge

    def wait_believes(self, edge):
        """Until it knows what control says of both tenants."""
        if not hasattr(self.watched, "probe"):
            self.watched.probe = self.watched.register_agent()
        for agent in (self.agents[0], self.watched.probe):
            wait_until(f"{edge.edge_id} knows the tools", lambda agent=agent: edge.would(agent)["decision"] == "allow", STARTED_WITHIN_S)

    def remove_edge(self, edge):
        """It is not asked any more; what it sealed stays to be verified."""
        if edge.running:
            edge.stop()
        self.edges.pop(edge.edge_id, None)

    def wait_heard(self):
        """Until control hears the edges that run, and no longer those that a test has ended."""
        def live():
            return {edge["edge_id"] for edge in self.tenant.get("/v1/edges").expect(200) if edge["live"]}

        running = {edge.edge_id for edge in self.running_edges}
        wait_until(f"control hears {sorted(running)} and no other edge", lambda: live() == running, STARTED_WITHIN_S)

    @property
    def running_edges(self):
        return [edge for edge in self.edges.values() if edge.running]

    @property
    def roots(self):
        """The public keys that an auditor pins: control's, and those of every edge there was."""
        return [self.control.data / "keys" / "control.pub", *self.folder.glob("*.pub")]

    def logs(self):
        """Every log file there is."""
        return sorted([*self.folder.glob("*.log"), *self.folder.glob("nats/*/log")])

    def close(self):
        for aegis in reversed(self._started):
            aegis.close()
        if hasattr(self, "cluster"):
            self.cluster.close()
        self.postgres.close()
        if self._own:
            self._own.cleanup()
