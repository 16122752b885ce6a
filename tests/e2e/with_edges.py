"""What the tests of edges as processes of their own stand on."""

import json

from harness import NATS, ControlPlane, Edge
from waiting import wait_until
from with_nats import WithNats


class WithEdges(WithNats):
    """Control and two edges as processes of their own, over NATS."""

    SERVER = "current"

    def setUp(self):
        self.nats = self.server(self.SERVER, secured=True)
        self.control = ControlPlane(nats=self.nats)
        self.addCleanup(self.control.close)
        self.control.start()
        self.tenant = self.control.tenant().register_tools()
        self.agent = self.tenant.register_agent()
        self.edges = [self.edge(f"edge-{n}").start() for n in (1, 2)]
        for edge in self.edges:
            wait_until("the edge knows the tools", lambda: self.asked(edge)["decision"] == "allow")

    def edge(self, edge_id, *tenants):
        edge = Edge(nats=self.nats)
        self.addCleanup(edge.close)
        return edge.enroll(self.control, edge_id, *(tenants or [self.tenant]))

    def send(self, edge, agent=None, **options):
        agent = agent or self.agent
        return edge.post("/v1/authorize", agent.token, agent.request(**options))

    def decide(self, edge, **options):
        return self.send(edge, **options).expect(200)

    def asked(self, edge, **options):
        """What it would decide. A call that is polled for must leave no trace: five denies are a storm."""
        return self.decide(edge, dry_run=True, **options)

    def listed(self):
        return [line["receipt_hash"] for line in self.tenant.list("/v1/receipts")]

    def assert_all_arrive(self, hashes):
        wait_until("the history has every receipt", lambda: set(self.listed()) >= set(hashes))
        # Asked once: receipts of what the fleet does by itself come in meanwhile.
        listed = self.listed()
        self.assertEqual(len(listed), len(set(listed)))
        broken = [alert for alert in self.tenant.list("/v1/alerts") if "AEG-3004" in json.dumps(alert)]
        self.assertEqual(broken, [])

    def events(self, kind):
        return self.tenant.list(f"/v1/audit/events?kind={kind}")

    def edges_listed(self):
        return {edge["edge_id"]: edge for edge in self.tenant.get("/v1/edges").expect(200)}

    def told(self, kind):
        return sorted(event["resource"] for event in self.tenant.list("/v1/audit/events") if event["kind"] == kind)


class OnDebian(WithEdges):
    """The same on the oldest server that is supported: what it takes part in, and all of it where a server is asked for (`make test-full`)."""

    SERVER = "debian"
    ITS_PART = frozenset()

    def setUp(self):
        if NATS is None and self._testMethodName not in self.ITS_PART:
            self.skipTest("the server has little part in it: make test-full has it on Debian's too")
        super().setUp()
