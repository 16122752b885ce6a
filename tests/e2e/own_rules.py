"""Rules that change while the program runs, tried before they stand, one step at a time, with a receipt: those that a tenant has of its own, for that tenant
alone, and what an operator makes of those that every tenant has."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from harness import BINARY, CLEAN_ENVIRONMENT, Aegis
from waiting import wait_until
from with_rules import RULES

FIRES = """name: a deny fires
events: [{at: 0s, id: denied, agent_id: a, decision: deny}]
expect: [{key: {agent_id: a}, evidence: [denied]}]
"""
SILENT = """name: an allow is silent
events: [{at: 0s, agent_id: a, decision: allow}]
expect: []
"""
TESTS = [{"name": "fires.yaml", "text": FIRES}, {"name": "silent.yaml", "text": SILENT}]
# Three denies of an agent within a day: longer than detection keeps anything for the rules that every tenant has.
OF_A_DAY = "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' WINDOW w AS (PARTITION BY agent_id " \
    "ORDER BY ts RANGE BETWEEN INTERVAL '24' HOUR PRECEDING AND CURRENT ROW) QUALIFY n >= 3"
THREE_DENIES = "events: [{at: 0s, agent_id: a, decision: deny}, {at: 1s, agent_id: a, decision: deny}, {at: AT, agent_id: a, decision: deny}]\n"
TESTS_OF_A_DAY = ("name: three fire\n" + THREE_DENIES.replace("AT", "24h") + "expect: [{key: {agent_id: a}}]\n",
                  "name: too late\n" + THREE_DENIES.replace("AT", "86400001ms") + "expect: []\n")
DENIED = "SELECT agent_id, event_id FROM events WHERE kind = 'authorize_decision' AND decision = 'deny'"
# Run for each instant: a rule that others would wait for.
STEPPED = "SELECT agent_id, array_agg(event_id) AS event_ids FROM events WHERE decision = 'deny' GROUP BY agent_id"
# Run over the whole window whenever a key is touched.
SLIDING = "SELECT agent_id, event_id FROM events WHERE decision = 'deny' QUALIFY sum(risk_score) OVER (PARTITION BY agent_id ORDER BY ts " \
    "RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) > 50"


def rule(version=1, mode="log_only", query=DENIED, id="OWN-1", name="own-denied", window="1m"):
    return f"""/* rule
id: {id}
name: {name}
version: {version}
severity: low
window: {window}
key: [agent_id]
mode: {mode}
owner: test
description: a test
false_positives: none
changelog:
  - {{version: {version}, date: 2026-11-26, note: version {version}}}
*/
{query}
"""


class OwnRules(unittest.TestCase):
    def setUp(self):
        self.aegis = Aegis(environment={"AEGIS_DETECT_OWN_RULES": "true", "AEGIS_LAKE_FLUSH_S": "1"}).start()
        self.addCleanup(self.aegis.close)
        self.tenant = self.aegis.tenant().register_tools()
        self.agent = self.tenant.register_agent().until_tools_are_known()

    def activate(self, text, tests=TESTS, tenant=None):
        return (tenant or self.tenant).post("/v1/rules", {"text": text, "tests": tests})

    def command(self, *arguments, **environment):
        return subprocess.run([BINARY, "rules", *arguments], capture_output=True, text=True, timeout=300, env=CLEAN_ENVIRONMENT | environment)

    def deny(self, agent=None):
        answer = (agent or self.agent).authorize(trust="untrusted_external")
        self.assertEqual(answer["decision"], "deny")
        return answer["decision_id"]

    def until_in_the_history(self, *decisions):
        """Then the log has them, and what is published now comes after them."""
        wait_until("they are in the history", lambda: set(decisions) <= {event["event_id"] for event in self.tenant.list("/v1/audit/events")})

    def alerts(self, tenant, name="own-denied"):
        return [alert for alert in tenant.list("/v1/alerts") if alert["rule_name"] == name]

    def test_no_rule_stands_that_does_not_pass(self):
        red = [TESTS[0], {"name": "silent.yaml", "text": SILENT.replace("allow}", "deny}")}]
        for text, tests, status, code in (
            (rule(query="SELECT agent_id, event_id FROM agents"), TESTS, 422, "invalid_rule"),
            (rule(name="deny-storm"), TESTS, 422, "invalid_rule"),
            (rule(query=STEPPED), TESTS, 422, "rule_too_costly"),
            (rule(query=SLIDING), TESTS, 422, "rule_too_costly"),
            (rule(window="2h"), TESTS, 422, "rule_too_costly"),
            (rule(), [], 422, "rule_tests_failed"),
            (rule(), red, 422, "rule_tests_failed"),
            (rule(mode="active"), TESTS, 409, "step_too_long"),
        ):
            reply = self.activate(text, tests)
            self.assertEqual((reply.status, reply.code), (status, code), reply.body)
        self.assertEqual(self.tenant.list("/v1/rules"), [])
        self.activate(rule()).expect(201)
        self.assertEqual(self.activate(rule(mode="active")).code, "version_not_higher")
        self.activate(rule(2, mode="active")).expect(201)
        self.activate(rule(3, mode="disabled"), []).expect(201)
        self.assertEqual([entry["version"] for entry in self.tenant.list("/v1/rules?rule_id=OWN-1")], [3, 2, 1])
        self.assertEqual(self.tenant.list("/v1/rules?rule_id=OWN-2"), [])

    def test_a_version_says_what_it_would_have_told_and_has_its_receipt(self):
        self.until_in_the_history(self.deny(), self.deny())
        stands = self.activate(rule()).expect(201)
        self.assertEqual((stands["backtest"]["alerts"], stands["backtest"]["alerts_per_day"]), (2, 2))
        receipt = wait_until("its receipt", lambda: [r for r in self.tenant.list("/v1/receipts") if (r.get("detail") or {}).get("change") == "rule_changed"])[0]
        self.assertEqual((receipt["phase"], receipt["detail"]["rule_hash"], receipt["detail"]["alerts"]), ("config", stands["hash"], 2))
        self.assertEqual(receipt["detail"]["by"]["role"], "admin")
        (version,) = self.tenant.list("/v1/rules")
        self.assertEqual((version["hash"], version["backtest"]), (stands["hash"], stands["backtest"]))

    def until_own_rules_run(self):
        """Detection has taken what the log was told of."""
        wait_until("a tenant's own rule runs", lambda: 'rule="of_tenants"' in self.aegis.get("/metrics").text)

    def test_it_runs_for_its_tenant_alone(self):
        other = self.aegis.tenant().register_tools()
        stranger = other.register_agent()
        # A rule that every tenant has is turned off for one; its record comes before the next one's.
        self.activate(rule(1000, mode="disabled", id="AEG-3002", name="deny-storm"), []).expect(201)
        self.until_in_the_history(self.deny())
        self.activate(rule()).expect(201)
        self.until_own_rules_run()
        denied = {self.deny() for _ in range(6)}
        for _ in range(6):
            self.deny(stranger)
        wait_until("the other's storm", lambda: self.alerts(other, "deny-storm"))
        alerts = wait_until("all of them are seen", lambda: [found for found in [self.alerts(self.tenant)] if len(found) == 6])[0]
        self.assertEqual({alert["event_ids"][0] for alert in alerts}, denied, "what lies before it raises nothing")
        self.assertEqual({alert["mode"] for alert in alerts}, {"log_only"})
        self.assertEqual(self.alerts(other), [])
        self.assertEqual(self.alerts(self.tenant, "deny-storm"), [])
        self.aegis.restart()
        more = self.deny()
        wait_until("it stands after a restart", lambda: any(alert["event_ids"] == [more] for alert in self.alerts(self.tenant)))
        self.activate(rule(2, mode="active"), TESTS).expect(201)
        wait_until("its next version acts", lambda: self.deny() and [alert for alert in self.alerts(self.tenant) if alert["mode"] == "active"])

    def test_a_rule_that_comes_knows_its_window(self):
        before = [self.deny(), self.deny()]
        self.until_in_the_history(*before)
        three = "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' WINDOW w AS (PARTITION BY agent_id " \
            "ORDER BY ts RANGE BETWEEN INTERVAL '5' MINUTE PRECEDING AND CURRENT ROW) QUALIFY n >= 3"
        events = "events: [{at: 0s, agent_id: a, decision: deny}, {at: 1s, agent_id: a, decision: deny}, {at: AT, agent_id: a, decision: deny}]\n"
        tests = [{"name": "fires.yaml", "text": "name: three fire\n" + events.replace("AT", "300s") + "expect: [{key: {agent_id: a}}]\n"},
                 {"name": "silent.yaml", "text": "name: too late\n" + events.replace("AT", "300001ms") + "expect: []\n"}]
        self.activate(rule(query=three, window="5m"), tests).expect(201)
        self.until_own_rules_run()
        third = self.deny()
        (alert,) = wait_until("its alert", lambda: self.alerts(self.tenant))
        self.assertEqual(alert["event_ids"], [*before, third])

    def activate_of_a_day(self, text):
        own = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "own-denied"
        (own / "tests").mkdir(parents=True)
        (own / "rule.sql").write_text(text)
        for number, test in enumerate(TESTS_OF_A_DAY):
            (own / f"tests/{number}.yaml").write_text(test)
        done = self.command("activate", str(own), "--tenant", self.tenant.name, "--data", str(self.aegis.data))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_rule_of_a_day_that_contains_is_filled_once_its_lanes_are_followed(self):
        before = [self.deny(), self.deny()]
        self.until_in_the_history(*before)
        self.activate_of_a_day(rule(query=OF_A_DAY, window="1d").replace("owner: test", "respond: [freeze_agent]\nowner: test"))
        self.until_own_rules_run()
        wait_until("it knows its window", lambda: 'aegis_rule_warming{rule="of_tenants"} 0' in self.aegis.get("/metrics").text)
        third = self.deny()
        (alert,) = wait_until("its alert", lambda: self.alerts(self.tenant))
        self.assertEqual(alert["event_ids"], [*before, third])
        self.assertNotIn("cannot be filled", self.aegis.log())

    def test_a_rule_of_a_day_is_filled_from_the_lake_and_does_not_wait_for_a_day(self):
        other = self.tenant.register_agent()
        before, of_other = [self.deny(), self.deny()], [self.deny(other), self.deny(other)]
        self.until_in_the_history(*before, *of_other)
        self.activate_of_a_day(rule(query=OF_A_DAY, window="1d"))
        # Detection keeps the two hours of the longest rule that every tenant has.
        self.until_own_rules_run()
        wait_until("it knows its window", lambda: 'aegis_rule_warming{rule="of_tenants"} 0' in self.aegis.get("/metrics").text)
        third = self.deny()
        (alert,) = wait_until("its alert", lambda: self.alerts(self.tenant))
        self.assertEqual(alert["event_ids"], [*before, third])
        self.aegis.restart()
        third_of_other = self.deny(other)
        wait_until("it knows it after a restart", lambda: [*of_other, third_of_other] in [alert["event_ids"] for alert in self.alerts(self.tenant)])

    def test_the_command_line_does_it_through_the_api_and_on_the_data_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            own = pathlib.Path(folder) / "own-denied"
            (own / "tests").mkdir(parents=True)
            (own / "rule.sql").write_text(rule())
            (own / "tests/fires.yaml").write_text(FIRES)
            api = ("--url", f"http://127.0.0.1:{self.aegis.port}")
            refused = self.command("activate", str(own), *api, AEGIS_ADMIN_KEY=self.tenant.admin)
            self.assertEqual(refused.returncode, 1, refused.stdout + refused.stderr)
            self.assertIn("must stay silent", refused.stderr)
            (own / "tests/silent.yaml").write_text(SILENT)
            done = self.command("activate", str(own), "--json", *api, AEGIS_ADMIN_KEY=self.tenant.admin)
            self.assertEqual((done.returncode, json.loads(done.stdout)["version"]), (0, 1), done.stderr)
            self.assertEqual(self.command("activate", str(own), *api, AEGIS_ADMIN_KEY=self.tenant.key("analyst")).returncode, 2)
            # An operator answers for the machine, and may use what a tenant's admin may not.
            (own / "rule.sql").write_text(rule(2, mode="active", window="2h"))
            place = ("--tenant", self.tenant.name, "--data", str(self.aegis.data))
            done = self.command("activate", str(own), *place)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            again = self.command("activate", str(own), *place)
            self.assertEqual(again.returncode, 1)
            self.assertIn("version 2 is not higher than 2", again.stderr)
        listed = json.loads(self.command("history", "OWN-1", "--json", *place).stdout)
        self.assertEqual([(v["version"], v["mode"], v["changed_by"] == "operator") for v in listed], [(2, "active", True), (1, "log_only", False)])
        through = self.command("history", "--json", *api, AEGIS_ADMIN_KEY=self.tenant.admin)
        self.assertEqual(json.loads(through.stdout), listed)
        by_operator = {"type": "operator"}
        wait_until("the running program seals its receipt", lambda: [r for r in self.tenant.list("/v1/receipts") if (r.get("detail") or {}).get("by") == by_operator])


class EveryTenant(unittest.TestCase):
    """An operator, on the data folder of the running program."""

    STORM = "AEG-3002"

    def setUp(self):
        self.aegis = Aegis(environment={"AEGIS_LAKE_FLUSH_S": "1"}).start()
        self.addCleanup(self.aegis.close)
        self.tenants = [self.aegis.tenant().register_tools() for _ in range(2)]

    def command(self, *arguments, expect=0):
        arguments = ["rules", *arguments, "--data", str(self.aegis.data)]
        done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=300, env=CLEAN_ENVIRONMENT)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return done.stdout if expect == 0 else done.stderr

    def switch(self, mode, note="because", expect=0):
        return self.command("switch", self.STORM, "--mode", mode, "--note", note, expect=expect)

    def activate(self, text, expect=0, tests=(FIRES, SILENT)):
        with tempfile.TemporaryDirectory() as folder:
            own = pathlib.Path(folder) / "ops"
            (own / "tests").mkdir(parents=True)
            (own / "rule.sql").write_text(text)
            for number, test in enumerate(tests):
                (own / f"tests/{number}.yaml").write_text(test)
            return self.command("activate", str(own), "--every-tenant", expect=expect)

    def storm(self, tenant):
        agent = tenant.register_agent()
        for _ in range(6):
            self.assertEqual(agent.authorize(trust="untrusted_external")["decision"], "deny")
        return agent.id

    def alerts(self, tenant, name):
        return [alert for alert in tenant.list("/v1/alerts") if alert["rule_name"] == name]

    def until_it_storms(self, mode):
        for tenant in self.tenants:
            agents = set()

            def is_told():
                agents.add(self.storm(tenant))
                return any(alert["mode"] == mode and alert["key"]["agent_id"] in agents for alert in self.alerts(tenant, "deny-storm"))

            wait_until(f"deny-storm in {tenant.name} is {mode}", is_told)

    def test_a_rule_of_the_program_is_switched_while_it_runs_and_over_a_restart(self):
        self.until_it_storms("active")
        self.assertIn("step at a time", self.switch("active", expect=1) + self.activate(rule(mode="active", id="OPS-1", name="ops-denied"), expect=1))
        for tenant in self.tenants:
            wait_until("it is in the history", lambda: len(tenant.list("/v1/audit/events?kind=authorize_decision")) >= 6)
        stands = json.loads(self.command("switch", self.STORM, "--mode", "log_only", "--note", 'too "loud"', "--json"))
        self.assertEqual((stands["mode"], stands["note"], stands["of_program"]), ("log_only", 'too "loud"', False))
        self.assertGreaterEqual(stands["backtest"]["alerts"], 2, "of both tenants")
        self.until_it_storms("log_only")
        self.assertIn("already", self.switch("log_only", expect=1))
        for tenant in self.tenants:
            receipt = wait_until("its receipt", lambda: [r for r in tenant.list("/v1/receipts") if (r.get("detail") or {}).get("every_tenant")])[0]
            detail = receipt["detail"]
            self.assertEqual((detail["rule_id"], detail["rule_hash"], detail["by"]), (self.STORM, stands["hash"], {"type": "operator"}))
            self.assertNotIn("alerts", detail, "what it told of other tenants")
            (version,) = tenant.list(f"/v1/rules/common?rule_id={self.STORM}")
            self.assertEqual((version["hash"], version["changed_by"], "backtest" in version), (stands["hash"], "operator", False))
            self.assertEqual(tenant.list("/v1/rules"), [])

        self.aegis.restart()
        self.assertRegex(self.aegis.log(), rf"an operator's version of this rule stands.*{self.STORM}")
        for tenant in self.tenants:
            agent = self.storm(tenant)
            mine = wait_until("it is seen", lambda: [a for a in self.alerts(tenant, "deny-storm") if a["key"]["agent_id"] == agent])
            self.assertEqual([alert["mode"] for alert in mine], ["log_only"])

        self.switch("disabled")
        # A rule that every tenant has from now on; its records come after those of the other.
        self.activate(rule(id="OPS-1", name="ops-denied"))
        for tenant in self.tenants:
            wait_until("the operator's rule runs", lambda: self.storm(tenant) and self.alerts(tenant, "ops-denied"))
            agent = self.storm(tenant)
            wait_until("all of it is seen", lambda: len([a for a in self.alerts(tenant, "ops-denied") if a["key"]["agent_id"] == agent]) == 6)
            self.assertEqual([a for a in self.alerts(tenant, "deny-storm") if a["key"]["agent_id"] == agent], [])
        self.assertIn("step at a time", self.switch("program", expect=1))
        self.switch("log_only")
        self.switch("program", note="quiet enough")
        self.until_it_storms("active")
        listed = json.loads(self.command("history", self.STORM, "--every-tenant", "--json"))
        self.assertEqual([(v["mode"], v["of_program"]) for v in listed], [("active", True), ("log_only", False), ("disabled", False), ("log_only", False)])
        self.assertEqual(listed[0]["note"], "quiet enough")

    def test_what_rules_a_start_brings_is_recorded_and_each_tenant_has_a_receipt_of_it_once(self):
        def sets():
            return [{key: [rule["rule_id"] for rule in made[key]] for key in ("added", "removed", "changed")} for made in json.loads(self.command("history", "--sets", "--json"))]

        def told(tenant):
            """Oldest first."""
            receipts = [receipt["detail"] for receipt in reversed(tenant.list("/v1/receipts")) if (receipt.get("detail") or {}).get("rule_set")]
            return [(detail["change"], [rule["rule_id"] for rule in detail["removed"]], detail["by"]["type"]) for detail in receipts]

        recorded, changed = ("rule_set_recorded", [], "program"), ("rule_set_changed", ["AEG-3006"], "program")
        for tenant in self.tenants:
            wait_until("it has a receipt of what it starts with", lambda: told(tenant) == [recorded])
        (shipped,) = sets()
        self.assertEqual(set(shipped["added"]), {re.search(r"^id: (\S+)", rule.read_text(), re.MULTILINE)[1] for rule in RULES.glob("*/rule.sql")})
        with tempfile.TemporaryDirectory() as folder:
            fewer = pathlib.Path(folder) / "rules"
            shutil.copytree(RULES, fewer, ignore=lambda _, names: [name for name in names if name == "clock-suspect"])
            self.aegis.environment["AEGIS_DETECT_RULES"] = str(fewer)
            for _ in range(2):
                self.aegis.restart()
                for tenant in self.tenants:
                    wait_until("it has a receipt of the change", lambda: told(tenant) == [recorded, changed])
            later = self.aegis.tenant()
            wait_until("one that is made later has one of what it starts with", lambda: told(later) == [recorded])
        self.assertEqual(sets(), [{"added": [], "removed": ["AEG-3006"], "changed": []}, shipped])
        self.assertEqual(len(json.loads(self.command("history", "AEG-3006", "--sets", "--json"))), 2)
        for tenant in self.tenants:
            self.assertEqual(tenant.list("/v1/rules/sets"), json.loads(self.command("history", "--sets", "--json")))

    def test_a_rule_of_a_day_is_filled_for_each_tenant_and_does_not_wait_for_a_day(self):
        def deny(agent):
            answer = agent.authorize(trust="untrusted_external")
            self.assertEqual(answer["decision"], "deny")
            return answer["decision_id"]

        agents = [tenant.register_agent() for tenant in self.tenants]
        before = [[deny(agent), deny(agent)] for agent in agents]
        for tenant, ids in zip(self.tenants, before):
            wait_until("they are in the history", lambda: set(ids) <= {event["event_id"] for event in tenant.list("/v1/audit/events")})
        self.activate(rule(query=OF_A_DAY, window="1d", id="OPS-1", name="ops-denied"), tests=TESTS_OF_A_DAY)
        wait_until("it waits for no tenant", lambda: 'aegis_rule_warming{rule="OPS-1"} 0' in self.aegis.get("/metrics").text)
        for tenant in self.tenants:
            self.assertNotIn("OPS-1", {rule["rule_id"] for rule in tenant.get("/v1/rules/waiting").expect(200)})
        for tenant, agent, ids in zip(self.tenants, agents, before):
            third = deny(agent)
            (alert,) = wait_until("its alert", lambda: self.alerts(tenant, "ops-denied"))
            self.assertEqual(alert["event_ids"], [*ids, third])

    def test_what_does_not_pass_does_not_stand(self):
        for text, said in (
            (rule(id="OPS-1", name="deny-storm"), "also that of another rule"),
            (rule(id=self.STORM, name="ops-denied", version=1000), "keeps its name"),
            (rule(id=self.STORM, name="deny-storm"), "is not higher than"),
            (rule(id="OPS-1", name="ops-denied", query="SELECT agent_id, event_id FROM agents"), "agents"),
        ):
            self.assertIn(said, self.activate(text, expect=1))
        self.assertIn("must stay silent", self.activate(rule(id="OPS-1", name="ops-denied"), expect=1, tests=[FIRES]))
        self.assertIn("no rule", self.command("switch", "OPS-1", "--mode", "disabled", "--note", "n", expect=1))
        self.assertIn("one line", self.switch("disabled", note="two\nlines", expect=1))
        self.assertEqual(json.loads(self.command("history", "--every-tenant", "--json")), [])


class NotAllowed(unittest.TestCase):
    def test_no_tenant_activates_rules_unless_the_operator_allows_it(self):
        aegis = Aegis().start()
        self.addCleanup(aegis.close)
        reply = aegis.tenant().post("/v1/rules", {"text": rule(), "tests": TESTS})
        self.assertEqual((reply.status, reply.code), (409, "own_rules_not_allowed"))


if __name__ == "__main__":
    unittest.main()
