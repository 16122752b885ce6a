"""`kill -9` of one process of the fleet under load."""

from case import SOME, FleetTest, pass_time


class Kills(FleetTest):
    def test_an_edge_is_killed(self):
        """What it acknowledged is in its ledger and is shipped at its next start; the others do not notice."""
        name = self.dice.choice(sorted(self.fleet.edges))
        edge = self.fleet.edges[name]
        pass_time(self.dice.uniform(0, 0.5))
        with self.load.without(name):
            with self.unfelt():
                edge.kill9()
                self.load.more(SOME)
            edge.start()
        self.load.more(SOME, name)
        self.whole()

    def test_control_is_killed(self):
        """Edges answer without it, and know at its return what was frozen before."""
        pass_time(self.dice.uniform(0, 0.5))
        with self.load.without("control"):
            with self.unfelt():
                self.fleet.control.kill9()
                self.load.more(SOME)
            self.fleet.control.start()
        agent, reply = self.freeze_later()
        self.wait_denied(agent)
        self.whole()

    def test_a_nats_server_is_killed(self):
        """The other two go on, whichever it was."""
        node = self.dice.choice(self.fleet.cluster.nodes)
        self.kill_node(node)

    def test_the_leader_of_the_events_is_killed(self):
        """Another one takes over, and what was on its way is sent again."""
        self.kill_node(self.fleet.cluster.leader("ASE"))

    def test_the_leader_of_containment_is_killed(self):
        """A freeze goes through the one that takes over."""
        self.kill_node(self.fleet.cluster.leader("KV_containment"))

    def kill_node(self, node):
        pass_time(self.dice.uniform(0, 0.5))
        with self.unfelt():
            node.kill9()
            self.load.more(SOME)
        # Two of three are enough to contain.
        agent, reply = self.freeze_later()
        self.wait_denied(agent)
        self.webhooks_go_on()
        self.fleet.cluster.start()
        self.whole()
