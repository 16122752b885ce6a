"""What the lake confirms to edges over NATS, and to the ledgers of control's own process: what it lacks is shipped again from their ledgers, at the end of a lane and in the middle, by a lake that
was lost and by one that came later; and what history and lake have, and is old, goes from a ledger that goes on."""

import json
import shutil
import sqlite3

from harness import Aegis, ControlPlane, Edge
from receipts import check_chain
from waiting import wait_until
from with_nats import WithNats

DAY_US = 86_400_000_000
# Three rounds of an edge, and a minute in which a lake that has just started asks for nothing.
SOON_S = 180


class WithLake(WithNats):
    def in_the_lake_of(self, aegis, query):
        """Rows of the tenant; none of a lake that has nothing of it, which has nobody to ask about."""
        if not (aegis.data / "lake" / f"tenant={self.tenant.name}").exists():
            return []
        printed = aegis.cli("sql", query, "--data", aegis.data, "--tenant", self.tenant.name, "--json", "--limit", "100000")
        return [json.loads(line) for line in printed.splitlines()]

    def exported(self):
        """What the history has of the tenant, whole."""
        exported = [json.loads(line) for line in self.tenant.get("/v1/receipts/export").text.splitlines()]
        check_chain(exported)
        return exported

    def arrived(self, hashes):
        listed = lambda: {line["receipt_hash"] for line in self.tenant.list("/v1/receipts")}
        wait_until("the history has them", lambda: listed() >= set(hashes))


class Confirmations(WithLake):
    def start(self, lake=True, **of_edge):
        self.nats = self.server(secured=True)
        self.control = ControlPlane(nats=self.nats, environment={"AEGIS_LAKE_FLUSH_S": "1"})
        self.addCleanup(self.control.close)
        self.enable_lake(lake)
        self.control.start()
        self.tenant = self.control.tenant().register_tools()
        self.agent = self.tenant.register_agent()
        self.edge = Edge(nats=self.nats, environment={"AEGIS_EDGE_CONFIRM_AFTER_S": "5", **of_edge})
        self.addCleanup(self.edge.close)
        self.edge.enroll(self.control, "edge-1", self.tenant).start()
        wait_until("the edge knows the tools", lambda: self.send(dry_run=True)["decision"] == "allow")

    def enable_lake(self, lake):
        self.control.environment["AEGIS_LAKE_ENABLED"] = "true" if lake else "false"

    def send(self, **options):
        return self.edge.post("/v1/authorize", self.agent.token, self.agent.request(**options)).expect(200)

    def decide(self, count):
        """Hashes of so many receipts, which the history has by then."""
        hashes = [self.send()["receipt"]["receipt_hash"] for _ in range(count)]
        self.arrived(hashes)
        return hashes

    def assert_history_is_whole(self, hashes):
        self.assertLessEqual(set(hashes), {line["receipt_hash"] for line in self.exported()})

    def assert_lake_has(self, hashes, deadline_s=SOON_S):
        """And every receipt before them in their lanes, once."""
        query = "SELECT receipt_hash, lane, seq FROM events WHERE verified AND edge_id = 'edge-1' ORDER BY lane, seq"

        def has_all():
            rows = self.in_the_lake_of(self.control, query)
            lanes = {}
            for row in rows:
                lanes.setdefault(row["lane"], []).append(row["seq"])
            is_whole = all(seqs == list(range(1, len(seqs) + 1)) for seqs in lanes.values())
            return rows if is_whole and {row["receipt_hash"] for row in rows} >= set(hashes) else None

        rows = wait_until("the lake has every receipt, once", has_all, deadline_s, longest_pause_s=1)
        self.assertEqual(len(rows), len({row["receipt_hash"] for row in rows}))

    def test_a_lake_that_was_lost_is_filled_again_from_the_ledgers(self):
        self.start()
        hashes = self.decide(10)
        self.edge.restart()
        hashes += self.decide(10)
        self.assert_lake_has(hashes)
        self.control.stop()
        shutil.rmtree(self.control.data / "lake")
        self.lose_streams(self.control)
        self.control.start()
        # An edge that runs asks about everything again once an hour; one that starts, at once.
        self.edge.restart()
        self.assert_lake_has(hashes)
        self.assertGreater(self.edge.metric("aegis_lake_shipped_again_total"), 0)
        self.assertEqual(self.edge.metric("aegis_confirmations_refused_total"), 0)
        self.assert_history_is_whole(hashes)

    def test_a_lake_that_comes_later_gets_what_was_before(self):
        self.start(lake=False)
        hashes = self.decide(20)
        self.control.stop()
        self.lose_streams(self.control)
        self.enable_lake(True)
        self.control.start()
        # The lane goes on: the lake sees that it began before, and what it lacks is no end.
        hashes += self.decide(5)
        self.assert_lake_has(hashes)
        wait_until("nothing is missing in it any more", lambda: self.control.metric("aegis_lake_gaps") == 0)

    def test_what_both_have_and_is_old_goes_and_the_ledger_goes_on(self):
        self.start(AEGIS_LEDGER_KEEP_DAYS="2")
        hashes = self.decide(30)
        self.assert_lake_has(hashes)
        self.edge.stop()
        ledger = self.edge.data / "edge" / "ledger.db"
        with sqlite3.connect(ledger) as opened:
            [(first,)] = opened.execute("SELECT min(lane_no) FROM lanes").fetchall()
            # As if they had been sealed three days ago; a start reads what they say, and not this.
            opened.execute("UPDATE receipts SET ts = ts - ? WHERE lane_no = ? AND seq <= 20", (3 * DAY_US, first))
        opened.close()
        self.edge.start()
        wait_until("they are gone", lambda: self.edge.metric("aegis_ledger_pruned_total") == 20, SOON_S)
        more = self.decide(5)
        self.assert_lake_has(hashes + more)
        self.edge.stop()
        with sqlite3.connect(ledger) as opened:
            self.assertEqual(opened.execute("SELECT min(seq) FROM receipts WHERE lane_no = ?", (first,)).fetchall(), [(21,)])
        opened.close()
        # What is kept verifies by itself, and what was there before is where it was confirmed to be.
        kept = self.edge.export(self.tenant.name)
        self.assertEqual(self.edge.verify(kept, roots=False)["verdict"], "self-consistent")
        self.assertLessEqual(set(more), {line["receipt_hash"] for line in kept})
        self.edge.start()
        self.assert_history_is_whole(hashes + more + self.decide(1))
        self.assertEqual(self.edge.metric("aegis_ledger_pruned_asked_total"), 0)


