"""The lake and `aegis sql`: every receipt is a row, once, beside the running program and behind a kill; of one's own tenant and no other; read-only."""

import json
import pathlib
import tempfile
import uuid

from backtest import ON_STORMS
from deliveries import external_event_id, webhook_headers
from harness import Aegis
from story import Story
from waiting import wait_until

RULES = pathlib.Path(__file__).resolve().parents[2] / "rules"
SECRET = "the webhook secret of the tenant in the lake"


class Lake(Story):
    @classmethod
    def setUpClass(cls):
        cls.aegis = Aegis(environment={"AEGIS_LAKE_FLUSH_S": "1"})
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()

    def sql(self, query, *options, tenant=None, expect=0, **arguments):
        """What the program prints."""
        tenant = tenant or self.tenant.name
        return self.aegis.cli("sql", query, "--data", self.aegis.data, "--tenant", tenant, *options, expect=expect, **arguments)

    def rows(self, query, *options, **arguments):
        return [json.loads(line) for line in self.sql(query, "--json", *options, **arguments).splitlines()]

    def number(self, query, **arguments):
        [row] = self.rows(query, **arguments)
        [value] = row.values()
        return value

    def receipts_in_the_lake(self):
        """Event ids with their receipts' hashes, as the lake has them."""
        query = "SELECT event_id, receipt_hash FROM events WHERE receipt_hash IS NOT NULL AND verified"
        return sorted((row["event_id"], row["receipt_hash"]) for row in self.rows(query, "--limit", 100000))

    def receipts(self):
        return sorted((line["event_id"], line["receipt_hash"]) for line in self.tenant.export())

    def assert_lake_is_the_export(self):
        """Nothing is missing in it, and nothing stands twice."""
        wait_until("the lake has what is exported", lambda: self.receipts_in_the_lake() == self.receipts(), longest_pause_s=1)

    def arrived(self, answers):
        """All of these decisions are in the history, from which receipts are exported."""
        ids = {answer["decision_id"] for answer in answers}
        wait_until("the decisions are in the history", lambda: ids <= {event["event_id"] for event in self.tenant.list("/v1/decisions")})

    def deliver(self):
        """A webhook that is accepted; the id of its event."""
        delivery, body = str(uuid.uuid4()), b'{"action": "opened"}'
        headers = webhook_headers("issues", delivery, body, SECRET)
        self.aegis.call("POST", f"/v1/webhooks/github/{self.tenant.name}", None, body, headers).expect(202)
        return external_event_id(self.tenant.name, delivery)

    def test_each_receipt_is_a_row_while_the_program_runs(self):
        answers = [self.agent.authorize(trust=trust, parameters={"id": str(n)}) for n, trust in enumerate(["trusted_internal_unsigned", "untrusted_external"] * 10)]
        self.arrived(answers)
        self.assert_lake_is_the_export()
        by_decision = {row["decision"]: row["n"] for row in self.rows(
            "SELECT decision, count(*) AS n FROM events WHERE kind = 'authorize_decision' GROUP BY decision ORDER BY decision")}
        self.assertEqual(by_decision, {"allow": 10, "deny": 10})
        # Each column is what the audit trail has.
        event = self.event("authorize_decision", event_id=answers[1]["decision_id"])
        [row] = self.rows(f"SELECT * FROM events WHERE event_id = '{event['event_id']}'")
        for name in ("tenant_id", "edge_id", "lane", "seq", "agent_id", "tool", "action", "resource", "decision", "reason", "matched_policies", "action_hash", "receipt_hash"):
            self.assertEqual(row[name], event.get(name), name)
        self.assertEqual((row["verified"], row["late"]), (True, False))
        self.assertIsNotNone(row["bus_ts"])
        # Counted once the position is noted, which is behind the rows.
        wait_until("the rows are counted", lambda: self.aegis.metric("aegis_lake_rows_total") > len(answers))

    def test_a_stop_writes_the_rest_and_the_folder_answers_without_the_program(self):
        aegis = Aegis(environment={"AEGIS_LAKE_FLUSH_S": "3600"})
        self.addCleanup(aegis.close)
        aegis.start()
        self.aegis, tenant = aegis, aegis.tenant().register_tools()
        self.tenant = tenant
        agent = tenant.register_agent()
        self.arrived([agent.authorize() for _ in range(5)])
        aegis.stop()
        self.assertEqual(self.receipts_in_the_lake(), self.receipts())
        # Only one tenant has rows: nobody need name it.
        printed = aegis.cli("sql", "SELECT count(*) AS calls FROM events WHERE kind = 'authorize_decision'", "--data", aegis.data)
        self.assertIn("| calls |", printed)
        self.assertIn("| 5     |", printed)

    def test_a_kill_loses_and_doubles_no_row(self):
        aegis = Aegis(environment={"AEGIS_LAKE_FLUSH_S": "1"})
        self.addCleanup(aegis.close)
        aegis.start()
        self.aegis = aegis
        self.tenant = aegis.tenant().register_tools()
        self.tenant.set_webhook_secret(SECRET)
        agent = self.tenant.register_agent()
        deliveries = []
        for _ in range(4):
            deliveries += [self.deliver() for _ in range(5)]
            self.arrived([agent.authorize() for _ in range(25)])
            aegis.kill9()
            aegis.start()
        # The first receipt of this start opens its lanes.
        self.arrived([agent.authorize()])
        self.assert_lake_is_the_export()
        observed = self.rows("SELECT event_id FROM events WHERE lane IS NULL")
        self.assertEqual(sorted(row["event_id"] for row in observed), sorted(deliveries))
        self.assertEqual(self.number("SELECT count(*) FROM events"), self.number("SELECT count(DISTINCT event_id) FROM events"))

    def test_a_tenant_sees_its_own_rows(self):
        other = self.aegis.tenant().register_tools()
        theirs = other.register_agent().authorize()["decision_id"]
        mine = self.agent.authorize()["decision_id"]
        for tenant, own, foreign in ((self.tenant.name, mine, theirs), (other.name, theirs, mine)):
            wait_until("the row is there", lambda: self.number(f"SELECT count(*) FROM events WHERE event_id = '{own}'", tenant=tenant) == 1, longest_pause_s=1)
            self.assertEqual(self.number(f"SELECT count(*) FROM events WHERE event_id = '{foreign}' OR tenant_id <> '{tenant}'", tenant=tenant), 0)
        self.assertEqual(self.number("SELECT count(*) FROM events", tenant="nobody"), 0)
        self.sql("SELECT 1", tenant="../" + other.name, expect=2)
        said = self.aegis.cli("sql", "SELECT 1", "--data", self.aegis.data, expect=2)
        self.assertIn("name one with --tenant", said)
        self.assertNotIn(other.name, said)

    def test_an_observation_is_a_row_that_proves_nothing(self):
        self.tenant.set_webhook_secret(SECRET)
        query = f"SELECT verified, lane, source FROM events WHERE event_id = '{self.deliver()}'"
        [row] = wait_until("the delivery is in the lake", lambda: self.rows(query), longest_pause_s=1)
        self.assertEqual(row, {"verified": False, "lane": None, "source": "github"})

    def over_both(self, *arguments, expect=0):
        """What a command of `aegis rules` says over the history, and over the lake once it has as many events."""
        arguments = [*map(str, arguments), "--data", str(self.aegis.data), "--tenant", self.tenant.name, "--json"]

        def both():
            over = [json.loads(self.aegis.cli("rules", *arguments, *more, expect=expect)) for more in ([], ["--lake"])]
            return over if over[0].get("events") == over[1].get("events") else None

        return wait_until("the lake has the events of the history", both, longest_pause_s=1)

    def test_rules_tell_over_the_lake_what_they_tell_over_the_history(self):
        self.tenant.set_webhook_secret(SECRET)
        self.deliver()
        for trust in ["trusted_internal_unsigned"] + ["untrusted_external"] * 6:
            answer = self.agent.authorize(trust=trust)
        self.arrived([answer])
        history, lake = self.over_both("backtest", RULES)
        for report in (history, lake):
            report["rules"] = [{key: value for key, value in rule.items() if key not in ("seconds", "micros_per_event")} for rule in report["rules"]]
        self.assertEqual(history, lake)
        [storm] = [rule for rule in lake["rules"] if rule["name"] == "deny-storm"]
        self.assertEqual((storm["alerts"], storm["samples"][0]["evidence"]), (1, 5))

        deaf = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "rule.sql"
        deaf.write_text((RULES / "deny-storm/rule.sql").read_text().replace("denies >= 5", "denies >= 50"))
        history, lake = self.over_both("diff", RULES / "deny-storm", deaf)
        self.assertEqual((lake["added"], lake["dropped"]), (history["added"], history["dropped"]))
        self.assertEqual(len(lake["dropped"]), 1)

        fifth = storm["samples"][0]["event_ids"][-1]
        history, lake = self.over_both("explain", fifth, RULES / "deny-storm")
        self.assertEqual(history, lake)
        self.assertTrue(lake["fired"], lake)
        on_storms = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "rule.sql"
        on_storms.write_text(ON_STORMS)
        history, lake = self.over_both("explain", fifth, on_storms)
        self.assertEqual(history, lake)
        self.assertEqual([(one["rule_name"], one["passes"]) for one in lake["raised"]], [("deny-storm", True)])
        stranger = str(uuid.uuid4())
        said = self.aegis.cli("rules", "explain", stranger, str(RULES / "deny-storm"), "--data", str(self.aegis.data), "--lake", expect=2)
        self.assertIn("not in the lake of any tenant", said)

    def test_where_there_is_no_lake_none_is_read(self):
        with tempfile.TemporaryDirectory() as empty:
            said = self.aegis.cli("rules", "backtest", str(RULES), "--data", empty, "--lake", expect=2)
        self.assertIn("there is no lake", said)

    def test_it_is_read_only(self):
        for statement in ("DELETE FROM events", "DROP TABLE events", "CREATE TABLE t AS SELECT 1", "SET datafusion.execution.batch_size = 1",
                          "COPY events TO '/tmp/aegis-e2e-lake.csv'", "EXPLAIN ANALYZE SELECT * FROM events", "SELECT 1; SELECT 2", ""):
            self.assertIn("not one query", self.sql(statement, expect=2), statement)
        self.assertIn("is not allowed", self.sql("SELECT repeat('x', 1000000000)", expect=2))
        self.sql("SELECT * FROM history", expect=2)
        self.assertFalse(pathlib.Path("/tmp/aegis-e2e-lake.csv").exists())

    def test_what_is_wrong_is_said_with_its_place(self):
        said = self.sql("SELECT tool,\n  no_such_column FROM events", expect=2)
        self.assertIn("line 2, column 3: ", said)
        with tempfile.TemporaryDirectory() as empty:
            self.assertIn("there is no lake", self.aegis.cli("sql", "SELECT 1", "--data", empty, expect=2))
        self.sql("SELECT 1", "--limit", 0, expect=2)
        self.sql("SELECT 1", "--seconds", 301, expect=2)

    def test_an_answer_is_bounded_and_says_so(self):
        values = "SELECT * FROM (VALUES (1), (2), (3)) AS t(n)"
        self.assertEqual([row["n"] for row in self.rows(values, "--limit", 2)], [1, 2])
        self.assertEqual([row["n"] for row in self.rows("-", stdin=values)], [1, 2, 3])
        self.assertIn("3 rows", self.sql(values))
