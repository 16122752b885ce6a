"""What happens when something fails (CONTRACTS section 9): each row with a real fault, and none turns a deny into an allow."""

import contextlib
import json
import os
import pathlib
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import unittest
import uuid

from disk import fill, mount, unmount
from harness import BINARY, CLEAN_ENVIRONMENT, NATS, Aegis, StartFailed
from receipts import check_chain
from waiting import wait_until

# Room for the ledger to come up and to keep a few hundred receipts before the filler takes the rest.
SMALL_DISK = "24m"


class Fault(unittest.TestCase):
    def instance(self, **options):
        aegis = Aegis(**options)
        self.addCleanup(aegis.close)
        return aegis

    def folder(self):
        folder = tempfile.TemporaryDirectory(prefix="aegis-e2e-")
        self.addCleanup(folder.cleanup)
        return pathlib.Path(folder.name)

    def assert_no_start(self, aegis, *words, returncode=None, **process_options):
        """The program ends with a code other than 0 and says all of `words`; nothing panics."""
        with self.assertRaises(StartFailed) as failed:
            aegis.start(**process_options)
        self.assertIsNotNone(failed.exception.returncode, f"still running\n{failed.exception.output}")
        self.assertGreater(failed.exception.returncode, 0, "ended by a signal or well")
        if returncode is not None:
            self.assertEqual(failed.exception.returncode, returncode, failed.exception.output)
        self.assertNotIn("panicked", failed.exception.output)
        for word in words:
            self.assertIn(word, failed.exception.output)
        return failed.exception.output

    def gaps(self, tenant):
        return [line["receipt"]["detail"] for line in tenant.export() if line["receipt"]["phase"] == "gap"]


class FullDisk(Fault):
    def denied_for_want_of_a_receipt(self, agent):
        """The first answer without room; until then what was reserved may still be written to."""
        def answer():
            reply = agent.authorize()
            return reply if reply["reason"] == "receipt_unavailable" else None
        return wait_until("a mutating call is denied", answer, longest_pause_s=0)

    def assert_fails_closed(self, agent):
        denied = self.denied_for_want_of_a_receipt(agent)
        self.assertEqual((denied["decision"], denied["receipt"]["receipt_hash"], denied["approval"]), ("deny", None, None))
        for options in ({"action": "refund"}, {"action": "delete_all"}, {"trust": "untrusted_external"}):
            answer = agent.authorize(**options)
            self.assertEqual((answer["decision"], answer["approval"]), ("deny", None), options)
        self.assertEqual(agent.read(action="read_card_number")["reason"], "receipt_unavailable")
        # A harmless read is answered, and its receipt follows.
        read = agent.read()
        self.assertEqual((read["decision"], read["receipt"]["receipt_hash"]), ("allow", None))
        return read

    def test_a_full_disk_denies_what_needs_a_receipt_and_says_afterwards_what_was_lost(self):
        data = self.folder() / "data"
        if not mount(data / "edge", f"size={SMALL_DISK},mode=0700"):
            self.skipTest("no tmpfs can be mounted here; the page limit below tests the same answers")
        self.addCleanup(unmount, data / "edge")
        aegis = self.instance(data=data).start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        kept = [agent.authorize()["receipt"]["receipt_hash"] for _ in range(20)]

        filler = fill(data / "edge")
        read = self.assert_fails_closed(agent)
        # Containment does not wait for the edge's disk.
        frozen = tenant.register_agent()
        frozen.freeze()
        wait_until("the freeze holds", lambda: frozen.read()["decision"] == "deny")

        filler.unlink()
        answer = wait_until("the ledger can write again", lambda: (a := agent.authorize())["decision"] == "allow" and a)
        kept.append(answer["receipt"]["receipt_hash"])
        gap = wait_until("a gap receipt", lambda: [g for g in self.gaps(tenant) if g["reason"] == "ledger_unavailable"])[0]
        self.assertGreater(gap["refused"], 0)
        lines = tenant.export()
        check_chain(lines)
        self.assertEqual(aegis.verify(lines)["verdict"], "valid")
        hashes = [line["receipt_hash"] for line in lines]
        self.assertEqual([hashes.count(receipt_hash) for receipt_hash in kept], [1] * len(kept))
        self.assertIn(read["decision_id"], [line["event_id"] for line in lines], "the buffered read has no receipt")
        denied = [e for e in lines if e.get("reason") == "receipt_unavailable"]
        self.assertEqual(denied, [], "an unsealed deny has a receipt after all")

    def test_a_ledger_at_its_page_limit_denies_what_needs_a_receipt(self):
        aegis = self.instance(environment={"AEGIS_LEDGER_MAX_PAGES": "120"}).start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        self.assert_fails_closed(agent)
        aegis.kill9()
        aegis.environment = {}
        aegis.start()
        self.assertEqual(agent.authorize()["decision"], "allow")
        lines = tenant.export()
        check_chain(lines)
        self.assertEqual(aegis.verify(lines)["verdict"], "valid")

    def test_a_full_disk_at_the_start_is_no_start(self):
        data = self.folder() / "data"
        if not mount(data, "size=64k,mode=0700"):
            self.skipTest("no tmpfs can be mounted here")
        self.addCleanup(unmount, data)
        self.assert_no_start(self.instance(data=data), "cannot start", str(data))


