"""An edge whose data folder is not what it was: an old copy of it, or two at once."""

import datetime
import shutil

from case import SOME
from clocks import OffClocks, off_by
from waiting import wait_until

DAY_S = 24 * 3600


class Copies(OffClocks):
    def new_edge(self, edge_id):
        edge = self.fleet.add_edge(edge_id)
        self.addCleanup(self.fleet.remove_edge, edge)
        self.load.call(edge)
        self.load.must_deny(self.frozen, edge_id)
        self.load.more(SOME, edge_id)
        return edge

    def test_an_edge_is_restored_from_yesterday_s_backup(self):
        """It goes on in a lane of its own, forks none, and enforces what it has never heard of: a freeze that is younger than the backup. The clock of
        its machine goes on by a day between both, so that by all that it kept the backup is a day old."""
        edge = self.add_edge(-DAY_S)
        name = edge.edge_id
        self.load.more(SOME, name)
        kept = edge.data / "edge" / "clock_offset_us"
        wait_until("it keeps how far its clock is off", lambda: kept.exists() and abs(int(kept.read_text()) / 1e6 - DAY_S) < 5)
        with self.load.without(name):
            edge.stop()
            backup = self.fleet.folder / "backup"
            shutil.copytree(edge.data, backup)
            edge.start()
        self.load.more(SOME, name)
        self.load.freeze_enforced(self.fleet.tenant.register_agent())
        self.load.more(SOME, name, word="contained")
        with self.load.without(name):
            # What only the lost disk had is gone with it: everything acknowledged is behind NATS first.
            wait_until("everything is shipped", lambda: edge.metric("ase_spool_backlog") == 0)
            edge.kill9()
            shutil.rmtree(edge.data)
            backup.rename(edge.data)
            for variable in off_by(0):
                del edge.environment[variable]
            restored = datetime.datetime.now(datetime.UTC)
            edge.start()
        self.load.more(SOME, name)
        lines = self.whole()
        newest = max((line for line in lines if line["lane"].split(".")[1] == name), key=lambda line: line["event_id"])["lane"]
        self.assert_dated([line for line in lines if line["lane"] == newest], restored, SOME, edge)
        lanes = {line["lane"] for line in lines if line["lane"].split(".")[1] == name}
        self.assertEqual(len(lanes), 3, "one for each start")

    def new_clones(self, name):
        """An edge and a copy of it, both running."""
        edge = self.new_edge(name)
        with self.load.without(name):
            edge.stop()
            clone = self.fleet.edge(name, name=f"{name}-twin")
            shutil.copytree(edge.data, clone.data)
            edge.start()
            clone.start()
        self.addCleanup(self.end, clone)
        self.load.call(clone, "twin")
        self.load.must_deny(self.frozen, "twin")
        self.load.more(SOME, name, "twin")
        return edge, clone

    def end(self, clone):
        self.load.take_away("twin")
        if clone.running:
            clone.kill9()

    def test_two_clones_of_one_edge_run_at_once(self):
        """Each has lanes of its own; both enforce what control says, and what either acknowledged is there."""
        name = "edge-cloned"
        edge, clone = self.new_clones(name)
        agent, reply = self.freeze_later()
        self.wait_denied(agent)
        self.wait_denied(agent, clone, name="twin")
        with self.load.without("twin"):
            clone.kill9()
            self.load.more(SOME, name)
            clone.start()
        self.load.more(SOME, name, "twin")
        self.whole()

    def test_a_freeze_is_not_said_to_be_enforced_while_a_clone_hangs(self):
        """The one that goes on would answer with what it knew."""
        edge, clone = self.new_clones("edge-hung")
        with self.load.without("twin"):
            clone.hang()
            agent, reply = self.freeze_later()
            clone.go_on()
        self.assertFalse(reply["enforced"], reply)
        self.wait_denied(agent)
        self.wait_denied(agent, clone, name="twin")
        self.whole()
