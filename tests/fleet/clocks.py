"""Clocks that are minutes apart."""

import datetime
import time

from case import SOME, FleetTest
from nats import FAKETIME
from waiting import unique, wait_until

MINUTES_S = 300
# How far a corrected time may be off what this machine's clock says, a busy machine's delays included.
CORRECTED_S = 30
HOLD_S = 20


def off_by(seconds):
    """The variables that make a process see another time."""
    return {"LD_PRELOAD": FAKETIME, "FAKETIME": f"{seconds:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class OffClocks(FleetTest):
    # How far control's own clock is off, which all go by.
    control_off_s = 0

    def add_edge(self, offset):
        """An edge whose clock is off, as soon as it follows control's."""
        name = unique("edge-off")
        edge = self.fleet.add_edge(name, **off_by(offset))
        self.addCleanup(self.fleet.remove_edge, edge)
        # The first signs of life may have been long on their way.
        wait_until(f"the clock of {name} is corrected", lambda: abs(self.offset_s(name) + offset - self.control_off_s) < 2)
        self.load.call(edge)
        self.load.must_deny(self.frozen, name)
        return edge

    def offset_s(self, name):
        shown = {edge["edge_id"]: edge for edge in self.fleet.tenant.get("/v1/edges").expect(200)}
        return (shown[name].get("clock_offset_us") or 0) / 1e6

    def read(self, edge, agent):
        return edge.would(agent, action="read_customer", mutates_state=False)

    def assert_dated(self, lines, began, least, *edges):
        """Nothing that these edges sealed is dated before it began or after now."""
        slack = datetime.timedelta(seconds=CORRECTED_S)
        began += datetime.timedelta(seconds=self.control_off_s)
        ended = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.control_off_s) + slack
        names = {edge.edge_id for edge in edges}
        own = [line for line in lines if line["lane"].split(".")[1] in names and line["kind"] == "authorize_decision"]
        dates = [datetime.datetime.fromisoformat(line["ts"]) for line in own]
        wrong = [date for date in dates if not began - slack < date < ended]
        self.assertGreater(len(dates), least)
        self.assertEqual(len(wrong), 0, f"{len(wrong)} of {len(dates)} receipts are dated wrongly, e.g. {wrong[:2]} beside {ended}")


class Clocks(OffClocks):
    def test_clocks_of_edges_are_minutes_apart(self):
        """Edges follow control's clock: what they did is dated right, and a hold ends when it ends, on both sides of the right time."""
        self.hold_by(MINUTES_S, -MINUTES_S)

    def test_control_s_clock_is_minutes_off_too(self):
        """Everybody follows it, whichever way their own are off, and a hold lasts as long as was said."""
        # Lanes are ahead of the time from now on: this fleet is for nothing else.
        self.spoils = True
        with self.load.without("control"):
            self.fleet.control.stop()
            self.fleet.control.environment |= off_by(MINUTES_S)
            self.fleet.control.start()
        self.control_off_s = MINUTES_S
        for name in ("edge-1", "edge-2"):
            wait_until(f"{name} follows control's clock", lambda name=name: abs(self.offset_s(name) - MINUTES_S) < 2)
        self.hold_by(-MINUTES_S, MINUTES_S)

    def hold_by(self, *offsets):
        """A hold with an end, by edges whose clocks are off by so much."""
        began = datetime.datetime.now(datetime.UTC)
        edges = [self.add_edge(offset) for offset in offsets]
        self.load.more(SOME)
        agent = self.fleet.tenant.register_agent()
        asked = time.monotonic()
        agent.freeze(ttl_s=HOLD_S)
        for edge in edges:
            wait_until("it is frozen", lambda edge=edge: self.read(edge, agent)["reason"] == "agent_frozen", HOLD_S - 5)
        for edge in edges:
            wait_until("the hold ends", lambda edge=edge: self.read(edge, agent)["decision"] == "allow", 120)
            self.assertGreater(time.monotonic() - asked, HOLD_S - 3)
        self.assert_dated(self.whole(), began, SOME, *edges)


class Start(OffClocks):
    """An edge does not know the right time when it starts: it waits for control to say it, and goes by what it knew before."""

    def test_a_hold_outlives_the_start_of_an_edge_whose_clock_is_ahead(self):
        """Its own clock would end the hold minutes before its end."""
        edge = self.add_edge(MINUTES_S)
        agent, asked = self.fleet.tenant.register_agent(), time.monotonic()
        self.load.freeze(agent, ttl_s=MINUTES_S - 60)
        self.load.more(5, edge.edge_id, word="contained")
        with self.load.without(edge.edge_id):
            edge.kill9()
            edge.start()
        self.load.more(SOME, edge.edge_id)
        self.load.forget(agent)
        self.assertLess(time.monotonic() - asked, MINUTES_S - 60, "this machine is too slow to say anything")
        self.whole()

    def test_what_an_edge_does_first_is_dated_right(self):
        """A lane's time never goes back, so that one receipt with a date ahead dates all that follow it for minutes."""
        began = datetime.datetime.now(datetime.UTC)
        edge = self.add_edge(MINUTES_S)
        with self.load.without(edge.edge_id):
            edge.kill9()
            edge.start()
        self.load.more(SOME, edge.edge_id)
        self.assert_dated(self.whole(), began, SOME, edge)
