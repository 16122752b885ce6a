"""`aegis rules backtest`, `diff` and `explain`: what a rule would have told on the history of a running instance is what the running engine told,
and why."""

import collections
import contextlib
import json
import pathlib
import sqlite3
import tempfile
import unittest
import uuid

from harness import NATS
from story import Story
from waiting import wait_until

RULES = pathlib.Path(__file__).resolve().parents[2] / "rules"
DENIES = 5
ON_STORMS = """/* rule
id: T-1
name: on-storms
version: 1
severity: low
window: 10m
key: [agent_id]
mode: active
owner: test
description: a rule on a shipped rule
false_positives: none
changelog:
  - {version: 1, date: 2026-11-27, note: first version}
*/
SELECT agent_id, event_id, rule_name FROM alerts WHERE rule_name = 'deny-storm'
"""


def told_by_rule(tenant):
    return dict(collections.Counter(alert["rule_name"] for alert in tenant.list("/v1/alerts")))


class Backtest(Story):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def probe(self):
        """An agent that is denied often enough; the alert that the running engine raises."""
        for _ in range(DENIES):
            self.assertEqual(self.agent.authorize(trust="untrusted_external")["decision"], "deny")
        wait_until("deny-storm is raised", lambda: [a for a in self.tenant.list("/v1/alerts") if a["rule_name"] == "deny-storm"])
        # The history reads the log by itself, and may be behind detection.
        self.denied()
        return {alert["alert_id"] for alert in self.tenant.list("/v1/alerts")}

    def backtest(self, *arguments, expect=0):
        return self.aegis.cli("rules", "backtest", *map(str, arguments), "--data", str(self.aegis.data), "--tenant", self.tenant.name, expect=expect)

    def version(self, name, old, new):
        """A changed copy of the shipped deny-storm."""
        text = (RULES / "deny-storm/rule.sql").read_text()
        self.assertIn(old, text)
        path = self.folder / name / "rule.sql"
        path.parent.mkdir()
        path.write_text(text.replace(old, new))
        return path

    def test_history_tells_what_the_running_engine_told(self):
        told = self.probe()
        report = json.loads(self.backtest(RULES, "--json"))
        by_name = {rule["name"]: rule for rule in report["rules"]}
        reported = {rule["name"]: rule["alerts"] for rule in report["rules"] if rule["alerts"]}
        wait_until("the running engine has told all of it", lambda: sum(told_by_rule(self.tenant).values()) >= sum(reported.values()))
        self.assertEqual(reported, told_by_rule(self.tenant), report)
        storm = by_name["deny-storm"]
        self.assertEqual((storm["alerts"], storm["retracted"], storm["over_quota"], storm["quarantined"]), (1, 0, 0, None))
        self.assertIn(storm["samples"][0]["alert_id"], told)
        self.assertEqual(storm["samples"][0]["evidence"], DENIES)
        self.assertEqual(storm["top"], [[json.dumps(storm["samples"][0]["key"], separators=(",", ":")), 1]])
        for_people = self.backtest(RULES / "deny-storm")
        self.assertIn("AEG-3002 deny-storm: 1 alerts, 0 retracted", for_people)
        self.assertIn(storm["samples"][0]["event_ids"][0], for_people)
        after = json.loads(self.backtest(RULES / "deny-storm/rule.sql", "--from", "2999-01-01T00:00:00Z", "--json"))
        self.assertEqual(after["rules"][0]["alerts"], 0)

    def test_a_new_version_is_compared_with_the_one_that_runs(self):
        self.probe()
        deaf = self.version("deaf", "denies >= 5", "denies >= 50")
        arguments = ["--data", str(self.aegis.data), "--tenant", self.tenant.name]
        said = self.aegis.cli("rules", "diff", str(RULES / "deny-storm"), str(deaf), *arguments)
        self.assertTrue(said.splitlines()[0].startswith("- "), said)
        self.assertTrue(said.rstrip().endswith("alerts: 1 before, 0 after: 0 added, 1 dropped"), said)
        back = json.loads(self.aegis.cli("rules", "diff", str(deaf), str(RULES / "deny-storm"), *arguments, "--json"))
        self.assertEqual((len(back["added"]), back["dropped"]), (1, []))

    @unittest.skipIf(NATS, "over a server the history has copies of its own")
    def test_events_whose_text_is_gone_are_counted(self):
        self.probe()
        denied = self.denied()
        whole = json.loads(self.backtest(RULES / "deny-storm", "--json"))
        self.assertEqual((whole["gone"], whole["rules"][0]["alerts"]), (0, 1))
        self.assertNotIn("gone", self.backtest(RULES / "deny-storm"))
        self.aegis.stop()
        self.addCleanup(self.aegis.start)
        lost = [uuid.UUID(event["event_id"]).bytes for event in denied[:2]]
        with contextlib.closing(sqlite3.connect(self.aegis.data / "edge" / "ledger.db")) as connection, connection:
            deleted = connection.executemany("DELETE FROM receipts WHERE event_id = ?", [(event_id,) for event_id in lost]).rowcount
        self.assertEqual(deleted, len(lost))
        left = json.loads(self.backtest(RULES / "deny-storm", "--json"))
        self.assertEqual((left["gone"], left["rules"][0]["alerts"]), (2, 0))
        self.assertIn("gone: 2 events, whose text is not there any more: no rule saw them", self.backtest(RULES / "deny-storm"))
        said = json.loads(self.explain(denied[-1]["event_id"], "deny-storm", "--json", expect=1))
        self.assertEqual((said["gone"], said["in_window"]), (2, DENIES - 2))
        arguments = ["--data", str(self.aegis.data), "--tenant", self.tenant.name]
        compared = json.loads(self.aegis.cli("rules", "diff", RULES / "deny-storm", RULES / "deny-storm", *arguments, "--json"))
        self.assertEqual((compared["gone"], compared["added"], compared["dropped"]), (2, [], []))

    def explain(self, event, rule, *options, expect):
        arguments = [event, RULES / rule, "--data", self.aegis.data, *options]
        return self.aegis.cli("rules", "explain", *arguments, expect=expect)

    def denied(self):
        """The agent's denies, oldest first, once all of them are in the history."""
        def all_of_them():
            denied = [event for event in self.events("authorize_decision", self.agent) if event["decision"] == "deny"]
            return sorted(denied, key=lambda event: event["seq"]) if len(denied) == DENIES else None

        return wait_until("the denies are in the history", all_of_them)

    def test_each_deny_of_a_storm_is_explained(self):
        told = self.probe()
        denied = self.denied()
        fifth = denied[-1]
        said = json.loads(self.explain(fifth["event_id"], "deny-storm", "--json", expect=0))
        self.assertEqual((said["exists"], said["fired"], said["passes"], said["late"], said["verified"]), (True, True, True, False, True))
        self.assertEqual((said["tenant_id"], said["rule_id"], said["mode"]), (self.tenant.name, "AEG-3002", "active"))
        self.assertEqual((said["split_by"], said["in_window"]), ({"agent_id": self.agent.id}, DENIES))
        [row] = said["rows"]
        self.assertEqual((row["key"], row["fields"]["denies"], row["evidence"], row["is_evidence"]), ({"agent_id": self.agent.id}, DENIES, DENIES, True))
        self.assertIn(row["alert"]["alert_id"], told)
        self.assertTrue(row["alert"]["is_raised_by_it"])
        for_people = self.explain(fifth["event_id"], "deny-storm/rule.sql", "--tenant", self.tenant.name, expect=0)
        self.assertIn(f"event     {fifth['event_id']}: authorize_decision of tenant {self.tenant.name} at {fifth['ts']}, verified", for_people)
        self.assertIn(f"alert     {row['alert']['alert_id']} is raised by it", for_people)
        self.assertTrue(for_people.endswith("\nfired\n"), for_people)

        first = json.loads(self.explain(denied[0]["event_id"], "deny-storm", "--json", expect=1))
        self.assertEqual((first["fired"], first["passes"], first["in_window"], first["rows"]), (False, True, 1, []))
        self.assertEqual((first["later"]["instant"], first["later"]["alert"]["alert_id"]), (fifth["ts"], row["alert"]["alert_id"]))
        self.assertIn(f"not yet: the match that it is evidence of is complete at {fifth['ts']}", self.explain(denied[0]["event_id"], "deny-storm", expect=1))

    def test_a_rule_on_rules_is_explained_by_the_alerts_that_it_reads(self):
        told = self.probe()
        denied = self.denied()
        path = self.folder / "on-storms/rule.sql"
        path.parent.mkdir()
        path.write_text(ON_STORMS)
        fifth = json.loads(self.explain(denied[-1]["event_id"], path, "--json", expect=0))
        [raised] = fifth["raised"]
        self.assertEqual((raised["rule_name"], raised["passes"], fifth["in_window"]), ("deny-storm", True, 1))
        self.assertIn(raised["alert_id"], told, "the alert that the running engine raised")
        self.assertEqual([row["fields"]["rule_name"] for row in fifth["rows"]], ["deny-storm"])
        self.assertIn(f"raised    {raised['alert_id']} of AEG-3002 deny-storm: passed\n", self.explain(denied[-1]["event_id"], path, expect=0))
        first = self.explain(denied[0]["event_id"], path, expect=1)
        self.assertIn("raised    no alert that a rule reads", first)
        self.assertTrue(first.endswith("\nnot fired\n"), first)

    def test_an_allow_is_no_deny(self):
        allowed = self.agent.authorize()
        self.assertEqual(allowed["decision"], "allow", allowed)
        event = self.event("authorize_decision", event_id=allowed["decision_id"])
        said = json.loads(self.explain(event["event_id"], "deny-storm", "--json", expect=1))
        failed = [condition for condition in said["conditions"] if condition["holds"] is not True]
        self.assertEqual(failed, [{"condition": "decision = 'deny'", "holds": False, "values": {"decision": "allow"}}])
        for_people = self.explain(event["event_id"], "deny-storm", expect=1)
        self.assertIn("""WHERE     not passed: decision = 'deny' is false: decision is "allow"\n""", for_people)
        self.assertTrue(for_people.endswith("\nnot fired\n"), for_people)

    def test_what_cannot_be_explained_is_bad_input(self):
        event = self.agent.authorize()["decision_id"]
        self.event("authorize_decision", event_id=event)
        stranger = "01900000-0000-7000-8000-000000000000"
        self.assertIn(f"event     {stranger}: not in the history of any tenant", self.explain(stranger, "deny-storm", expect=2))
        self.assertIn("not in the history of nobody", self.explain(event, "deny-storm", "--tenant", "nobody", expect=2))
        self.assertEqual(json.loads(self.explain(stranger, "deny-storm", "--json", expect=2)), {"event_id": stranger, "exists": False, "fired": False})
        self.assertIn("name one of them", self.explain(event, "", expect=2))
        self.explain("an-event", "deny-storm", expect=2)
        self.explain(event, "deny-storm", "--from", "2999-01-01T00:00:00Z", expect=2)
        broken = self.version("broken-too", "decision = 'deny'", "decision = 'denied'")
        self.assertIn("RULE_UNREACHABLE", self.explain(event, broken, expect=2))

    def test_what_cannot_be_run_is_refused(self):
        self.agent.authorize()
        broken = self.version("broken", "decision = 'deny'", "decison = 'deny'")
        self.backtest(broken, expect=1)
        self.backtest(RULES, "--from", "yesterday", expect=2)
        self.backtest(self.folder / "nothing", expect=2)
        self.aegis.cli("rules", "backtest", str(RULES), "--data", str(self.folder / "nowhere"), expect=2)