class ReadOnly(Fault):
    def test_a_read_only_data_folder_is_no_start(self):
        aegis = self.instance()
        aegis.start().tenant()
        aegis.stop()
        if os.geteuid() != 0:
            aegis.data.chmod(0o500)
            self.addCleanup(aegis.data.chmod, 0o700)
            self.assert_no_start(aegis, str(aegis.data))
            return
        data = self.folder() / "data"
        if not mount(data, "mode=0755"):
            self.skipTest("no tmpfs can be mounted here, and root may write everywhere")
        self.addCleanup(unmount, data)
        shutil.copytree(aegis.data, data, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        self.assert_no_start(self.instance(data=data), "cannot start", str(data))

    def test_an_empty_read_only_folder_is_no_start(self):
        folder = self.folder()
        if os.geteuid() == 0:
            if not mount(folder / "ro", "ro"):
                self.skipTest("no tmpfs can be mounted here, and root may write everywhere")
            self.addCleanup(unmount, folder / "ro")
        else:
            (folder / "ro").mkdir(mode=0o500)
        self.assert_no_start(self.instance(data=folder / "ro" / "data"), "cannot start", str(folder / "ro"))

    def test_a_data_folder_that_is_a_file_is_no_start(self):
        file = self.folder() / "data"
        file.write_text("not a folder")
        self.assert_no_start(self.instance(data=file), str(file))

    def test_an_address_in_use_is_no_start(self):
        first = self.instance().start()
        second = self.instance()
        second.command = lambda: [str(BINARY), "up", "--data", str(second.data), "--listen", f"127.0.0.1:{first.port}"]
        self.assert_no_start(second, f"127.0.0.1:{first.port}")
        self.assertEqual(first.get("/health").status, 200)


def ledger(aegis):
    """The edge's ledger, to be damaged. The instance must be stopped."""
    assert not aegis.running
    connection = sqlite3.connect(aegis.data / "edge" / "ledger.db")
    connection.row_factory = sqlite3.Row
    return contextlib.closing(connection)


class Corruption(Fault):
    def setUp(self):
        self.aegis = self.instance().start()
        self.tenant = self.aegis.tenant().register_tools()
        self.agent = self.tenant.register_agent().until_tools_are_known()
        self.acknowledged = [self.agent.authorize()["receipt"]["receipt_hash"] for _ in range(10)]

    def damage(self, position, change):
        """Changes one of the tenant's decisions in the file: -1 is the last."""
        with ledger(self.aegis) as connection, connection:
            rows = connection.execute("SELECT * FROM receipts WHERE tenant_id = ? AND kind = 'authorize_decision' ORDER BY row", (self.tenant.name,)).fetchall()
            row = rows[position]
            column, value = change(row)
            connection.execute(f"UPDATE receipts SET {column} = ? WHERE row = ?", (value, row["row"]))
        return row

    def test_a_corrupt_last_row_is_set_aside_and_the_chain_says_so(self):
        changes = {
            "a changed event": lambda row: ("event", row["event"].replace('"allow"', '"alloW"')),
            "half a row": lambda row: ("receipt", row["receipt"][: len(row["receipt"]) // 2]),
            "zeros": lambda row: ("event", "\0" * len(row["event"])),
            "another hash": lambda row: ("receipt_hash", "0" * 64),
        }
        for name, change in changes.items():
            with self.subTest(name):
                self.acknowledged.append(self.agent.authorize()["receipt"]["receipt_hash"])
                self.aegis.kill9()
                damaged = self.damage(-1, change)
                self.aegis.start()
                gap = [g for g in self.gaps(self.tenant) if g["reason"] == "corrupt_tail"][-1]
                self.assertEqual([row["seq"] for row in gap["damaged"]], [damaged["seq"]])
                self.assertTrue(gap["damaged"][0]["quarantined"])
                # What is sound goes on: new receipts, and an export that verifies without the damaged one.
                self.acknowledged.append(self.agent.authorize()["receipt"]["receipt_hash"])
                lines = self.tenant.export()
                check_chain(lines)
                self.assertEqual(self.aegis.verify(lines)["verdict"], "valid")
                missing = set(self.acknowledged) - {line["receipt_hash"] for line in lines}
                self.assertEqual(len(missing), 1)
                self.acknowledged = [receipt_hash for receipt_hash in self.acknowledged if receipt_hash not in missing]

    def test_a_row_changed_in_the_middle_is_found_by_verification_and_named(self):
        self.aegis.stop()
        damaged = self.damage(4, lambda row: ("event", row["event"].replace('"allow"', '"alloW"')))
        self.aegis.start()
        report = self.aegis.verify(self.tenant.export(), expect=1)
        self.assertEqual(report["verdict"], "invalid")
        self.assertEqual((report["failure"]["seq"], report["failure"]["code"]), (damaged["seq"], "hash_mismatch"))
        self.assertEqual([line["seq"] for line in self.tenant.export() if line.get("evidence") == "damaged"], [damaged["seq"]])
        self.assertEqual(self.agent.authorize()["decision"], "allow")

    def test_a_row_removed_from_the_middle_is_found_by_verification(self):
        self.aegis.stop()
        with ledger(self.aegis) as connection, connection:
            rows = connection.execute("SELECT row FROM receipts WHERE tenant_id = ? AND kind = 'authorize_decision' ORDER BY row", (self.tenant.name,)).fetchall()
            connection.execute("DELETE FROM receipts WHERE row = ?", (rows[4]["row"],))
        self.aegis.start()
        self.assertEqual(self.aegis.verify(self.tenant.export(), expect=1)["failure"]["code"], "missing_seq")

    @unittest.skipIf(NATS, "over a server, bus and history have copies of their own")
    def test_a_ledger_that_is_restored_or_replaced_is_never_taken_for_the_one_that_was(self):
        """The bus and the history are kept, and name rows that are other events now: those they say are missing, and new ones are seen."""
        listed = lambda: self.tenant.list("/v1/receipts")
        arrived = lambda hashes: wait_until("the history has them", lambda: {line["receipt_hash"] for line in listed()} >= set(hashes))
        ledger_folder = self.aegis.data / "edge"
        backup = self.folder() / "backup"
        arrived(self.acknowledged)
        self.aegis.stop()
        shutil.copytree(ledger_folder, backup)
        self.aegis.start()
        later = [self.agent.authorize()["receipt"]["receipt_hash"] for _ in range(10)]
        arrived(later)
        for name, restore, gone in (
            ("restored", lambda: shutil.copytree(backup, ledger_folder), lambda: later),
            ("replaced", lambda: None, lambda: later + self.acknowledged),
        ):
            with self.subTest(name):
                self.aegis.stop()
                shutil.rmtree(ledger_folder)
                restore()
                self.aegis.start()
                denied = [self.agent.authorize(tool="unheard", action="of")["receipt"]["receipt_hash"] for _ in range(5)]
                arrived(denied)
                missing = {line["receipt_hash"] for line in listed() if line.get("evidence") == "missing"}
                self.assertLessEqual(set(gone()), missing)
                self.assertFalse(missing & set(denied))
                self.assertEqual(name == "restored", not missing & set(self.acknowledged))
                wait_until("the storm is seen", lambda: any("AEG-3002" in (text := json.dumps(alert)) and self.agent.id in text for alert in self.tenant.list("/v1/alerts")))
                self.assertIn("not here any more", self.aegis.log())
                later += denied
                self.agent = self.tenant.register_agent()

    @unittest.skipIf(NATS, "over a server, bus and history have copies of their own")
    def test_a_row_that_is_gone_is_missing_wherever_it_is_asked_for(self):
        hashes = lambda: {line["receipt_hash"] for line in self.tenant.list("/v1/receipts")}
        wait_until("the history has all receipts", lambda: hashes() >= set(self.acknowledged))
        self.aegis.stop()
        with ledger(self.aegis) as connection, connection:
            row = connection.execute("SELECT * FROM receipts WHERE receipt_hash = ?", (self.acknowledged[4],)).fetchone()
            connection.execute("DELETE FROM receipts WHERE row = ?", (row["row"],))
        self.aegis.start()
        for path in ("/v1/receipts", "/v1/decisions"):
            missing = [line for line in self.tenant.list(path) if line.get("evidence") == "missing"]
            self.assertEqual([(line["receipt_hash"], line["seq"], line["verified"]) for line in missing], [(self.acknowledged[4], row["seq"], False)], path)
        event_id = str(uuid.UUID(bytes=row["event_id"]))
        for path in (f"/v1/receipts/{event_id}", f"/v1/receipts/{event_id}/verify", f"/v1/decisions/{event_id}"):
            self.assertEqual(self.tenant.get(path).expect(500)["error"]["code"], "evidence_missing", path)
        exported = self.tenant.get("/v1/receipts/export").text.splitlines()
        self.assertEqual(len([line for line in exported if self.acknowledged[4] in line and "missing" in line]), 1)
        self.assertEqual(self.aegis.verify(exported, expect=1)["verdict"], "invalid")
        self.assertEqual(self.agent.authorize()["decision"], "allow")

    def test_a_file_that_is_no_database_is_no_start(self):
        self.aegis.stop()
        for part in ("edge/ledger.db", "control/ledger.db", "store.db") + (() if NATS else ("bus.db",)):
            with self.subTest(part):
                data = self.folder() / "data"
                shutil.copytree(self.aegis.data, data)
                # Without its write-ahead log, from which SQLite would restore the pages.
                for side_file in data.glob(f"{part}-*"):
                    side_file.unlink()
                (data / part).write_bytes(b"this is not a database" * 1000)
                self.assert_no_start(self.instance(data=data), str(data / part))

    def test_a_schema_newer_than_the_program_is_no_start(self):
        self.aegis.stop()
        changes = {
            "edge/ledger.db": "PRAGMA user_version = 9999",
            "control/ledger.db": "PRAGMA user_version = 9999",
            "bus.db": "PRAGMA user_version = 9999",
            "store.db": "INSERT INTO schema_versions (version, name, sha256, applied_at) VALUES (9999, 'later', 'x', 0)",
        }
        if NATS:
            del changes["bus.db"]
        undo = {"store.db": "DELETE FROM schema_versions WHERE version = 9999"}
        for part, sql in changes.items():
            with self.subTest(part):
                path = self.aegis.data / part
                with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                    before = connection.execute("PRAGMA user_version").fetchone()[0]
                    connection.execute(sql)
                self.assert_no_start(self.instance(data=self.aegis.data), str(path), "9999")
                with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                    connection.execute(undo.get(part, f"PRAGMA user_version = {before}"))
        self.aegis.start()
        self.assertEqual(self.agent.authorize()["decision"], "allow")

    def test_a_second_program_on_the_same_folder_is_no_start_and_harms_nothing(self):
        self.assert_no_start(self.instance(data=self.aegis.data), "in use")
        self.acknowledged.append(self.agent.authorize()["receipt"]["receipt_hash"])
        self.aegis.restart()
        lines = self.tenant.export()
        check_chain(lines)
        self.assertLessEqual(set(self.acknowledged), {line["receipt_hash"] for line in lines})
        self.assertEqual(self.gaps(self.tenant), [])

    def test_an_unclean_stop_is_a_gap_and_a_clean_one_is_none(self):
        self.aegis.restart()
        self.agent.authorize()
        self.assertEqual(self.gaps(self.tenant), [])
        self.aegis.kill9()
        self.aegis.start()
        self.agent.authorize()
        self.assertIn("unclean_stop", [gap["reason"] for gap in self.gaps(self.tenant)])


GOOD_POLICY = '@id("reads") @reason("reads")\npermit (principal, action in Action::"read", resource);\n'


class Policies(Fault):
    BAD = {
        "a syntax error": (GOOD_POLICY + "\npermit (principal, action, resource)\nwhen { context.mutates_state == };\n", "5"),
        "an unknown attribute": (GOOD_POLICY + '\n@id("bad")\npermit (principal, action in Action::"tool_call", resource)\nwhen { context.risk_scores > 3 };\n', "6"),
        "a wrong type": (GOOD_POLICY + '\n@id("bad")\npermit (principal, action in Action::"tool_call", resource)\nwhen { context.trust_level > 3 };\n', "6"),
        "no @id": (GOOD_POLICY + '\npermit (principal, action in Action::"tool_call", resource);\n', "4"),
        "the same @id twice": (GOOD_POLICY + GOOD_POLICY, "[13]"),
        "an unknown decision": (GOOD_POLICY + '\n@id("bad") @decision("maybe")\npermit (principal, action in Action::"tool_call", resource);\n', None),
    }

    def packs(self, **files):
        folder = self.folder()
        for name, text in files.items():
            (folder / f"{name}.cedar").write_text(text)
        return {"AEGIS_POLICIES": str(folder)}

    def test_a_bad_policy_file_is_no_start_and_is_named_with_its_line(self):
        for name, (text, line) in self.BAD.items():
            with self.subTest(name):
                output = self.assert_no_start(self.instance(environment=self.packs(good=GOOD_POLICY.replace("reads", "others"), bad=text)), "bad.cedar")
                if line is not None:
                    self.assertRegex(output, rf"bad\.cedar:{line}:\d+")

    def test_a_policies_folder_without_a_policy_is_no_start(self):
        self.assert_no_start(self.instance(environment=self.packs()), "cedar")
        self.assert_no_start(self.instance(environment={"AEGIS_POLICIES": "/nowhere/at/all"}), "/nowhere/at/all")

    def test_the_packs_of_a_folder_replace_the_shipped_ones(self):
        aegis = self.instance(environment=self.packs(only=GOOD_POLICY)).start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        read = agent.read()
        self.assertEqual((read["decision"], read["matched_policies"]), ("allow", ["reads"]))
        self.assertEqual(agent.authorize()["decision"], "deny")

    def test_a_tenant_s_bad_policy_is_refused_and_the_running_one_stays(self):
        aegis = self.instance().start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        forbid = '@id("stop") @reason("stopped")\nforbid (principal, action == Action::"crm/update_customer", resource);\n'
        digest = tenant.put("/v1/policies", {"policies": forbid}).expect(200)["digest"]
        wait_until("it is enforced", lambda: agent.authorize()["decision"] == "deny")
        for name, (text, line) in self.BAD.items():
            with self.subTest(name):
                reply = tenant.put("/v1/policies", {"policies": text})
                self.assertEqual((reply.status, reply.code), (422, "invalid_policy"), reply)
                if line is not None:
                    self.assertRegex(reply.json["error"]["message"], rf":{line}:\d+")
        # Names that only some tool could give are errors too: a policy about a misspelt argument would never match.
        typo = '@id("big")\nforbid (principal, action == Action::"crm/refund", resource)\nwhen { context.parameters has amout && context.parameters.amout > 5 };\n'
        self.assertEqual(tenant.put("/v1/policies", {"policies": typo}).status, 422)
        self.assertEqual(tenant.get("/v1/policies").expect(200), {"policies": forbid, "digest": digest})
        self.assertEqual(agent.authorize()["matched_policies"], ["stop"])
        aegis.restart()
        self.assertEqual(agent.authorize()["matched_policies"], ["stop"])

    def test_a_policy_that_fails_while_it_is_evaluated_denies(self):
        aegis = self.instance().start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        overflow = ('@id("sum")\nforbid (principal, action == Action::"crm/update_customer", resource)\n'
                    "when { context.parameters has amount && context.parameters.amount * 9000000000000000 > 1 };\n")
        tenant.put("/v1/policies", {"policies": overflow}).expect(200)
        wait_until("it is enforced", lambda: agent.authorize(parameters={"amount": 1})["decision"] == "deny")
        self.assertEqual(agent.authorize()["decision"], "allow")
        answer = agent.authorize(parameters={"amount": 9000000000000000})
        self.assertEqual((answer["decision"], answer["reason"]), ("deny", "policy_error"))


class Configuration(Fault):
    def file(self, text):
        path = self.folder() / "aegis.toml"
        path.write_text(text)
        return path

    def test_an_unknown_key_is_named_and_nothing_starts(self):
        for text, word in (("[edge]\nmax_body = 3\n", "max_body"), ("lisen = 'x'\n", "lisen"), ("[edgy]\nid = 'x'\n", "edgy")):
            with self.subTest(text):
                output = self.assert_no_start(self.instance(config=self.file(text)), word, "aegis.toml", returncode=2)
                self.assertRegex(output, r"line \d")

    def test_an_unknown_variable_is_named_and_nothing_starts(self):
        self.assert_no_start(self.instance(environment={"AEGIS_EGDE_ID": "x"}), "AEGIS_EGDE_ID", returncode=2)

    def test_a_value_that_cannot_be_is_named(self):
        for text, word in (("[edge]\nmax_body_bytes = 'many'\n", "max_body_bytes"), ("[edge]\nid = 'Not OK'\n", "edge.id"),
                           ("[ledger]\nmax_batch = 0\n", "max_batch"), ("listen = 'here'\n", "listen"), ("listen = \n", "line 1")):
            with self.subTest(text):
                self.assert_no_start(self.instance(config=self.file(text)), word, returncode=2)
        self.assert_no_start(self.instance(environment={"AEGIS_EDGE_MAX_BODY_BYTES": "many"}), "AEGIS_EDGE_MAX_BODY_BYTES", returncode=2)
        self.assert_no_start(self.instance(config=self.folder() / "nothing.toml"), "nothing.toml", returncode=2)

    def test_a_file_is_obeyed_and_a_variable_comes_after_it(self):
        config = self.file("[edge]\nmax_body_bytes = 2000\nid = 'edge-9'\n")
        aegis = self.instance(config=config, environment={"AEGIS_EDGE_ID": "edge-7"}).start()
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        self.assertEqual(agent.send(agent.request(parameters={"x": "y" * 2000})).status, 413)
        agent.authorize()
        self.assertEqual({line["lane"].split(".")[1] for line in tenant.export()}, {"edge-7", "control"})

    def test_bad_usage_is_exit_code_2(self):
        for arguments in (["up", "--nonsense"], ["nonsense"], [], ["keys", "create", "--tenant", "Not OK", "--role", "admin", "--data", str(self.folder())],
                          ["keys", "create", "--tenant", "acme", "--role", "god", "--data", str(self.folder())]):
            with self.subTest(arguments):
                done = subprocess.run([str(BINARY), *arguments], env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertTrue(done.stderr)
                self.assertNotIn("panicked", done.stderr)

    def test_a_key_given_on_standard_input_works_and_a_short_one_does_not(self):
        aegis = self.instance().start()
        value = "a-secret-of-my-own-that-is-long-enough"
        arguments = ["keys", "create", "--tenant", "acme", "--role", "admin", "--name", "ci", "--value-stdin", "--data", aegis.data]
        aegis.cli(*arguments, stdin=value + "\n")
        self.assertEqual(aegis.get("/v1/agents", value).status, 200)
        self.assertNotIn("short", aegis.cli(*arguments, stdin="short\n", expect=2))
        # No secret lies in the data folder in the clear.
        for path in aegis.data.rglob("*"):
            # The program runs: a file that is written beside another and takes its place may be gone meanwhile.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                self.assertNotIn(value.encode(), path.read_bytes(), path)

    def test_the_data_folder_is_its_owner_s_alone(self):
        aegis = self.instance().start()
        aegis.tenant()
        self.assertEqual(aegis.data.stat().st_mode & 0o077, 0)
        open_files = []
        for path in aegis.data.rglob("*"):
            # As above.
            with contextlib.suppress(FileNotFoundError):
                mode = path.stat().st_mode
                if stat.S_ISREG(mode) and mode & 0o077 and path.suffix != ".pub":
                    open_files.append(str(path))
        self.assertEqual(open_files, [])

    def test_health_ready_and_metrics_answer_without_a_key(self):
        aegis = self.instance().start()
        self.assertEqual(aegis.get("/health").expect(200)["status"], "ok")
        self.assertTrue(aegis.get("/readyz").expect(200)["ready"])
        tenant = aegis.tenant().register_tools()
        agent = tenant.register_agent()
        agent.authorize(trust="untrusted_external", run_id="a-run-that-no-label-names")
        text = aegis.get("/metrics").text
        for name in ("aegis_authorize_duration_seconds", "aegis_decisions_total", "aegis_policy_eval_seconds", "aegis_ledger_commit_seconds",
                     "provenance_denials_total", "approval_hash_mismatch_total", "receipt_verify_failures_total", "ase_emitted_total",
                     "ase_emit_dropped_total", "ase_spool_backlog", "incidents_open"):
            with self.subTest(name):
                self.assertIn(f"\n{name}", "\n" + text)
        for secret in (tenant.name, agent.id, "a-run-that-no-label-names", "update_customer", "customer-1"):
            self.assertNotIn(secret, text)
        json.dumps(text)
