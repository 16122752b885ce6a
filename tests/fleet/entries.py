"""Entries of the control feed that control did not mean. Whoever has its login on the NATS server, and not its signing key, writes into the
buckets: edges believe none of it, and control puts back what stood there."""

import copy
import json
import time

from case import SOME, FleetTest
from ed25519 import SigningKey
from forging import BEAT, Forger, containment_place, signed_by, tool_place
from nats_client import Refused
from story import now
from tenants import CRM
from waiting import wait_until

STRANGER = SigningKey(b"x" * 32)
# An older entry that comes sooner behind the newer may have been overtaken on its way, and is told to nobody.
OVERTAKEN_S = 30
# How old the feed is when control has been gone for a while, and by how much it grows while two readings of its age are waited for. Whole seconds.
OLD_S, GROWN_S, ROUNDED_S = 10, 9, 1


class Entries(FleetTest):
    def setUp(self):
        super().setUp()
        self.forger = Forger(self.fleet)
        self.addCleanup(self.forger.close)

    def refused(self):
        """How many entries each edge has refused."""
        return {name: edge.metric("aegis_control_feed_refused_total") for name, edge in self.fleet.edges.items() if edge.running}

    def wait_refused(self, since):
        wait_until("every edge refuses it", lambda: all(count > since[name] for name, count in self.refused().items()))

    def rewrites(self):
        return self.fleet.control.metric("control_feed_rewrites_total")

    def assert_not_believed(self, place, value, holds):
        """Every edge refuses it and counts it, `holds` still holds everywhere, and control puts back what stood there."""
        stood, refused, rewrites = self.forger.entry(place), self.refused(), self.rewrites()
        self.forger.write(place, value)
        self.wait_refused(refused)
        self.assert_at_every_edge(holds)
        wait_until("control writes the feed again", lambda: self.rewrites() > rewrites)
        wait_until("what stood there is back", lambda: self.forger.entry(place).get("revision") == stood["revision"])
        self.assert_at_every_edge(holds)

    def assert_told(self, *reasons):
        """Every edge tells its tenant what it refused, and an alert stands for each reason."""
        expected = {(edge.edge_id, reason) for edge in self.fleet.running_edges for reason in reasons}

        def told():
            stand = [alert for alert in self.fleet.tenant.list("/v1/alerts") if alert["rule_name"] == "feed-not-believed"]
            return {(alert["key"]["edge_id"], alert["key"]["reason"]) for alert in stand}

        wait_until("every edge tells of it", lambda: expected <= told())

    def assert_at_every_edge(self, holds):
        for edge in self.fleet.running_edges:
            holds(edge)

    def is_frozen(self, agent):
        def holds(edge):
            answer = edge.would(agent, action="read_customer", mutates_state=False)
            self.assertEqual((answer["decision"], answer["reason"]), ("deny", "agent_frozen"), edge.edge_id)

        return holds

    def freed_and_frozen(self):
        """An agent that is frozen, and the entry that control signed while it was free."""
        agent = self.fleet.tenant.register_agent()
        for verb in ("freeze", "unfreeze"):
            agent.tenant.post(f"/v1/agents/{agent.id}/{verb}", {"reason": "a test"}).expect(200)
        free = self.forger.read(containment_place(agent))
        self.assertEqual(json.loads(free)["body"]["holds"], [])
        self.load.freeze_enforced(agent)
        return agent, free

    def loosened_and_tightened(self):
        """A tool that was allowed and is denied now, and the entry that control signed while it was allowed."""
        tenant, place = self.fleet.tenant, tool_place(self.fleet.tenant, "vault")
        vault = copy.deepcopy(CRM) | {"tool": "vault", "name": "Vault"}
        tenant.post("/v1/tools", vault, key=tenant.registrar).expect(201)
        # Two tests register it: it may have been denied before.
        self.assert_at_every_edge(lambda edge: wait_until("the tool is known", lambda: self.opened(edge)["decision"] == "allow"))
        loose = self.forger.read(place)
        for action in vault["actions"]:
            action["default_decision"] = "deny"
        tenant.post("/v1/tools", vault, key=tenant.registrar).expect(201)
        self.assert_at_every_edge(lambda edge: wait_until("the tool is denied", lambda: self.opened(edge)["decision"] == "deny"))
        return place, loose

    def copied(self, edge, place):
        """The body that stands at this place in the edge's copy of the feed; empty where there is none."""
        # What changes is added at the end, while this is read.
        whole = (edge.data / "feed.jsonl").read_bytes().rpartition(b"\n")[0].decode()
        entries = {(line["bucket"], line["key"]): line["entry"] for line in map(json.loads, whole.split("\n")[1:])}
        return json.loads(entries.get(place, '{"body": {}}'))["body"]

    def opened(self, edge):
        return edge.would(self.fleet.agents[0], tool="vault")

    def stays_shut(self, edge):
        self.assertEqual(self.opened(edge)["decision"], "deny", edge.edge_id)


