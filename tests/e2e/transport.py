"""Events and state over a NATS server: the streams that it needs, and what happens to the action path and to evidence when it stops,
hangs or dies. Edges as processes of their own are in `edges`."""

import json
import re
import shutil
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from harness import BINARY, CLEAN_ENVIRONMENT, Aegis, ControlPlane, Edge, StartFailed
from nats import SERVERS, NatsServer, free_port, make_certificates
from receipts import check_chain
from unfelt import assert_not_felt, timed
from waiting import wait_until
from with_nats import WithNats


class Member(NatsServer):
    """One of three servers that are a cluster."""

    def __init__(self, test, number):
        super().__init__()
        test.addCleanup(self.close)
        self.name, self.route, self.monitoring, self.others = f"nats-{number}", free_port(), free_port(), []

    def configure(self):
        path = super().configure()
        routes = ", ".join(f'"nats-route://127.0.0.1:{other.route}"' for other in self.others)
        cluster = f'cluster {{ name: "three", listen: "127.0.0.1:{self.route}", routes: [{routes}] }}'
        path.write_text(f'{path.read_text()}server_name: "{self.name}"\nhttp: "127.0.0.1:{self.monitoring}"\n{cluster}\n')
        return path

    def led(self):
        """The streams that it leads, of which there are two more copies that have all."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitoring}/jsz?accounts=1&streams=1", timeout=10) as answer:
                said = json.load(answer)
        except OSError:
            return set()
        streams = [stream for account in said.get("account_details") or [] for stream in account.get("stream_detail") or []]
        return {stream["name"] for stream in streams if self._leads(stream.get("cluster", {}))}

    def _leads(self, cluster):
        replicas = cluster.get("replicas") or []
        return cluster.get("leader") == self.name and len(replicas) == 2 and all(replica.get("current") for replica in replicas)


def have_three_copies(cluster):
    return len(set().union(*(member.led() for member in cluster))) == 10


class Streams(WithNats):
    def test_a_plan_says_what_apply_then_does(self):
        for name in SERVERS:
            with self.subTest(name):
                server = self.server(name)
                aegis = Aegis.__new__(Aegis)
                planned = aegis.cli("streams", "plan", "--nats", server.url, expect=1)
                self.assertEqual(len(re.findall("to be created", planned)), 10, planned)
                self.assertIn("created", aegis.cli("streams", "apply", "--nats", server.url))
                self.assertEqual(len(re.findall("as it should be", aegis.cli("streams", "plan", "--nats", server.url))), 10)
                changed = aegis.cli("streams", "plan", "--nats", server.url, "--max-bytes", "ASE=1GiB", "--json", expect=1)
                ase = json.loads(changed)["streams"][0]
                self.assertEqual((ase["name"], ase["change"]), ("ASE", "update"))
                self.assertEqual((ase["differences"][0]["field"], ase["differences"][0]["wanted"]), ("max_bytes", 1 << 30))
                aegis.cli("streams", "apply", "--nats", server.url, "--max-bytes", "ASE=1GiB")
                aegis.cli("streams", "plan", "--nats", server.url, "--max-bytes", "ASE=1GiB")
                for bad in (["--max-bytes", "ACE=1GiB"], ["--replicas", "0"], ["--max-bytes", "ASE=many"], []):
                    arguments = ["streams", "plan", *(["--nats", server.url] if bad else []), *bad]
                    aegis.cli(*arguments, expect=2)

    def test_what_a_change_would_lose_is_lost_only_of_a_stream_that_is_named(self):
        for name in SERVERS:
            with self.subTest(name):
                server = self.server(name)
                aegis = Aegis(nats=server)
                self.addCleanup(aegis.close)
                aegis.start()
                tenant = aegis.tenant().register_tools()
                agent = tenant.register_agent().until_tools_are_known()
                sealed = {agent.authorize()["decision_id"] for _ in range(5)}
                wait_until("they are shipped", lambda: sealed <= {event["event_id"] for event in tenant.list("/v1/decisions")})
                aegis.stop()

                def streams(command, *options, **expected):
                    said = aegis.cli("streams", command, "--nats", server.url, "--json", *options, **expected)
                    return {stream["name"]: stream for stream in json.loads(said)["streams"]} if expected.get("expect", 0) < 2 else said

                shorter = ("--max-age", "ASE=1s", "--max-age", "DLQ=1s")
                planned = streams("plan", *shorter, expect=1)
                self.assertEqual({stream for stream, plan in planned.items() if plan["change"] != "none"}, {"ASE", "DLQ"})
                [ase] = [one for one in planned["ASE"]["differences"] if one["field"] == "max_age"]
                self.assertEqual((ase["wanted"], ase["loses"]), (10**9, "messages over the new bound"))
                self.assertEqual({one["loses"] for one in planned["DLQ"]["differences"]}, {None}, "nothing is in it")
                for named in ((), ("--may-lose", "DLQ")):
                    self.assertIn("ASE would lose messages over the new bound; name it with --may-lose ASE", streams("apply", *shorter, *named, expect=2))
                    self.assertEqual(streams("plan", *shorter, expect=1), planned, "nothing was done")
                self.assertEqual(streams("apply", *shorter, "--may-lose", "ASE")["ASE"]["change"], "update")
                self.assertEqual({plan["change"] for plan in streams("plan", *shorter).values()}, {"none"})
                # What it forgot is the ledger's still.
                aegis.start()
                self.assertLessEqual(sealed, {line["event_id"] for line in tenant.export()})

    def test_a_users_file_that_is_stale_or_wider_than_it_should_be_is_told(self):
        server = self.server(secured=True)
        aegis = Aegis(nats=server)
        self.addCleanup(aegis.close)
        where = ("--nats", server.url, "--data", aegis.data, *server.options)

        def plan(expect):
            said = aegis.cli("streams", "plan", *where, "--users", server.users, expect=expect)
            told = json.loads(aegis.cli("streams", "plan", *where, "--users", server.users, "--json", expect=expect))
            self.assertEqual({stream["change"] for stream in told["streams"]}, {"none"})
            return said.splitlines()[-1], told["users"]["differ"]

        self.assertIn("not compared", aegis.cli("streams", "plan", *where))
        said, differ = plan(0)
        self.assertIn("as they should be", said)
        self.assertEqual(differ, [])
        written = server.users.read_text()
        for before, after, users in (('"hb.*"', '">"', ["control"]), ("# soc.lake: ", "# lake: ", ["lake", "soc.lake"]), ("accounts {", "accounts  {", ["(accounts)"])):
            self.assertIn(before, written)
            server.users.write_text(written.replace(before, after, 1))
            said, differ = plan(1)
            self.assertEqual(differ, users)
            self.assertIn(", ".join(users), said)
        server.users.write_text(written)
        plan(0)

        # An edge that is enrolled is a user, which the file of before does not have.
        aegis.environment.pop("AEGIS_NATS_USERS_FILE")
        aegis.start()
        tenant = aegis.tenant()
        edge = Edge(nats=server)
        self.addCleanup(edge.close)
        token = aegis.cli("edge", "invite", "--id", "late", "--tenant", tenant.name, "--data", aegis.data).strip()
        edge.cli("edge", "enroll", "--control", f"http://127.0.0.1:{aegis.port}", "--data", edge.data, stdin=token)
        self.assertEqual(plan(1)[1], ["(accounts)", "late"])

    def test_streams_of_one_copy_become_three_and_outlive_a_server(self):
        cluster = [Member(self, number) for number in range(3)]
        for member in cluster:
            member.others = [other for other in cluster if other is not member]
            member.start()
        urls = ",".join(member.url for member in cluster)
        aegis = Aegis.__new__(Aegis)

        def apply(*options):
            done = subprocess.run([BINARY, "streams", "apply", "--nats", urls, *options], env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=300)
            return done.stdout if done.returncode == 0 else None

        # The servers have to find each other first.
        wait_until("the streams are made", apply)
        program = Aegis(nats=cluster[0])
        self.addCleanup(program.close)
        program.environment["AEGIS_NATS_SERVERS"] = urls
        program.start()
        tenant = program.tenant().register_tools()
        agent = tenant.register_agent().until_tools_are_known()
        sealed = [agent.authorize()["decision_id"] for _ in range(20)]

        copies = ("--replicas", "3")
        planned = json.loads(aegis.cli("streams", "plan", "--nats", urls, *copies, "--json", expect=1))["streams"]
        told = {(one["field"], one["server"], one["wanted"], one["loses"]) for stream in planned for one in stream["differences"]}
        self.assertEqual((len(planned), told), (10, {("num_replicas", 1, 3, None)}))
        self.assertEqual(len(re.findall("changed", apply(*copies))), 10)
        self.assertEqual(len(re.findall("as it should be", aegis.cli("streams", "plan", "--nats", urls, *copies))), 10)
        wait_until("each server has each stream", lambda: have_three_copies(cluster))

        # Whichever had the only copies: each server is gone once, and nothing with it.
        for member in cluster:
            member.kill9()
            sealed += [agent.authorize()["decision_id"] for _ in range(5)]
            wait_until("the rest has it", lambda: set(sealed) <= {event["event_id"] for event in tenant.list("/v1/decisions")})
            member.start()
            wait_until("it has caught up", lambda: have_three_copies(cluster))

    def test_what_the_server_is_is_told_where_people_look(self):
        for name, binary in SERVERS.items():
            with self.subTest(name):
                version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split("v")[-1].strip()
                server = self.server(name)
                aegis = Aegis(nats=server)
                self.addCleanup(aegis.close)
                self.assertIn(f"nats-server {version}", aegis.cli("streams", "plan", "--nats", server.url))
                told = json.loads(aegis.cli("streams", "plan", "--nats", server.url, "--json"))["servers"]
                self.assertEqual((told["version"], told["newest"], told["count"]), (version, version, 1))
                self.assertEqual("message_ttl" in told["features"], name == "current", told)
                aegis.start()
                self.assertEqual(wait_until("what the server is", lambda: aegis.get("/readyz").expect(200)["bus"]), told)
                self.assertEqual((aegis.metric("aegis_nats_server_info"), aegis.metric("aegis_nats_servers")), (1, 1))
                self.assertIn(f'version="{version}"', aegis.get("/metrics").text)
                self.assertEqual(aegis.log().count("what the NATS servers are"), 1, aegis.log())

    def test_a_server_that_is_not_there_is_named(self):
        server = self.server()
        server.kill9()
        said = Aegis.__new__(Aegis).cli("streams", "plan", "--nats", server.url, expect=2)
        self.assertIn(server.url, said)

    def test_nothing_starts_on_a_server_without_streams(self):
        server = self.server()
        aegis = Aegis()
        self.addCleanup(aegis.close)
        # Whatever server it has of its own in a run over NATS.
        aegis.environment = {"AEGIS_NATS_SERVERS": server.url}
        with self.assertRaises(StartFailed) as failed:
            aegis.start()
        self.assertIn("aegis streams apply", failed.exception.output)


class Faults(WithNats):
    def instance(self, server):
        aegis = Aegis(nats=server)
        self.addCleanup(aegis.close)
        return aegis

    def start(self):
        self.nats = self.server()
        self.aegis = self.instance(self.nats).start()
        self.tenant = self.aegis.tenant().register_tools()
        self.agent = self.tenant.register_agent().until_tools_are_known()

    def acknowledged(self, count):
        hashes, _ = self.acknowledged_in(count)
        return hashes

    def acknowledged_in(self, count):
        """Receipts of so many calls, and the seconds that each took."""
        answers, took = zip(*(timed(self.agent.authorize) for _ in range(count)))
        self.assertEqual({answer["decision"] for answer in answers}, {"allow"})
        return [answer["receipt"]["receipt_hash"] for answer in answers], took

    def assert_all_arrive(self, hashes):
        """Each acknowledged receipt is in the history, once, and the chain is whole."""
        listed = lambda: [line["receipt_hash"] for line in self.tenant.list("/v1/receipts")]
        arrived = wait_until("the history has every receipt", lambda: (there := listed()) and set(there) >= set(hashes) and there)
        # Asked once: receipts of what the program does by itself come in meanwhile.
        self.assertEqual(len(arrived), len(set(arrived)))
        check_chain(self.tenant.export())
        self.assertEqual(self.aegis.verify(self.tenant.export())["verdict"], "valid")
        broken = [alert for alert in self.tenant.list("/v1/alerts") if "AEG-3004" in json.dumps(alert)]
        self.assertEqual(broken, [], "a server's failure is no broken chain")

    def storm(self):
        """The agent probes, and is frozen for it."""
        for _ in range(5):
            self.assertEqual(self.agent.authorize(tool="unheard", action="of")["decision"], "deny")
        wait_until("the agent is frozen", lambda: self.agent.read()["reason"] == "agent_frozen")

    def test_detection_contains_an_agent(self):
        self.start()
        self.assert_all_arrive(self.acknowledged(5))
        self.storm()

    def test_a_server_that_is_killed_and_comes_back_loses_nothing(self):
        self.start()
        hashes = self.acknowledged(20)
        self.nats.kill9()
        hashes += self.acknowledged(50)
        self.nats.start()
        hashes += self.acknowledged(20)
        self.assert_all_arrive(hashes)
        self.storm()

    def test_a_server_that_hangs_or_is_gone_delays_no_answer(self):
        self.start()
        hashes, calm = self.acknowledged_in(100)
        self.nats.hang()
        of_hanging, hanging = self.acknowledged_in(100)
        self.nats.go_on()
        self.nats.kill9()
        of_gone, gone = self.acknowledged_in(100)
        self.nats.start()
        assert_not_felt(calm, hanging, "a server that hangs")
        assert_not_felt(calm, gone, "a server that is gone")
        self.assert_all_arrive(hashes + of_hanging + of_gone)
        self.storm()

    def test_a_program_that_is_killed_while_the_server_is_gone_ships_at_its_next_start(self):
        self.start()
        hashes = self.acknowledged(5)
        self.nats.kill9()
        hashes += self.acknowledged(20)
        self.aegis.kill9()
        self.nats.start()
        self.aegis.start()
        self.assert_all_arrive(hashes)


class Tls(WithNats):
    def test_who_does_not_know_the_authority_or_has_no_certificate_does_not_come_in(self):
        server = self.server(secured=True)
        control = ControlPlane(nats=server)
        self.addCleanup(control.close)
        known = dict(zip(server.options[::2], server.options[1::2]))
        stranger = server.folder / "stranger"
        stranger.mkdir()
        make_certificates(stranger)
        plan = lambda options, url=server.url, expect=2: control.cli(
            "streams", "plan", "--nats", url, "--data", control.data, *[part for pair in options.items() for part in pair], expect=expect
        )
        plan(known, expect=0)
        refused = [
            lambda: plan({}),
            lambda: plan(known | {"--ca": stranger / "ca.pem"}),
            lambda: plan({"--ca": known["--ca"]}),
            lambda: plan(known | {"--tls-certificate": stranger / "client.pem", "--tls-key": stranger / "client.key"}),
            # And with all of that, not without a login.
            lambda: control.cli("streams", "plan", "--nats", server.url, *server.options, expect=2),
        ]
        # Each tries for some seconds.
        with ThreadPoolExecutor(len(refused)) as together:
            list(together.map(lambda refuse: refuse(), refused))

    def test_a_server_that_waits_for_tls_before_it_says_anything_is_reached_by_who_begins_with_it(self):
        server = self.server(secured=True)
        server.is_tls_first = True
        control = ControlPlane(nats=server)
        self.addCleanup(control.close)
        plan = lambda *options, expect=0: control.cli(
            "streams", "plan", "--nats", server.url, "--data", control.data, "--json", *options, expect=expect
        )
        told = json.loads(plan(*server.options))["servers"]
        self.assertEqual((told["count"], told["api_level"]), (1, None), "its version is known, from the one connection")
        self.assertNotEqual(told["version"], "0.0.0")
        plan(*(option for option in server.options if option != "--tls-first"), expect=2)
        control.start()
        control.tenant().register_agent()
        control.stop()
        # And who begins with it does not talk to a server that speaks first.
        server.kill9()
        server.is_tls_first = False
        server.start()
        plan(*server.options, "--tls-first", expect=2)
        plan(*server.options)

    def test_control_and_an_edge_go_to_no_server_of_another_authority_or_name(self):
        server = self.server(secured=True)
        control, edge = ControlPlane(nats=server), Edge(nats=server)
        for program in (control, edge):
            self.addCleanup(program.close)
        control.start()
        edge.enroll(control, "edge-1", control.tenant())
        control.stop()
        strange, elsewhere = self.server(secured=True), self.server(secured=True)
        make_certificates(elsewhere.folder, "DNS:elsewhere.example")
        refused = []
        for other, ca_file, said in (
            (strange, server.folder / "ca.pem", "invalid peer certificate"),
            (elsewhere, elsewhere.folder / "ca.pem", "not valid for name"),
        ):
            other.users.touch()
            other.start()
            for program in (control, edge):
                refused.append((self.copy_of(program, other, ca_file), other, said))
        # Each tries for half a minute.
        with ThreadPoolExecutor(len(refused)) as together:
            list(together.map(lambda one: self.assert_does_not_go_there(*one), refused))

    def copy_of(self, program, server, ca_file):
        """The same, enrolled as it is, that is told of another server."""
        copied = type(program)(data=server.folder / f"of-{program.ROLE}", environment=program.environment)
        self.addCleanup(copied.close)
        shutil.copytree(program.data, copied.data)
        copied.environment |= {"AEGIS_NATS_SERVERS": server.url, "AEGIS_NATS_CA_FILE": str(ca_file)}
        return copied

    def assert_does_not_go_there(self, program, server, said):
        with self.assertRaises(StartFailed) as failed:
            program.start()
        output = failed.exception.output
        self.assertIn("cannot start", output)
        # It was the program that hung up, before it said who it is.
        self.assertIn("TLS handshake error: remote error", (server.folder / "log").read_text())
        self.assertIn(said, output, f"{program.ROLE} does not say why")

    def test_tls_that_is_required_is_not_done_without(self):
        server = self.server()
        aegis = Aegis(environment={"AEGIS_NATS_SERVERS": server.url, "AEGIS_NATS_REQUIRE_TLS": "true"})
        self.addCleanup(aegis.close)
        aegis.cli("streams", "apply", "--nats", server.url)
        with self.assertRaises(StartFailed):
            aegis.start()
