"""The lake in an S3 bucket, on a real server: what `lake` promises of a folder, and what a store does that is another program: it goes away, hangs,
refuses. None of it reaches an answer, and when it is over every receipt is a row, once."""

import json
import os
import pathlib
import tempfile

import lake
from fickle import Fickle
from harness import Aegis, StartFailed
from nats import FAKETIME
from s3 import S3Server
from story import Story
from waiting import unique, wait_until

NO_KEY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}
# Files are looked through for what to merge and what is old every half a minute.
TIDY_WITHIN_S = 150
# Of three requests one goes wrong, and there are some a second.
WRONGS_WITHIN_S = 240


class OnS3(Story):
    """An instance and a server for a class; each instance has a lake of its own in the bucket."""

    @classmethod
    def setUpClass(cls):
        cls.server = S3Server()
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.aegis = cls.instance(cls.server)
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()

    @staticmethod
    def instance(server, prefix=None, **environment):
        prefix = prefix or unique("lake")
        place = server.settings(prefix) | NO_KEY | server.credentials
        aegis = Aegis(environment={"AEGIS_LAKE_FLUSH_S": "1"} | place | environment)
        aegis.cli_environment = place | {name: value for name, value in environment.items() if name in place or name.startswith("AEGIS_LAKE_")}
        aegis.prefix = prefix
        return aegis

    def another(self, server=None, **options):
        """An instance of the test's own, a tenant and an agent there."""
        aegis = self.instance(server or self.server, **options)
        self.addCleanup(aegis.close)
        return aegis

    def move_to(self, aegis):
        """What follows is about this instance."""
        self.aegis = aegis
        self.tenant = aegis.tenant().register_tools()
        self.tenant.settings(automatic_freezes_per_hour=0)
        self.agent = self.tenant.register_agent().until_tools_are_known()
        return self.agent

    def server_of_its_own(self):
        server = S3Server()
        self.addCleanup(server.close)
        return server.start()

    sql, rows, number = lake.Lake.sql, lake.Lake.rows, lake.Lake.number
    receipts, receipts_in_the_lake = lake.Lake.receipts, lake.Lake.receipts_in_the_lake
    assert_lake_is_the_export, arrived = lake.Lake.assert_lake_is_the_export, lake.Lake.arrived
    over_both, deliver = lake.Lake.over_both, lake.Lake.deliver

    def manifests(self, server=None):
        """What each hour of the instance's lake consists of, as an independent reader finds it."""
        server = server or self.server
        prefix = f"{self.aegis.prefix}/"
        names = [name for name in server.objects(prefix) if name.endswith("/manifest.json")]
        return {name.removesuffix("/manifest.json"): json.loads(server.get(name)) for name in names}

    def stands_still(self):
        return self.aegis.metric("aegis_lake_stands_still")

    def assert_no_secret(self, text, server=None):
        self.assertNotIn((server or self.server).secret, text)