class Forged(Entries):
    def test_a_forged_entry_is_not_believed(self):
        """Neither with the signature of the entry that it was made from, nor with a stranger's, nor unsigned."""
        place = containment_place(self.frozen)
        entry = self.forger.entry(place)
        free = copy.deepcopy(entry)
        free["body"]["holds"] = []
        free["revision"] = free["body"]["revision"] = entry["revision"] + 1_000
        for what, value in {
            "the signature of what it was made from": free,
            "a stranger's signature under his own name": signed_by(STRANGER, free),
            "a stranger's signature under control's name": signed_by(STRANGER, free, entry["key_id"]),
            "no signature": {name: value for name, value in free.items() if name != "signature"},
            "no entry at all": b"{",
        }.items():
            with self.subTest(what):
                self.assert_not_believed(place, value, self.is_frozen(self.frozen))
        self.assert_told("bad_signature", "unknown_key", "malformed")
        self.whole()

    def test_a_forged_or_old_sign_of_life_is_not_believed(self):
        """It would make an old feed look young, or move the clocks of all edges."""
        old = self.forger.entry(BEAT)
        refused = self.refused()
        self.forger.write(BEAT, signed_by(STRANGER, old | {"at": "2036-01-01T00:00:00.000000Z"}, old["key_id"]))
        self.wait_refused(refused)
        wait_until("control lives on", lambda: self.forger.entry(BEAT)["at"] > old["at"])
        self.forger.write(BEAT, old)
        self.load.more(SOME)
        self.assert_clocks_stand()
        with self.load.without("control"):
            self.fleet.control.kill9()
            last = self.forger.entry(BEAT)
            # What it says of the time is right, and only its signer is not.
            forged = signed_by(STRANGER, last | {"at": now(), "n": last["n"] + 1}, last["key_id"])
            self.assert_feed_grows_old(OLD_S, {})
            for what, value in {"the last one": last, "an old one": old, "a forged one": forged}.items():
                with self.subTest(what):
                    self.assert_feed_grows_old(GROWN_S, self.feed_ages(), lambda value=value: self.forger.write(BEAT, value))
            self.load.more(SOME)
            self.fleet.control.start()
        wait_until("the feed is young again", lambda: max(self.feed_ages().values()) < OLD_S)
        self.assert_clocks_stand()
        self.whole()

    def feed_ages(self):
        """By edge, in seconds; each takes it every five."""
        return {edge.edge_id: edge.metric("aegis_control_feed_age_seconds") for edge in self.fleet.running_edges}

    def assert_feed_grows_old(self, by_s, ages, behind=lambda: None):
        """The age of every edge's feed grows by so much behind it, and never falls meanwhile. `ages`: those that it grows from."""
        behind()
        grown = {name: ages.get(name, 0) + by_s for name in self.feed_ages()}
        seen = dict(ages)

        def are_old():
            current = self.feed_ages()
            younger = {name: (seen[name], age) for name, age in current.items() if age < seen.get(name, age) - ROUNDED_S}
            # Before the first reading without control the last of those with it stand.
            self.assertFalse(ages and younger, "a feed became younger")
            seen.update(current)
            return all(age >= grown[name] for name, age in current.items())

        wait_until(f"every feed grows old by {by_s} s", are_old)

    def assert_clocks_stand(self):
        for shown in self.fleet.tenant.get("/v1/edges").expect(200):
            if shown["edge_id"] in self.fleet.edges:
                self.assertLess(abs(shown.get("clock_offset_us") or 0), 1_000_000, shown)
                self.assertFalse(shown["clock_suspect"], shown)

    def test_only_control_may_write_the_feed(self):
        """The server refuses whoever has another login, however it is signed."""
        place = containment_place(self.frozen)
        entry = self.forger.read(place)
        edge, keys = self.fleet.edges["edge-1"], self.fleet.control.data / "keys"
        roles = [(f"soc.{part}", keys / f"nats-{part}.nk") for part in ("detect", "respond", "history", "ingest", "lake")]
        for user, nkey_file in (("admin", keys / "nats-admin.nk"), ("edge-1", edge.data / "keys" / "nats.nk"), *roles):
            with self.subTest(user):
                other = Forger(self.fleet, user, nkey_file)
                self.addCleanup(other.close)
                for where in (place, BEAT):
                    with self.assertRaisesRegex(Refused, "(?i)permissions violation"):
                        other.write(where, entry)
        self.whole()


