"""Edges as processes of their own, of which one, or something behind them, is gone, hangs, is cut off, lost its memory or has the wrong time."""

import datetime
import shutil
import time

from harness import Edge, StartFailed
from nats import FAKETIME
from tenants import until_enforced
from waiting import unique, wait_until
from with_edges import OnDebian, WithEdges

# An edge is silent after seven seconds, and says that it lives each other one.
HANGS_S = 3.5


class EdgesAlone(WithEdges):
    """Each answers without what is behind it, and by what it knew; what it sealed meanwhile arrives."""

    def test_an_edge_answers_while_everything_behind_it_is_gone_and_ships_it_later(self):
        edge = self.edges[0]
        hashes = []
        decide = lambda count: hashes.extend(self.decide(edge)["receipt"]["receipt_hash"] for _ in range(count))
        decide(5)
        self.control.kill9()
        decide(10)
        self.nats.kill9()
        decide(10)
        edge.kill9()
        # It starts from its own copy of the feed, with neither NATS nor control.
        edge.start()
        self.assertIn("copy on disk", edge.log())
        decide(10)
        self.nats.start()
        self.control.start()
        decide(5)
        self.assert_all_arrive(hashes)

    def test_an_edge_with_an_old_copy_changes_nothing_and_one_without_does_not_start(self):
        edge = self.edges[0]
        edge.stop()
        self.nats.kill9()
        old = int((edge.data / "feed.confirmed").read_text()) - 3_601 * 1_000_000
        (edge.data / "feed.confirmed").write_text(f"{old}\n")
        edge.start()
        self.assertEqual(self.decide(edge)["reason"], "control_stale")
        self.assertEqual(self.decide(edge, action="read_customer", mutates_state=False)["decision"], "allow")
        self.nats.start()
        wait_until("the feed is read again", lambda: self.asked(edge)["decision"] == "allow")
        edge.stop()
        self.nats.kill9()
        (edge.data / "feed.jsonl").unlink()
        with self.assertRaises(StartFailed) as failed:
            edge.start()
        self.assertIn("copy on disk", failed.exception.output)

    def test_a_freeze_outlives_a_start_from_the_copy(self):
        edge = self.edges[0]
        self.agent.freeze()
        wait_until("it is frozen", lambda: self.decide(edge)["reason"] == "agent_frozen")
        # The copy is written when the feed is read whole.
        wait_until("the copy has it", lambda: "freeze" in (edge.data / "feed.jsonl").read_text())
        edge.stop()
        self.nats.kill9()
        edge.start()
        self.assertEqual(self.decide(edge)["reason"], "agent_frozen")

    def test_what_others_made_of_a_run_outlives_a_start_without_control_and_without_a_copy_of_it_runs_are_unknown(self):
        one, two = self.edges
        run, known = unique("run"), unique("run")
        self.decide(one, trust="untrusted_external", run_id=run, action="read_customer", mutates_state=False)
        wait_until("the other knows of it", lambda: self.asked(two, run_id=run)["decision"] == "deny")
        token = self.decide(two, run_id=known)["trust_token"]
        copy = two.data / "trust.jsonl"
        wait_until("its copy has it", lambda: "untrusted_external" in copy.read_text())
        two.kill9()
        self.control.kill9()
        self.nats.kill9()
        two.start()
        # Without its trust token, and the edge was never asked about it but for dry runs, which leave nothing in its ledger.
        self.assertEqual(self.asked(two, run_id=run)["decision"], "deny")
        self.assertEqual(self.asked(two)["decision"], "allow")
        self.assertEqual(two.metric("aegis_run_labels_unread"), 1)
        two.kill9()
        copy.unlink()
        two.start()
        self.assertEqual(self.asked(two, run_id=run)["decision"], "require_approval")
        self.assertEqual(self.asked(two)["decision"], "require_approval", "any run may be one of those")
        self.assertEqual(self.asked(two, run_id=known)["decision"], "require_approval")
        self.assertEqual(self.asked(two, trace={"run_id": known, "trust_token": token})["decision"], "require_approval", "it may be old")
        self.nats.start()
        self.control.start()
        wait_until("it has read them", lambda: self.asked(two)["decision"] == "allow")
        self.assertEqual(self.asked(two, run_id=run)["decision"], "deny")
        self.assertEqual(two.metric("aegis_run_labels_unread"), 0)

    def test_what_one_clone_of_an_edge_enforces_is_not_what_both_do(self):
        clone = Edge(nats=self.nats)
        self.addCleanup(clone.close)
        self.edges[1].stop()
        shutil.copytree(self.edges[1].data, clone.data, dirs_exist_ok=True)
        self.edges[1].start()
        clone.start()
        wait_until("both are heard", lambda: self.edges_listed()["edge-2"]["starts"] == 2)
        until_enforced(self.agent.freeze)
        for edge in [*self.edges, clone]:
            self.assertEqual(self.decide(edge)["reason"], "agent_frozen")
        other = self.tenant.register_agent()
        wait_until("all know it", lambda: all(self.send(edge, other, dry_run=True).json.get("decision") == "allow" for edge in [*self.edges, clone]))
        clone.hang()
        frozen = other.freeze()
        clone.go_on()
        self.assertEqual((frozen["enforced"], frozen["edges"]["live"], frozen["edges"]["enforcing"]), (False, 2, 1), frozen)
        hashes = [self.decide(edge)["receipt"]["receipt_hash"] for edge in [self.edges[1], clone] * 5]
        self.assert_all_arrive(hashes)

    def test_an_edge_that_hangs_is_not_said_to_enforce(self):
        wait_until("both are heard", lambda: all(edge["live"] for edge in self.edges_listed().values()))
        self.edges[1].hang()
        frozen = self.agent.freeze()
        self.edges[1].go_on()
        self.assertEqual((frozen["enforced"], frozen["edges"]["live"], frozen["edges"]["enforcing"]), (False, 2, 1), frozen)
        wait_until("it is frozen there too", lambda: self.decide(self.edges[1])["reason"] == "agent_frozen")

    def test_who_falls_silent_is_told_of_once_whoever_starts_and_stops_meanwhile(self):
        self.control.environment["AEGIS_CONTROL_EDGE_SILENT_AFTER_S"] = "15"
        self.control.restart()
        both = lambda: all(edge["live"] and edge.get("life") == "live" for edge in self.edges_listed().values())
        wait_until("both are heard", both)
        # One dies while nobody is there to hear it; the other stops then as it should, and has sealed something that says so.
        self.decide(self.edges[0])
        self.control.kill9()
        self.edges[1].kill9()
        self.edges[0].stop()
        self.control.start()
        wait_until("the one that died is missed", lambda: self.told("edge_silent"))
        self.control.restart()
        # A server that is gone for longer than that makes nobody silent.
        self.edges[0].start()
        wait_until("it is heard", lambda: self.edges_listed()["edge-1"]["live"])
        self.nats.kill9()
        deadline = time.monotonic() + 20
        wait_until("that much time has passed", lambda: time.monotonic() > deadline)
        self.nats.start()
        wait_until("it is heard again", lambda: self.edges_listed()["edge-1"]["live"])
        self.edges[1].start()
        wait_until("the other is back", lambda: self.told("edge_back") == ["edge-2"])
        self.assertEqual(self.told("edge_silent"), ["edge-2"])

    def test_the_time_to_contain_is_that_of_the_last_edge(self):
        wait_until("both are heard", lambda: all(edge["live"] for edge in self.edges_listed().values()))
        heard_at = lambda: self.edges_listed()["edge-2"]["heard_at"]
        before = heard_at()
        wait_until("the other was heard just now", lambda: heard_at() != before)
        self.edges[1].hang()
        ends = time.monotonic() + HANGS_S
        for _ in range(5):
            self.decide(self.edges[0], tool="unheard", action="of")
        wait_until("it has hung so long", lambda: time.monotonic() > ends)
        self.assertEqual(self.control.metric("soc_mttc_seconds_count"), 0, "not every edge that lives enforces it")
        self.edges[1].go_on()
        wait_until("the time to contain is taken", lambda: self.control.metric("soc_mttc_seconds_count") == 1)
        # From the first deny of the storm; it hung a little longer.
        self.assertTrue(HANGS_S - 0.5 < self.control.metric("soc_mttc_seconds_sum") < 30)
        wait_until("both are counted", lambda: self.control.metric("aegis_edges_live") == 2)

    def test_without_control_the_feed_grows_old_though_nats_lives(self):
        edge = self.edges[0]
        edge.environment["AEGIS_EDGE_MAX_FEED_AGE_S"] = "4"
        edge.restart()
        # Control says every other second that it lives; on a busy machine one may be late.
        wait_until("its feed is young", lambda: self.asked(edge)["decision"] == "allow")
        self.control.kill9()
        wait_until("it changes nothing any more", lambda: self.asked(edge)["reason"] == "control_stale")
        self.assertEqual(self.asked(edge, action="read_customer", mutates_state=False)["decision"], "allow")
        self.control.start()
        wait_until("control lives again", lambda: self.asked(edge)["decision"] == "allow")

    def test_a_clock_five_minutes_off_is_corrected(self):
        for name, offset in (("edge-ahead", "+300"), ("edge-behind", "-300")):
            with self.subTest(offset):
                edge = self.edge(name)
                edge.environment |= {"LD_PRELOAD": FAKETIME, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
                edge.start()
                offset_s = lambda: (self.edges_listed()[name].get("clock_offset_us") or 0) / 1e6
                # The first signs of life may have been long on their way.
                wait_until("its clock is corrected", lambda: abs(offset_s() + float(offset)) < 1)
                decision = self.decide(edge)["decision_id"]
                listed = wait_until("the decision is there", lambda: (reply := self.tenant.get(f"/v1/decisions/{decision}")).status == 200 and reply)
                off = datetime.datetime.fromisoformat(listed.json["ts"]) - datetime.datetime.now(datetime.timezone.utc)
                self.assertLess(abs(off.total_seconds()), 30)
                edge.stop()

    def test_streams_that_were_made_anew_are_read_and_the_feed_is_written_again(self):
        hashes = [self.decide(edge)["receipt"]["receipt_hash"] for edge in self.edges * 5]
        self.assert_all_arrive(hashes)
        self.lose_streams(self.control)
        new = self.edge("edge-3").start()
        wait_until("the feed was written again", lambda: self.asked(new)["decision"] == "allow")
        for edge in self.edges * 3:
            self.decide(edge, tool="unheard", action="of")
        for edge in [*self.edges, new]:
            wait_until("detection goes on", lambda: self.asked(edge)["reason"] == "agent_frozen")

    def test_streams_that_lost_their_end_are_read_on(self):
        first = [self.decide(edge)["receipt"]["receipt_hash"] for edge in self.edges]
        self.assert_all_arrive(first)
        self.nats.kill9()
        shutil.copytree(self.nats.folder / "jetstream", self.nats.folder / "yesterday")
        self.nats.start()
        hashes = [self.decide(edge)["receipt"]["receipt_hash"] for edge in self.edges * 20]
        self.assert_all_arrive(first + hashes)
        self.nats.kill9()
        shutil.rmtree(self.nats.folder / "jetstream")
        (self.nats.folder / "yesterday").rename(self.nats.folder / "jetstream")
        self.nats.start()
        for edge in self.edges * 3:
            self.decide(edge, tool="unheard", action="of")
        for edge in self.edges:
            wait_until("detection goes on", lambda: self.asked(edge)["reason"] == "agent_frozen")
        self.assert_all_arrive(first + hashes)

    def test_what_was_acknowledged_and_lost_before_anybody_read_it_is_shipped_again(self):
        hashes = [self.decide(edge)["receipt"]["receipt_hash"] for edge in self.edges]
        self.assert_all_arrive(hashes)
        self.control.kill9()
        self.nats.kill9()
        shutil.copytree(self.nats.folder / "jetstream", self.nats.folder / "yesterday")
        self.nats.start()
        # Nothing follows it: no gap tells of what is lost.
        hashes += [self.decide(edge)["receipt"]["receipt_hash"] for edge in self.edges * 20]
        for edge in self.edges:
            wait_until("the edge has shipped it", lambda: edge.metric("ase_spool_backlog") == 0)
        self.nats.kill9()
        shutil.rmtree(self.nats.folder / "jetstream")
        (self.nats.folder / "yesterday").rename(self.nats.folder / "jetstream")
        self.nats.start()
        self.control.start()
        wait_until("all of it has arrived", lambda: set(self.listed()) >= set(hashes), 120)
        self.assert_all_arrive(hashes)


class EdgesAloneOnDebian(OnDebian, EdgesAlone):
    ITS_PART = {
        "test_an_edge_answers_while_everything_behind_it_is_gone_and_ships_it_later",
        "test_an_edge_that_hangs_is_not_said_to_enforce",
        "test_without_control_the_feed_grows_old_though_nats_lives",
        "test_streams_that_were_made_anew_are_read_and_the_feed_is_written_again",
        "test_streams_that_lost_their_end_are_read_on",
        "test_what_was_acknowledged_and_lost_before_anybody_read_it_is_shipped_again",
    }
