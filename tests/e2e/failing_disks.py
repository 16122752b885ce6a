"""Disks that fail under the running program (CONTRACTS section 9): one that turns read-only under a ledger, and full or read-only ones under what
follows the action path, while the ledgers can be written."""

import unittest

from disk import ReadOnlyLater, fill, mount, unmount
from faults import Fault
from harness import NATS
from receipts import check_chain
from waiting import unique, wait_until

# More than the bus's file has reserved, so that some must wait.
CALLS = 600


class UnderTheLedger(Fault):
    def test_a_disk_that_turns_read_only_under_the_ledger_denies_what_needs_a_receipt(self):
        data = self.folder() / "data"
        disk = ReadOnlyLater(data / "edge")
        self.addCleanup(disk.remove)
        if not disk.mount():
            self.skipTest("no ext4 that errs can be mounted here; a full disk tests the same answers")
        aegis = self.instance(data=data).start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent().until_tools_are_known()
        kept = [agent.authorize()["receipt"]["receipt_hash"] for _ in range(20)]
        self.assertEqual(aegis.metric("aegis_ledger_writable"), 1)

        disk.fail()
        for options in ({}, {"action": "refund"}, {"action": "delete_all"}, {"trust": "untrusted_external"}, {"action": "read_card_number", "mutates_state": False}):
            answer = agent.authorize(**options)
            self.assertEqual((answer["decision"], answer["reason"], answer["approval"], answer["receipt"]["receipt_hash"]),
                             ("deny", "receipt_unavailable", None, None), options)
        self.assertEqual(agent.read()["decision"], "allow", "a harmless read is answered")
        wait_until("it says so", lambda: aegis.metric("aegis_ledger_writable") == 0)
        ready = aegis.get("/readyz")
        self.assertEqual((ready.status, ready.json["checks"]["ledger_writable"]), (503, False), "the edge's ledger counts, not control's alone")
        # Containment does not wait for the edge's disk.
        frozen = tenant.register_agent()
        frozen.freeze()
        wait_until("the freeze holds", lambda: frozen.read()["decision"] == "deny")

        aegis.kill9()
        disk.repair()
        aegis.start()
        kept.append(agent.authorize()["receipt"]["receipt_hash"])
        lines = tenant.export()
        check_chain(lines)
        self.assertEqual(aegis.verify(lines)["verdict"], "valid")
        hashes = [line["receipt_hash"] for line in lines]
        self.assertEqual([hashes.count(receipt_hash) for receipt_hash in kept], [1] * len(kept))
        self.assertEqual({gap["reason"] for gap in self.gaps(tenant)}, {"unclean_stop"})
        self.assertEqual([line for line in lines if line.get("reason") == "receipt_unavailable"], [])


