"""The disk of an edge is full, and then it is not."""

from case import SOME, FleetTest
from disk import fill, mount, unmount
from waiting import wait_until

# Room for an edge to come up and to keep a few thousand receipts before the filler takes the rest.
SIZE = "48m"


class FullDisk(FleetTest):
    def test_an_edge_s_disk_is_full(self):
        """What needs a receipt is denied; a freeze is enforced and is not said to be, since a start would forget it; then all is as before."""
        name = "edge-full"
        data = self.fleet.folder / name
        if not mount(data, f"size={SIZE},mode=0700"):
            self.skipTest("no tmpfs can be mounted here; tests/e2e tests the answers with a page limit")
        self.addCleanup(unmount, data)
        edge = self.fleet.add_edge(name)
        self.addCleanup(self.fleet.remove_edge, edge)
        self.load.call(edge)
        self.load.must_deny(self.frozen, name)
        self.load.more(SOME, name)

        self.load.may_refuse[name] = {"receipt_unavailable"}
        filler = fill(data)
        self.load.more(SOME, name, word="refused")
        agent, reply = self.freeze_later()
        self.assertFalse(reply["enforced"], reply)
        self.wait_denied(agent)
        self.load.more(SOME, "edge-1", "edge-2")

        filler.unlink()
        self.load.more(SOME, name)
        self.load.may_refuse[name] = set()

        def acknowledged():
            _, reply = self.freeze_later()
            return reply["enforced"]

        wait_until("a freeze is acknowledged again", acknowledged)
        lines = self.whole()
        gaps = [line["receipt"]["detail"] for line in lines if line["receipt"]["phase"] == "gap" and line["lane"].split(".")[1] == name]
        self.assertIn("ledger_unavailable", [gap["reason"] for gap in gaps], "the chain says that something was refused")