class Older(Entries):
    def test_an_older_entry_is_not_believed_again(self):
        """An agent was free once, a tool was allowed once, and control said so: that this is put back changes nothing."""
        agent, free = self.freed_and_frozen()
        self.assert_not_believed(containment_place(agent), free, self.is_frozen(agent))
        place, loose = self.loosened_and_tightened()
        self.assert_not_believed(place, loose, self.stays_shut)
        held = time.monotonic() + OVERTAKEN_S + 1
        wait_until("the newer one has been held for so long", lambda: time.monotonic() > held)
        self.assert_not_believed(containment_place(agent), free, self.is_frozen(agent))
        self.assert_told("older")
        self.whole()

    def test_a_deleted_entry_frees_nobody(self):
        """Neither a marker of deletion nor a bucket that forgot the key."""
        place = containment_place(self.frozen)
        for what, headers in (("deleted", {"KV-Operation": "DEL"}), ("purged", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"})):
            with self.subTest(what):
                stood, rewrites = self.forger.entry(place), self.rewrites()
                self.forger.write(place, b"", headers)
                wait_until("control writes the feed again", lambda: self.rewrites() > rewrites)
                # Counted before the writing: what is deleted meanwhile comes back with it, and is not counted once more.
                wait_until("what stood there is back", lambda: self.forger.entry(place).get("revision") == stood["revision"])
                self.assert_at_every_edge(self.is_frozen(self.frozen))
        self.whole()

    def test_a_rolled_back_bucket_is_not_believed_at_a_start(self):
        """Control is gone, the bucket holds what was true once, and an edge starts: its own copy is newer."""
        agent, free = self.freed_and_frozen()
        place, loose = self.loosened_and_tightened()
        name = self.dice.choice(["edge-1", "edge-2"])
        edge = self.fleet.edges[name]
        # The copy is written when the feed is read whole.
        wait_until("the copy has it", lambda: self.copied(edge, place).get("actions", [{}])[0].get("default_decision") == "deny")
        with self.load.without("control"):
            self.fleet.control.kill9()
            self.forger.write(containment_place(agent), free)
            self.forger.write(place, loose)
            with self.load.without(name):
                edge.kill9()
                edge.start()
            self.is_frozen(agent)(edge)
            self.stays_shut(edge)
            self.load.more(SOME)
            self.fleet.control.start()
        wait_until("control puts it back", lambda: self.forger.entry(place)["body"]["actions"][0]["default_decision"] == "deny")
        self.assert_at_every_edge(self.is_frozen(agent))
        self.assert_at_every_edge(self.stays_shut)
        self.whole()


class Misplaced(Entries):
    def test_an_entry_under_another_s_key_frees_nobody(self):
        """What control signed of one agent, put where another's freeze stands: an edge that starts from its copy alone still knows the freeze."""
        free = self.fleet.tenant.register_agent()
        for verb in ("freeze", "unfreeze"):
            free.tenant.post(f"/v1/agents/{free.id}/{verb}", {"reason": "a test"}).expect(200)
        edge, place = self.fleet.edges["edge-1"], containment_place(self.frozen)
        wait_until("the copy has the freeze", lambda: self.copied(edge, place).get("target_id") == self.frozen.id)
        rewrites = self.rewrites()
        self.forger.write(place, self.forger.read(containment_place(free)))
        told = lambda: self.rewrites() > rewrites or self.copied(edge, place).get("target_id") != self.frozen.id
        wait_until("control writes the feed again, or the edge takes the one for the other", told, longest_pause_s=0.02)
        with self.load.without("control"), self.load.without("edge-1"):
            edge.kill9()
            self.fleet.control.kill9()
            self.fleet.cluster.kill9()
            edge.start()
            self.is_frozen(self.frozen)(edge)
            self.fleet.cluster.start()
            self.fleet.control.start()
        self.whole()