class BehindTheActionPath(Fault):
    """Bus, store and history on a disk of their own, the ledgers on another."""

    def set_up(self, data):
        """What is there before the disk of the rest fails; the ledgers' folders lie elsewhere."""
        ledgers = self.folder()
        for name in ("edge", "control"):
            (ledgers / name).mkdir(mode=0o700)
            (data / name).symlink_to(ledgers / name)
        self.aegis = self.instance(data=data).start()
        self.tenant = self.aegis.tenant().register_tools()
        self.approver = self.tenant.key("approver", groups=("*",))
        self.agent = self.tenant.register_agent().until_tools_are_known()
        self.prober = self.tenant.register_agent()
        self.frozen = self.tenant.register_agent()
        self.frozen.freeze()
        wait_until("the freeze holds", lambda: self.frozen.read()["reason"] == "agent_frozen")
        self.kept = [self.agent.authorize() for _ in range(20)]

    def assert_the_action_path_is_as_it_was(self):
        """Nothing that is asked of the edge notices; what control would have to write is refused, and nothing of it is there."""
        self.kept += [self.agent.authorize() for _ in range(CALLS)]
        self.assertEqual({answer["decision"] for answer in self.kept}, {"allow"})
        denied = [self.prober.authorize(trust="untrusted_external") for _ in range(5)]
        self.assertEqual({answer["decision"] for answer in denied}, {"deny"})
        self.waiting = self.agent.authorize(action="refund")
        self.assertEqual((self.waiting["decision"], self.waiting["approval"]["status"]), ("require_approval", "PENDING"))
        self.assertEqual(self.frozen.authorize()["reason"], "agent_frozen", "what is known of containment stays enforced")
        self.kept += [*denied, self.waiting]
        self.assertEqual([answer for answer in self.kept if not answer["receipt"]["receipt_hash"]], [])
        wait_until("what is sealed waits", lambda: self.aegis.metric("ase_spool_backlog") > 0)
        self.assertEqual(self.aegis.metric("aegis_ledger_writable"), 1)
        wait_until("it is not ready", lambda: self.aegis.get("/readyz").status == 503)

        def refused():
            channel = {"channel": unique("channel"), "source_trust": "unknown"}
            reply = self.tenant.post("/v1/channels", channel, key=self.tenant.registrar)
            return (channel, reply) if reply.status != 201 else None

        self.refused, reply = wait_until("a change is refused", refused)
        self.assertEqual((reply.status, reply.code), (503, "store_unavailable"))

    def assert_it_is_all_made_up_for(self):
        """What was sealed meanwhile is everywhere, each once; the probing agent is frozen, and the approval can be given."""
        wait_until("nothing waits any more", lambda: self.aegis.metric("ase_spool_backlog") == 0)
        wait_until("it is ready", lambda: self.aegis.get("/readyz").status == 200)
        wanted = {answer["decision_id"] for answer in self.kept}

        def arrived():
            ids = [event["event_id"] for event in self.tenant.list("/v1/decisions")]
            return ids if wanted.issubset(ids) else None

        ids = wait_until("every decision is in the history", arrived)
        self.assertEqual(len(ids), len(set(ids)), "a decision stands twice")
        wait_until("detection has seen the denies", lambda: self.prober.read(dry_run=True)["reason"] == "agent_frozen")
        path = f"/v1/approvals/{self.waiting['approval']['approval_id']}"
        wait_until("the approval is there", lambda: self.tenant.get(path).status == 200)
        self.tenant.post(f"{path}/approve", {}, key=self.approver).expect(200)
        self.tenant.post(f"{path}/consume", {"claimed_action_hash": self.waiting["action_hash"]}, key=self.agent.token).expect(200)
        self.assertNotIn(self.refused["channel"], [channel["channel"] for channel in self.tenant.list("/v1/channels")])
        self.tenant.post("/v1/channels", self.refused, key=self.tenant.registrar).expect(201)
        lines = self.tenant.export()
        check_chain(lines)
        self.assertEqual(self.aegis.verify(lines)["verdict"], "valid")
        hashes = [line["receipt_hash"] for line in lines]
        self.assertEqual([hashes.count(answer["receipt"]["receipt_hash"]) for answer in self.kept], [1] * len(self.kept))

    @unittest.skipIf(NATS, "the bus has no file here")
    def test_a_full_disk_under_bus_and_store_leaves_the_action_path_as_it_is(self):
        data = self.folder() / "data"
        if not mount(data, "size=24m,mode=0700"):
            self.skipTest("no tmpfs can be mounted here")
        self.addCleanup(unmount, data)
        self.set_up(data)
        filler = fill(data)
        self.assert_the_action_path_is_as_it_was()
        filler.unlink()
        self.assert_it_is_all_made_up_for()
        self.assertEqual(self.gaps(self.tenant), [])

    @unittest.skipIf(NATS, "the bus has no file here")
    def test_a_disk_that_turns_read_only_under_bus_and_store_leaves_the_action_path_as_it_is(self):
        data = self.folder() / "data"
        disk = ReadOnlyLater(data)
        self.addCleanup(disk.remove)
        if not disk.mount():
            self.skipTest("no ext4 that errs can be mounted here")
        self.set_up(data)
        disk.fail()
        self.assert_the_action_path_is_as_it_was()
        self.aegis.kill9()
        disk.repair()
        self.aegis.start()
        self.assert_it_is_all_made_up_for()

    def test_a_full_disk_under_the_lake_holds_up_the_lake_alone(self):
        data = self.folder() / "data"
        if not mount(data / "lake", "size=2m,mode=0700"):
            self.skipTest("no tmpfs can be mounted here")
        self.addCleanup(unmount, data / "lake")
        aegis = self.instance(data=data, environment={"AEGIS_LAKE_FLUSH_S": "1"}).start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent().until_tools_are_known()

        def in_the_lake():
            query = "SELECT event_id FROM events WHERE kind = 'authorize_decision'"
            said = aegis.cli("sql", query, "--data", data, "--tenant", tenant.name, "--json", "--limit", "100000")
            return [line.split('"')[3] for line in said.splitlines()]

        kept = [agent.authorize()["decision_id"] for _ in range(20)]
        wait_until("the lake has them", lambda: set(kept) <= set(in_the_lake()))
        filler = fill(data / "lake")
        answers = [agent.authorize() for _ in range(100)]
        self.assertEqual({(answer["decision"], bool(answer["receipt"]["receipt_hash"])) for answer in answers}, {("allow", True)})
        meanwhile = {answer["decision_id"] for answer in answers}
        wait_until("the history has them", lambda: meanwhile <= {event["event_id"] for event in tenant.list("/v1/decisions")})
        wait_until("the lake says that it cannot write", lambda: aegis.metric("aegis_lake_stands_still") == 1)
        self.assertFalse(meanwhile & set(in_the_lake()))
        filler.unlink()
        everything = set(kept) | meanwhile
        wait_until("the lake has made up for it", lambda: everything <= set(in_the_lake()))
        wait_until("it goes on", lambda: aegis.metric("aegis_lake_stands_still") == 0)
        ids = in_the_lake()
        self.assertEqual(len(ids), len(set(ids)), "a decision stands twice in the lake")