class OwnLedgers(WithLake):
    """Those of `aegis up`: the edge's, and control's."""

    PRODUCERS = {"edge-1", "control"}

    def start(self, **environment):
        self.nats = self.server()
        self.aegis = Aegis(nats=self.nats, environment={"AEGIS_LAKE_FLUSH_S": "1", "AEGIS_EDGE_CONFIRM_AFTER_S": "5", **environment})
        self.addCleanup(self.aegis.close)
        self.aegis.start()
        self.tenant = self.aegis.tenant().register_tools()
        self.agent = self.tenant.register_agent().until_tools_are_known()

    def decide(self, count):
        return [self.agent.authorize()["receipt"]["receipt_hash"] for _ in range(count)]

    def sealed(self):
        """What the ledgers sealed for the tenant, by lane, as the history has it."""
        lanes = {}
        for line in self.exported():
            lanes.setdefault(line["lane"], set()).add(line["seq"])
        return lanes

    def in_the_lake(self):
        query = "SELECT lane, seq FROM events WHERE verified AND lane IS NOT NULL ORDER BY lane, seq"
        lanes = {}
        for row in self.in_the_lake_of(self.aegis, query):
            lanes.setdefault(row["lane"], []).append(row["seq"])
        return lanes

    def assert_lake_has(self, lanes):
        self.assertEqual({lane.split(".")[1] for lane in lanes}, self.PRODUCERS)
        has_all = lambda: (there := self.in_the_lake()) and all(set(there.get(lane, [])) >= seqs for lane, seqs in lanes.items())
        wait_until("the lake has every receipt", has_all, SOON_S, longest_pause_s=1)
        for lane, seqs in self.in_the_lake().items():
            self.assertEqual(seqs, list(range(1, len(seqs) + 1)), lane)

    def test_a_lake_that_was_lost_is_filled_again_to_the_ends_of_the_lanes(self):
        self.start()
        self.arrived(self.decide(20))
        lanes = self.sealed()
        self.assert_lake_has(lanes)
        self.aegis.stop()
        shutil.rmtree(self.aegis.data / "lake")
        self.lose_streams(self.aegis)
        self.aegis.start()
        self.assert_lake_has(lanes)
        self.assertGreater(self.aegis.metric("aegis_lake_shipped_again_total"), 0)

    def test_what_both_have_and_is_old_goes_and_what_was_done_once_stays_done_once(self):
        self.start(AEGIS_LEDGER_KEEP_DAYS="2")
        hashes = self.decide(30)
        self.arrived(hashes)
        self.assert_lake_has(self.sealed())
        self.aegis.stop()
        for producer, count in (("edge", 20), ("control", 2)):
            with sqlite3.connect(self.aegis.data / producer / "ledger.db") as opened:
                [(first,)] = opened.execute("SELECT min(lane_no) FROM lanes").fetchall()
                # As if they had been sealed three days ago; a start reads what they say, and not this.
                opened.execute("UPDATE receipts SET ts = ts - ? WHERE lane_no = ? AND seq <= ?", (3 * DAY_US, first, count))
            opened.close()
        self.aegis.start()
        wait_until("they are gone", lambda: self.aegis.metric("aegis_ledger_pruned_total") == 22, SOON_S)
        more = self.decide(5)
        self.arrived(hashes + more)
        self.sealed()
        self.aegis.restart()
        self.arrived(hashes + more)
        self.assertEqual(self.aegis.metric("aegis_ledger_pruned_asked_total"), 0)
        self.assertEqual(self.aegis.metric("aegis_ledger_lost_asked_total"), 0)
        self.assertEqual([alert for alert in self.tenant.list("/v1/alerts") if alert["rule_name"] == "receipt-chain-broken"], [])

    def test_what_somebody_took_from_a_ledger_is_told_as_lost_where_the_lake_lacks_it(self):
        self.start()
        self.arrived(self.decide(20))
        lanes = self.sealed()
        self.assert_lake_has(lanes)
        self.aegis.stop()
        with sqlite3.connect(self.aegis.data / "edge" / "ledger.db") as opened:
            opened.execute("DELETE FROM receipts WHERE seq <= 3")
        opened.close()
        shutil.rmtree(self.aegis.data / "lake")
        self.lose_streams(self.aegis)
        self.aegis.start()
        changes = lambda: self.tenant.list("/v1/audit/events?kind=config_changed")
        [event, *_] = wait_until("it is told", lambda: [event for event in changes() if event["reason"] == "receipts_lost"], SOON_S, longest_pause_s=1)
        self.assertIn(event["resource"], lanes)
        self.assertEqual(json.loads(event["attributes"]), {"edge_id": "edge-1", "seq": 1})
        self.assertGreater(self.aegis.metric("aegis_ledger_lost_asked_total"), 0)
        self.assertGreater(self.aegis.metric("control_lost_receipts_asked_total"), 0)
        self.assertEqual(self.aegis.metric("aegis_ledger_pruned_asked_total"), 0)
