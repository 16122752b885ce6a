"""`aegis rules backtest` and `diff`: what a rule would have told on the history of a running instance is what the running engine told."""

import collections
import json
import pathlib
import tempfile

from story import Story
from waiting import wait_until

RULES = pathlib.Path(__file__).resolve().parents[2] / "rules"
DENIES = 5


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
        self.assertEqual({rule["name"]: rule["alerts"] for rule in report["rules"] if rule["alerts"]}, told_by_rule(self.tenant), report)
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

    def test_what_cannot_be_run_is_refused(self):
        self.agent.authorize()
        broken = self.version("broken", "decision = 'deny'", "decison = 'deny'")
        self.backtest(broken, expect=1)
        self.backtest(RULES, "--from", "yesterday", expect=2)
        self.backtest(self.folder / "nothing", expect=2)
        self.aegis.cli("rules", "backtest", str(RULES), "--data", str(self.folder / "nowhere"), expect=2)