class Kept(OnS3):
    def test_each_receipt_is_a_row_of_the_bucket_and_nothing_lies_in_the_folder(self):
        self.tenant.set_webhook_secret(lake.SECRET)
        self.deliver()
        self.arrived([self.agent.authorize(trust=trust) for trust in ["trusted_internal_unsigned", "untrusted_external"] * 10])
        self.assert_lake_is_the_export()
        self.assertFalse((self.aegis.data / "lake").exists())

        def told_alike():
            # What the tenant's detection and webhook tell may still come, and files be merged, between two looks.
            before = self.manifests()
            objects = self.server.objects(f"{self.aegis.prefix}/")
            rows = self.number("SELECT count(*) FROM events")
            hours = {place: manifest for place, manifest in before.items() if f"/tenant={self.tenant.name}/" in place}
            is_still = self.manifests() == before
            return (hours, objects, rows) if is_still and hours and rows > 20 else None

        hours, objects, rows = wait_until("the hours stand still for a moment", told_alike, longest_pause_s=1)
        for place, manifest in hours.items():
            self.assertRegex(place, rf"^{self.aegis.prefix}/tenant={self.tenant.name}/(date=\d{{4}}-\d\d-\d\d/hour=\d\d|astray)$")
            for file in manifest["files"]:
                self.assertIn(f"{place}/{file['name']}", objects)
        self.assertEqual(rows, sum(file["rows"] for manifest in hours.values() for file in manifest["files"]))
        self.assert_no_secret(self.aegis.log())
        self.assert_no_secret(pathlib.Path(f"/proc/{self.aegis.pid}/cmdline").read_bytes().decode())

    def test_plain_http_goes_past_the_proxy_of_the_environment(self):
        # Nobody is there: what went to it would not arrive.
        nowhere = "http://127.0.0.1:9"
        agent = self.move_to(self.another(HTTP_PROXY=nowhere, http_proxy=nowhere, ALL_PROXY=nowhere, all_proxy=nowhere).start())
        self.arrived([agent.authorize() for _ in range(3)])
        self.assert_lake_is_the_export()

    def test_rules_tell_over_the_bucket_what_they_tell_over_the_history(self):
        for trust in ["trusted_internal_unsigned"] + ["untrusted_external"] * 6:
            answer = self.agent.authorize(trust=trust)
        self.arrived([answer])
        history, in_lake = self.over_both("backtest", lake.RULES)
        for report in (history, in_lake):
            report["rules"] = [{key: value for key, value in rule.items() if key not in ("seconds", "micros_per_event")} for rule in report["rules"]]
        self.assertEqual(history, in_lake)
        [storm] = [rule for rule in in_lake["rules"] if rule["name"] == "deny-storm"]
        history, in_lake = self.over_both("explain", storm["samples"][0]["event_ids"][-1], lake.RULES / "deny-storm")
        self.assertEqual(history, in_lake)
        self.assertTrue(in_lake["fired"], in_lake)
        history, in_lake = self.over_both("diff", lake.RULES / "deny-storm", lake.RULES / "deny-storm")
        self.assertEqual((in_lake["added"], in_lake["dropped"]), (history["added"], history["dropped"]))

    def test_a_kill_of_the_program_loses_and_doubles_no_row(self):
        agent = self.move_to(self.another().start())
        for _ in range(4):
            self.arrived([agent.authorize() for _ in range(25)])
            self.aegis.kill9()
            self.aegis.start()
        # The first receipt of this start opens its lanes.
        self.arrived([agent.authorize()])
        self.assert_lake_is_the_export()
        self.assertEqual(self.number("SELECT count(*) FROM events"), self.number("SELECT count(DISTINCT event_id) FROM events"))

    def test_files_are_merged_and_each_row_stays_one(self):
        agent = self.move_to(self.another().start())

        def merged():
            agent.authorize()
            return [file for manifest in self.manifests().values() for file in manifest["files"] if file["level"] > 0]

        # A file a second, and of eight one is made.
        wait_until("files are merged", merged, TIDY_WITHIN_S, longest_pause_s=1)
        self.arrived([agent.authorize()])
        self.assert_lake_is_the_export()
        self.assertEqual(self.number("SELECT count(*) FROM events"), self.number("SELECT count(DISTINCT event_id) FROM events"))
        self.assertEqual(self.aegis.metric("aegis_lake_tidy_failures_total"), 0)

    def test_a_lake_moves_from_a_folder_and_its_old_hours_go(self):
        in_the_past = {"LD_PRELOAD": FAKETIME, "FAKETIME": "-3d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        # One file an hour: what is merged already can go at once.
        aegis = self.another(AEGIS_LAKE_URL="", AEGIS_LAKE_FLUSH_S="3600")
        environment, aegis.environment = aegis.environment, aegis.environment | in_the_past
        agent = self.move_to(aegis.start())
        old = [agent.authorize()["decision_id"] for _ in range(5)]
        self.arrived([{"decision_id": decision} for decision in old])
        aegis.stop()
        folder = aegis.data / "lake"
        for file in sorted(folder.rglob("*")):
            # What is no object (a lock) is left out.
            if file.is_file() and "#" not in file.name:
                put = self.server.call("PUT", f"{aegis.prefix}/{file.relative_to(folder)}", body=file.read_bytes())
                self.assertEqual(put.status, 200, put.body)
        place = self.server.settings(aegis.prefix)
        aegis.environment = environment | place | {"AEGIS_LAKE_FLUSH_S": "1"}
        aegis.cli_environment = aegis.cli_environment | place
        listed = ", ".join(f"'{decision}'" for decision in old)
        count = f"SELECT count(*) FROM events WHERE event_id IN ({listed})"
        self.assertEqual(self.number(count), 5, "the rows of the folder, without the program")
        aegis.start()
        # The token of three days ago is no good any more.
        new = self.tenant.register_agent().authorize()["decision_id"]
        here = f"SELECT count(*) FROM events WHERE event_id = '{new}'"
        wait_until("the new row is there", lambda: self.number(here) == 1, longest_pause_s=1)
        self.assertEqual(self.number(count), 5)
        aegis.stop()
        aegis.environment["AEGIS_LAKE_KEEP_DAYS"] = "1"
        aegis.start()
        wait_until("the old hours are gone", lambda: self.number(count) == 0, TIDY_WITHIN_S, longest_pause_s=1)
        self.assertEqual(self.number(here), 1)
        self.assertIn("the folder of an earlier one is neither read nor kept up", aegis.log())


class Gone(OnS3):
    def test_a_server_that_is_killed_holds_back_the_bus_alone(self):
        server = self.server_of_its_own()
        agent = self.move_to(self.another(server).start())
        self.arrived([agent.authorize() for _ in range(5)])
        self.assert_lake_is_the_export()
        server.kill9()
        # Answers, receipts and history go on; the lake says what it misses.
        self.arrived([agent.authorize() for _ in range(20)])
        self.assertEqual(self.aegis.get("/readyz").status, 200)
        wait_until("the lake says that it stands still", lambda: self.stands_still() == 1)
        self.assertIn(server.bucket, self.aegis.log())
        said = self.sql("SELECT count(*) FROM events", expect=2)
        self.assertIn(f"s3://{server.bucket}/{self.aegis.prefix}", said)
        self.assert_no_secret(said + self.aegis.log(), server)
        self.aegis.kill9()
        # It also starts without.
        self.aegis.start()
        self.arrived([agent.authorize() for _ in range(5)])
        # Log and gauge are the new process's: it goes on only from where it stood still itself.
        wait_until("the new lake says that it stands still", lambda: self.stands_still() == 1)
        self.assertNotIn("the lake goes on", self.aegis.log())
        server.start()
        self.assert_lake_is_the_export()
        wait_until("the lake goes on", lambda: self.stands_still() == 0)
        self.assertIn("the lake goes on", self.aegis.log())
        self.assertEqual(self.number("SELECT count(*) FROM events"), self.number("SELECT count(DISTINCT event_id) FROM events"))

    def test_a_server_that_hangs_holds_up_neither_an_answer_nor_a_stop(self):
        server = self.server_of_its_own()
        agent = self.move_to(self.another(server).start())
        self.arrived([agent.authorize() for _ in range(5)])
        self.assert_lake_is_the_export()
        server.hang()
        self.arrived([agent.authorize() for _ in range(20)])
        self.aegis.stop()
        server.go_on()
        self.aegis.start()
        self.arrived([agent.authorize()])
        self.assert_lake_is_the_export()
        self.assertEqual(self.number("SELECT count(*) FROM events"), self.number("SELECT count(DISTINCT event_id) FROM events"))

    def test_a_server_that_takes_no_writes_is_told_of_and_answers_queries(self):
        server = self.server_of_its_own()
        agent = self.move_to(self.another(server).start())
        self.arrived([agent.authorize() for _ in range(5)])
        self.assert_lake_is_the_export()
        before = self.number("SELECT count(*) FROM events")
        server.kill9()
        server.start(read_only=True)
        self.arrived([agent.authorize() for _ in range(5)])
        wait_until("the lake says that it stands still", lambda: self.stands_still() == 1)
        # First it may say of a write that met no server, between the two.
        wait_until("the lake says why", lambda: "AccessDenied" in self.aegis.log())
        self.assertEqual(self.number("SELECT count(*) FROM events"), before)
        server.kill9()
        server.start()
        self.assert_lake_is_the_export()

    def test_a_server_that_refuses_cuts_forgets_and_is_late_loses_and_doubles_nothing(self):
        fickle = Fickle(self.server, os.environ.get("AEGIS_SEED", "1"))
        self.addCleanup(fickle.close)
        agent = self.move_to(self.another(AEGIS_LAKE_ENDPOINT=fickle.endpoint).start())
        self.arrived([agent.authorize()])
        self.assert_lake_is_the_export()
        fickle.is_fickle = True

        def each_wrong_was_done():
            agent.authorize()
            return all(fickle.done[wrong] >= 3 for wrong in Fickle.WRONGS)

        wait_until("each wrong is done some times", each_wrong_was_done, WRONGS_WITHIN_S, longest_pause_s=0.5)
        self.aegis.kill9()
        self.aegis.start()
        answer = agent.authorize()
        fickle.heal()
        self.arrived([answer])
        self.assert_lake_is_the_export()
        self.assertEqual(self.number("SELECT count(*) FROM events"), self.number("SELECT count(DISTINCT event_id) FROM events"))
        self.assertEqual(self.aegis.get("/readyz").status, 200)
        self.note = ", ".join(f"{wrong} {times}" for wrong, times in sorted(fickle.done.items()))


class Refused(OnS3):
    def key_file(self, mode=0o600, **lines):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        file = folder / "key"
        self.write_key(file, **lines)
        file.chmod(mode)
        return file

    @staticmethod
    def write_key(file, key, secret):
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    def assert_no_start(self, *words, without=(), **environment):
        aegis = self.another(**environment)
        with self.assertRaises(StartFailed) as failed:
            aegis.start()
        said = failed.exception.output
        self.assertGreater(failed.exception.returncode or 0, 0, said)
        self.assertNotIn("panicked", said)
        for word in words:
            self.assertIn(word, said)
        for word in without:
            self.assertNotIn(word, said)

    def test_a_wrong_key_is_told_of_and_the_right_one_is_taken_without_a_restart(self):
        file = self.key_file(key=self.server.key, secret="not-the-secret-of-the-tests")
        aegis = self.another(AEGIS_LAKE_CREDENTIALS_FILE=str(file))
        agent = self.move_to(aegis.start())
        self.arrived([agent.authorize() for _ in range(5)])
        wait_until("the lake says that it stands still", lambda: self.stands_still() == 1)
        self.assertIn("does not accept the credentials", aegis.log())
        said = self.sql("SELECT count(*) FROM events", expect=2)
        self.assertIn("does not accept the credentials", said)
        for text in (said, aegis.log(), aegis.get("/metrics").text):
            self.assertNotIn("not-the-secret-of-the-tests", text)
        self.write_key(file, self.server.key, self.server.secret)
        self.assert_lake_is_the_export()
        wait_until("the lake goes on", lambda: self.stands_still() == 0)
        self.assert_no_secret(aegis.log() + aegis.get("/metrics").text)

    def test_commands_read_where_the_lake_is_from_the_configuration_too(self):
        self.arrived([self.agent.authorize()])
        self.assert_lake_is_the_export()
        file = self.key_file(key=self.server.key, secret=self.server.secret)
        settings = self.server.settings(self.aegis.prefix)
        config = file.parent / "aegis.toml"
        config.write_text(
            f'[lake]\nurl = "{settings["AEGIS_LAKE_URL"]}"\nendpoint = "{settings["AEGIS_LAKE_ENDPOINT"]}"\ncredentials_file = "{file}"\n'
        )
        other = Aegis()
        self.addCleanup(other.close)
        other.cli_environment = NO_KEY
        options = ["--config", config, "--tenant", self.tenant.name, "--json"]
        [row] = other.cli("sql", "SELECT count(*) AS n FROM events", *options).splitlines()
        self.assertGreater(json.loads(row)["n"], 0)
        report = json.loads(other.cli("rules", "backtest", lake.RULES, "--lake", *options))
        self.assertGreater(report["events"], 0)
        os.chmod(file, 0o644)
        self.assertIn("chmod 600", other.cli("sql", "SELECT 1 FROM events", *options, expect=2))

    def test_a_bucket_that_is_not_there_is_no_empty_lake(self):
        aegis = self.another(AEGIS_LAKE_URL="s3://no-such-bucket/lake")
        agent = self.move_to(aegis.start())
        self.arrived([agent.authorize()])
        wait_until("the lake says that it stands still", lambda: self.stands_still() == 1)
        self.assertIn("no such bucket", aegis.log())
        self.assertIn("no such bucket", self.sql("SELECT count(*) FROM events", expect=2))

    def test_what_cannot_be_is_told_of_at_the_start(self):
        self.assert_no_start("AWS_ACCESS_KEY_ID", "lake.credentials_file", **NO_KEY)
        readable = self.key_file(mode=0o644, key=self.server.key, secret=self.server.secret)
        self.assert_no_start("chmod 600", without=[self.server.secret], AEGIS_LAKE_CREDENTIALS_FILE=str(readable))
        self.assert_no_start("lake.http_host", AEGIS_LAKE_ENDPOINT="http://192.0.2.1:9000")
        self.assert_no_start("lake.endpoint", without=["hunter2"], AEGIS_LAKE_ENDPOINT="https://key:hunter2@s3.example.com")
        self.assert_no_start("lake.url", without=["hunter2"], AEGIS_LAKE_URL="s3://key:hunter2@lakes/lake")
        self.assert_no_start("lake.url", AEGIS_LAKE_URL="https://lakes.s3.example.com")
