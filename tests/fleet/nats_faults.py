"""All of NATS hangs or is gone, or one server loses what it stored."""

import time

from case import LONG_S, SOME, FleetTest, pass_time
from waiting import wait_until


class AllOfNats(FleetTest):
    def through(self, begin, end):
        """The fault lasts its time under load, and no edge feels it. A freeze in the middle of it reaches them afterwards."""
        began = time.monotonic()
        with self.unfelt():
            begin()
            agent, reply = self.freeze_later()
            self.assertFalse(reply["enforced"], "no edge can have heard of it")
            self.load.more(SOME)
            wait_until("it has lasted its time", lambda: time.monotonic() - began > LONG_S, LONG_S + 60)
            self.load.more(SOME)
        end()
        self.wait_denied(agent)
        self.webhooks_go_on()
        self.whole()

    def test_nats_hangs(self):
        """SIGSTOP: connections stay open and nothing comes back."""
        self.addCleanup(lambda: [node.go_on() for node in self.fleet.cluster.nodes if node.running])
        self.through(self.fleet.cluster.hang, self.fleet.cluster.go_on)

    def test_nats_is_down(self):
        """kill -9 of all three."""
        self.through(self.fleet.cluster.kill9, self.fleet.cluster.start)


class OneNode(FleetTest):
    def test_a_nats_server_loses_its_folder(self):
        """It gets its copies back from the others. Whether it has is seen when another one dies: two are needed for everything."""
        lost = self.dice.choice(self.fleet.cluster.nodes)
        with self.unfelt():
            lost.kill9()
            lost.lose_its_folder()
            self.load.more(SOME)
        self.comes_back(lost)

    def test_the_leader_of_the_events_loses_its_folder_while_it_runs(self):
        """What it acknowledged is at the others; somebody sees it and starts it again."""
        lost = self.fleet.cluster.leader("ASE")
        with self.unfelt():
            lost.lose_its_folder()
            self.load.more(SOME)
            pass_time(min(LONG_S, 20))
            self.load.more(SOME)
        lost.kill9()
        lost.lose_its_folder()
        self.comes_back(lost)

    def comes_back(self, lost):
        nodes = self.fleet.cluster.nodes
        self.fleet.cluster.start()
        wait_until("its copies are whole", lambda: self.fleet.cluster.copies_are_whole, 120)
        other = self.dice.choice([node for node in nodes if node is not lost])
        other.kill9()
        self.webhooks_go_on()
        self.fleet.cluster.start()
        self.whole()
