"""docs/writing-rules.md: its commands as a reader types them, its rule and tests, and what it says of columns, of who fills them and of what is refused."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from harness import BINARY, CLEAN_ENVIRONMENT, REPOSITORY
from readme import BLOCK, Folder
from story import now
from waiting import wait_until
from with_rules import SECRET, UNTRUSTED, WithRules

TEXT = (REPOSITORY / "docs/writing-rules.md").read_text()
HEADER = """/* rule
id: T-1
name: t
version: 1
severity: low
window: 10m
key: [agent_id]
mode: active
owner: test
description: a test
false_positives: none
changelog:
  - {version: 1, date: 2026-11-26, note: first version}
*/
"""
# What every event has, and the name under which a list shows a decision's id again.
BASE = {"event_id", "tenant_id", "edge_id", "ts", "kind", "source", "matched_policies", "late", "verified", "clock_suspect", "decision_id"}
OF_A_LANE = {"lane", "seq", "receipt_hash"}


def rows(name):
    """The cells of the table between the marks of this name, less its head."""
    table = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def aegis(*arguments, cwd=None):
    return subprocess.run([BINARY, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, env=CLEAN_ENVIRONMENT)


def lint(sql):
    """What lint says of a query under a header, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "rule.sql").write_text(HEADER + sql)
        return json.loads(aegis("rules", "lint", "--json", folder).stdout)["files"][0]


class Commands(unittest.TestCase):
    def setUp(self):
        self.folder = Folder()
        self.addCleanup(self.folder.close)
        (self.folder.path / "rules").symlink_to(REPOSITORY / "rules")

    def run_block(self, script):
        done = self.folder.run(script)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def start(self, command):
        up = self.folder.start(f"env {command}")
        self.assertIn("listening", up.stdout.readline())
        return up

    def test_the_commands_lead_from_an_idea_to_an_active_rule(self):
        blocks = [text for language, text in BLOCK.findall(TEXT) if language == "sh"]
        write, tests, editor, start, act, wait, history, why, activate, own, every, speed = blocks
        self.assertIn("ok    my-rules/many-cards/rule.sql MY-0001 v1", self.run_block(write))
        said = self.run_block(tests)
        self.assertRegex(said, r"many-cards\n  ok    fires .*\n  ok    silent ")
        self.assertIn(" 0 failed", said)
        self.assert_each_condition_is_tested()
        self.run_block(editor)
        header = (self.folder.path / "my-rules/many-cards.yaml").read_text().splitlines()
        self.assertTrue((self.folder.path / "my-rules" / header[0].partition("$schema=")[2]).is_file(), header[0])
        self.assertEqual([header[1], header[-1]], ["id: MY-0001", "  - {version: 1, date: 2026-11-26, note: first version}"])

        up = self.start(start)
        said = self.run_block(act + wait)
        self.assertIn('"decision":"allow"', said)
        self.assertIn('"mode":"log_only"', self.alert(said))
        self.assertIn("MY-0001 many-cards: 1 alerts, 0 retracted", self.run_block(history))
        key = 'export AEGIS=http://127.0.0.1:8484\nANALYST=$(aegis keys create --tenant acme --role analyst --data ./aegis-data)\n'
        said = self.run_block(key + why)
        self.assertRegex(said, r"\nWHERE +passed\n")
        self.assertRegex(said, r"\nwindow +5 events of agent_id ")
        self.assertTrue(said.endswith("\nfired\n"), said)
        incidents = 'curl -s $AEGIS/v1/incidents -H "Authorization: Bearer $ANALYST" | grep -c many-cards || true\n'
        self.assertEqual(self.run_block(key + incidents).strip(), "0")

        self.assertIn("MY-0001 v2", self.run_block(activate))
        self.folder.stop(up)
        self.start(start)
        # Another agent, whose alert is another one.
        said = self.run_block(act.replace('"agent_key": "collector"', '"agent_key": "another"') + wait.replace("grep many-cards", """grep '"mode":"active"'"""))
        self.assertIn("many-cards", said)
        self.run_block(f"{key}until [ $({incidents.strip()}) != 0 ]; do sleep 0.2; done")

        said = self.run_block(own)
        stands, listed = said.split("ACME-0001 acme-cards v2 log_only")[1:]
        self.assertRegex(stands, r"backtest  [12] alerts, [12]\.0 a day; ")
        self.assertIn(" tenant acme, ", listed)
        self.assertIn(" by operator", listed)

        quiet, listed, again = self.run_block(every).split("MY-0001 many-cards v")[1:]
        self.assertRegex(quiet, r"^3 log_only  [0-9a-f]{64}\n  the nightly export looks like it\n  backtest  [12] alerts, ")
        self.assertRegex(listed, r"^3 log_only  [0-9a-f]{64}  every tenant, \S+ by operator\n")
        self.assertRegex(again, r"^2 active  [0-9a-f]{64}  as the program has it\n  the export has a tool of its own now\n")

        self.assertIn("many-cards incremental agent_id", self.run_block(speed).splitlines())

    def alert(self, said):
        """The alert of the text's rule in an answer with all of them."""
        line = next(line for line in said.splitlines() if "many-cards" in line)
        listed, _ = json.JSONDecoder().raw_decode(line[line.index("[{\"alert_id"):])
        found = [alert for alert in listed if alert["rule_name"] == "many-cards"]
        self.assertEqual(len(found), 1)
        return json.dumps(found[0], separators=(",", ":"))

    def assert_each_condition_is_tested(self):
        """As the text demands of a test: it fails when a condition is taken out."""
        shutil.copytree(self.folder.path / "my-rules/many-cards", self.folder.path / "alone/many-cards")
        file = self.folder.path / "alone/many-cards/rule.sql"
        rule = file.read_text()
        conditions = re.search(r"^WHERE (.*)$", rule, re.MULTILINE)[1].split(" AND ")
        self.assertEqual(len(conditions), 4)
        for condition in [*conditions, "requires: verified\n", "DISTINCT "]:
            file.write_text(rule.replace(condition, "true" if condition in conditions else ""))
            self.assertEqual(self.folder.run("aegis rules test alone").returncode, 1, f"no test notices that `{condition}` is gone")


class WhatDidNotFollow(unittest.TestCase):
    def test_the_rule_of_the_text_passes_its_tests(self):
        section = TEXT[TEXT.index("### What did not follow"):TEXT.index("## Key and evidence")]
        (rule,) = re.findall(r"^```sql\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        fires, silent = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        with tempfile.TemporaryDirectory() as folder:
            tests = pathlib.Path(folder) / "unanswered/tests"
            tests.mkdir(parents=True)
            (tests.parent / "rule.sql").write_text(rule)
            (tests / "fires.yaml").write_text(fires)
            (tests / "silent.yaml").write_text(silent)
            tested = aegis("rules", "test", folder)
            self.assertEqual(tested.returncode, 0, tested.stdout + tested.stderr)
            self.assertIn("checks: 2 passed, 0 failed", tested.stdout)
            report = json.loads(aegis("rules", "lint", "--json", folder).stdout)["files"][0]["report"]
            self.assertEqual((report["shape"], report["split_by"]), ("deferred", ["agent_id"]))


class WhichRules(unittest.TestCase):
    def test_a_rule_is_tested_by_its_folder_and_its_file(self):
        folder = REPOSITORY / "rules/campaign"
        for path, cwd in [(folder, None), (folder / "rule.sql", None), (".", folder), ("rule.sql", folder)]:
            with self.subTest(str(path)):
                tested = aegis("rules", "test", str(path), "--json", cwd=cwd)
                self.assertEqual(tested.returncode, 0, tested.stdout + tested.stderr)
                report = json.loads(tested.stdout)
                self.assertEqual(([rule["rule"] for rule in report["rules"]], report["failed"]), (["campaign"], 0))

    def test_where_no_rule_is_that_is_bad_input_and_it_says_where_it_looked(self):
        with tempfile.TemporaryDirectory() as folder:
            for path, said in [(folder, f"no rule is there: neither {folder}/rule.sql nor {folder}/*/rule.sql"), (f"{folder}/nowhere", "the folder cannot be read")]:
                with self.subTest(path):
                    tested = aegis("rules", "test", path)
                    self.assertEqual((tested.returncode, tested.stdout), (2, ""))
                    self.assertIn(said, tested.stderr)


class Tables(unittest.TestCase):
    def test_the_columns_are_those_of_the_table(self):
        listed = [name for row in rows("columns") for name in names(row[0])]
        plan = lint("SELECT * FROM events")["report"]["plan"]
        self.assertEqual(sorted(listed), sorted(re.search(r"events\[(.*?)\]", plan)[1].split(", ")))

    def test_each_refusal_says_what_the_text_says(self):
        self.assertTrue(lint("SELECT agent_id, event_id FROM events")["ok"], "the header itself is in order")
        cells = rows("refused")
        self.assertGreaterEqual(len(cells), 10)
        for query, said in cells:
            with self.subTest(query):
                code, words = re.match(r"`(RULE_\w+)`: (.*)", said).groups()
                answer = lint(names(query)[0])
                self.assertFalse(answer["ok"], query)
                self.assertIn(f"{code}: ", answer["error"])
                self.assertIn(words, answer["error"])

    def test_the_rules_that_patterns_name_are_there(self):
        patterns = TEXT[TEXT.index("## Patterns"):TEXT.index("## Key and evidence")]
        named = re.findall(r"^\| .* \| ([a-z-]+) \|$", patterns, re.MULTILINE)[1:]
        self.assertGreaterEqual(len(named), 8)
        for pattern in named:
            self.assertTrue((REPOSITORY / "rules" / pattern / "rule.sql").exists(), pattern)


class Kinds(WithRules):
    """The table of who fills what, against what the program writes."""

    def test_each_kind_has_the_columns_that_the_text_says(self):
        self.do_everything()
        events = [event for event in self.tenant.list("/v1/audit/events")]
        seen = {}
        for event in events:
            row = next((row for row in rows("kinds") if event["kind"] in names(row[0]) and event["source"] in row[1].split(", ")), None)
            self.assertIsNotNone(row, f"the text has no {event['kind']} by {event['source']}")
            optional = set(re.findall(r"\(`(\w+)`\)", row[2]))
            always = set(names(row[2])) - optional
            filled = {name for name, value in event.items() if value not in (None, [])} - BASE
            if not event["kind"].startswith("external_event"):
                self.assertLessEqual(OF_A_LANE, filled, event)
                filled -= OF_A_LANE
            self.assertEqual(always - filled, set(), f"missing in {event}")
            self.assertEqual(filled - always - optional, set(), f"not in the text: {event}")
            seen.setdefault(row[0] + row[1], set()).update(filled)
        for row in rows("kinds"):
            self.assertEqual(set(names(row[2])) - seen.get(row[0] + row[1], set()), set(), f"{row[0]} by {row[1]} is said to have what no event has")

    def do_everything(self):
        named = {"user": {"id": "uma"}, "trace": {"run_id": "r", "trace_id": "t"}, "nonce": "n"}
        sent = self.agent.authorize(action="export_customers", parameters={"to": "a@example.org"}, **named)
        self.report(sent["decision_id"])
        self.report(sent["decision_id"], executed_hash="0" * 64)
        elsewhere = self.tenant.register_agent()
        elsewhere.authorize(agent={"id": elsewhere.id, "environment": "staging"})
        for reply, code in ((self.agent.send(self.agent.request(**named)), "replay_nonce_reused"),
                            (self.agent.send(self.agent.request(timestamp=now(-3600))), "replay_timestamp_expired"),
                            (self.agent.send(self.agent.request(canon_version="aegis-jcs-2")), "canonicalization_skew")):
            self.assertEqual(reply.code, code)
        approval = self.ask(user={"id": "uma"}, trace={"run_id": "r", "trace_id": "t"}, nonce="m")
        self.assertEqual(self.consume(approval).code, "approval_pending")
        self.assertEqual(self.consume(approval, claimed="0" * 64).code, "action_hash_mismatch")
        self.report(approval["decision_id"])
        self.decide(approval).expect(200)
        self.consume(approval).expect(200)
        self.report(approval["decision_id"])
        self.assertEqual(self.consume(approval).code, "approval_consumed")
        self.assertEqual(self.decide(self.ask(user={"id": "rita"})).code, "self_approval")
        self.assertEqual(self.decide(self.ask(), by="registrar-person").code, "self_approval")
        self.tenant.put("/v1/policies", {"policies": ""}).expect(200)
        self.freeze(self.agent)
        self.tenant.post("/v1/mcp/servers", {"key": "files", "name": "Files", "tools": []}).expect(201)
        self.tenant.post("/v1/mcp/servers/files/quarantine", {"reason": "test"}).expect(200)
        self.tenant.post("/v1/mcp/servers/files/manifest", {"tools": [{"name": "wipe"}]}).expect(200)
        prober = self.tenant.register_agent()
        for _ in range(5):
            self.deny(prober)
        self.tenant.set_webhook_secret(SECRET)
        self.deliver("ping", {"zen": "x"})
        self.deliver("issues", {"action": "opened", "issue": {"number": 1}, "repository": {"full_name": "acme/site", "private": False}, "sender": {"login": "s"}})
        agent = self.tenant.register_agent()
        agent.authorize(trust=UNTRUSTED, resource=None)
        # One producer stops cleanly, and once it does not.
        self.aegis.restart()
        self.allow(agent)
        self.aegis.kill9()
        self.aegis.start()
        self.allow(agent)
        kinds = {"lane_open", "lane_close", "lane_gap", "tool_outcome", "containment_applied", "external_event:github_webhook"}
        wait_until("all of it is in the history", lambda: kinds <= {event["kind"] for event in self.tenant.list("/v1/audit/events")})
        self.event("containment_applied", status="cap_reached")
