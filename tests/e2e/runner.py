"""What runs the tests swallows no failure: of a group, of a phase of `make test`, of a check that asks cargo; and leaves no test out unsaid."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types
import unittest
import uuid
from unittest import mock

import beside
import edges
import edges_alone
import nats
import printer
import run
import seen
from behind import Behind
from harness import REPOSITORY
from unfelt import assert_not_felt

sys.path.append(str(REPOSITORY / "scripts"))

import phases  # noqa: E402

COUNTED = 'import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(\'{"passed": 1, "failed": 0}\')'


class Runner(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="aegis-runner-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def printed(self, names, may_skip=None):
        """The printer behind a group of two tests, of which one is left out."""

        class Kept(unittest.TestCase):
            def test_kept(self):
                pass

            @unittest.skip("for a lack")
            def test_left_out(self):
                self.fail("it was not left out")

        Kept.__module__ = "of_two"
        group = types.ModuleType("of_two")
        group.Kept = Kept
        with mock.patch.dict(sys.modules, {"of_two": group}), contextlib.redirect_stdout(io.StringIO()):
            printed = printer.Printer(may_skip)
            printer.chosen(names, ["of_two"]).run(printed)
        return printed.passed, printed.failed, len(printed.skipped)

    def test_a_name_that_matches_nothing_is_refused_beside_those_that_match(self):
        self.assertEqual(self.printed(["of_two.kept"]), (1, 0, 0))
        for names in (["of_two.kept", "of_two.gone"], ["of_two", "of_three"], ["of_two.gone"]):
            with self.assertRaises(SystemExit) as refused:
                self.printed(names)
            self.assertIn(names[-1].replace("of_three", "no group"), str(refused.exception))

    def test_what_is_left_out_fails_where_it_was_not_allowed(self):
        self.assertEqual(self.printed([]), (1, 0, 1))
        self.assertEqual(self.printed([], []), (1, 1, 0))
        self.assertEqual(self.printed([], ["of_two.kept"]), (1, 1, 0))
        for may_skip in (["of_two"], ["of_two.left_out"], ["other", "of_two.Kept"]):
            self.assertEqual(self.printed([], may_skip), (1, 0, 1), may_skip)

    def test_answers_that_wait_for_what_fails_behind_them_are_felt(self):
        calm = [0.02] * 40
        assert_not_felt(calm, [0.1] * 40, "a busy machine")
        for during in ([0.5] * 40, [0.02] * 19 + [0.5] * 21, [0.02] * 39 + [3]):
            with self.assertRaises(AssertionError):
                assert_not_felt(calm, during, "a broken one")

    def outcome_of_group(self, program):
        """Of a group whose process is this program."""
        (self.folder / "program.py").write_text(program)
        with mock.patch.object(beside, "PROGRAM", self.folder / "program.py"), contextlib.redirect_stdout(io.StringIO()) as said:
            return beside.run_beside("runner", [("group", [])], set(), 1), said.getvalue()

    def test_a_group_has_passed_only_if_it_counted_and_ended_well(self):
        self.assertEqual(self.outcome_of_group(COUNTED)[0], 0)
        for program in ("", COUNTED + "; sys.exit(1)", "raise SystemExit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"):
            outcome, said = self.outcome_of_group(program)
            self.assertEqual(outcome, 1, program)
            self.assertIn("0 passed, 1 failed" if "pathlib" not in program else "1 passed, 1 failed", said)

    def outcome_of_phases(self, arguments, codes, makeflags=""):
        """Exit code, the phases that ran with what they were told, and what was said, of phases of these exit codes (0 where none is given)."""
        began = []

        def phase(name, variables, ports):
            began.append((name, variables, ports))
            return Behind(name, ["sh", "-c", f"echo {name} says this; exit {codes.get(name, 0)}"])

        of_make = mock.patch.dict(os.environ, {"MAKEFLAGS": makeflags})
        with of_make, mock.patch.object(phases, "phase", phase), contextlib.redirect_stdout(io.StringIO()) as said:
            return phases.main(arguments), began, said.getvalue()

    def test_what_detection_missed_or_saw_twice_is_found(self):
        lines = [{"lane": "a.e.1", "seq": seq, "event_id": str(uuid.uuid4()), "receipt_hash": f"hash {seq}"} for seq in range(1, 9)]

        def complaints(*seqs, **otherwise):
            """Of a lane that was followed up to 6, and of which rules were shown these."""
            event_ids = sum(uuid.UUID(lines[seq - 1]["event_id"]).int for seq in seqs) % (1 << 128)
            lane = {"seq": 6, "receipt_hash": "hash 6", "in_time": len(seqs) - 1, "late": 1, "missing": [], "before": 0, "unproved": 0}
            lane |= {"event_id_sum": str(uuid.UUID(int=event_ids))}
            return seen.complaints({"a.e.1": lane | otherwise}, seen.by_lane_of(lines))

        whole = (1, 2, 3, 4, 5, 6)
        self.assertEqual(complaints(*whole), [])
        for wrong in ((1, 2, 3, 4, 5), (1, 1, 2, 3, 4, 5, 6), (1, 1, 3, 4, 5, 6), (1, 2, 3, 4, 5, 7)):
            self.assertEqual(len(complaints(*wrong)), 1, wrong)
        for otherwise in ({"missing": [[3, 3]]}, {"before": 1}, {"unproved": 1}, {"seq": 5}, {"receipt_hash": "hash 5"}):
            self.assertEqual(len(complaints(*whole, **otherwise)), 1, otherwise)
        self.assertEqual(len(seen.complaints({}, seen.by_lane_of(lines))), 0)
        self.assertFalse(seen.are_as_far({}, seen.heads(seen.by_lane_of(lines))), "a lane that it does not know is not followed")

    def test_a_phase_that_fails_fails_all_and_ends_both_chains(self):
        codes = {"good": 0, "bad": 7, "slow": 0}
        waits = {"slow": "sleep 1; "}
        phase = lambda name, *_: Behind(name, ["sh", "-c", f"{waits.get(name, '')}exit {codes[name]}"])
        run_of_phases = phases.Run("make test", goes_on=False)
        with mock.patch.object(phases, "phase", phase), contextlib.redirect_stdout(io.StringIO()):
            run_of_phases.chains([["good", "bad", "never"], ["slow", "never"]], [])
        self.assertEqual(run_of_phases.failed, ["bad"])
        self.assertEqual({name for name, _ in run_of_phases.took}, {"good", "bad", "slow"}, "what ran goes to its end, and nothing begins behind it")

    def test_a_full_run_goes_on_behind_a_failure_and_fails_at_its_end(self):
        outcome, began, said = self.outcome_of_phases(["full"], {"lint": 7, "test-fleet-debian": 1})
        self.assertEqual(outcome, 1)
        self.assertEqual(sorted(name for name, *_ in began), sorted(phases.names([phases.FIRST, phases.TEST, phases.SLOW])))
        self.assertEqual(re.findall(r"^(\S+) +\d+   FAILED$", said, re.M), ["lint", "test-fleet-debian"], "the table has them")
        self.assertIn("test-fleet-debian says this\n", said)
        self.assertTrue(said.endswith("FAILED, their output is above: lint test-fleet-debian\n"), said[-200:])
        self.assertEqual(self.outcome_of_phases(["full"], {})[0], 0)

    def test_nothing_runs_behind_a_build_that_fails(self):
        for arguments in ([], ["full"]):
            outcome, began, _ = self.outcome_of_phases(arguments, {"build": 101})
            self.assertEqual((outcome, {name for name, *_ in began}), (1, {"setup-tools", "build"}), arguments)

    def test_phases_that_are_named_alone_run_with_what_make_is_told(self):
        outcome, began, _ = self.outcome_of_phases(["full", "--only", "test-kills,lint,test-openapi", "BUILT=yes"], {}, "k -- FUZZ_SECONDS=7")
        self.assertEqual((outcome, sorted(name for name, *_ in began)), (0, ["build", "lint", "setup-tools", "test-kills", "test-openapi"]))
        told = {name: variables for name, variables, _ in began}
        self.assertEqual(told["build"], ["FUZZ_SECONDS=7", "BUILT=yes"])
        self.assertEqual(told["test-openapi"], ["FUZZ_SECONDS=7", "BUILT=yes", "BUILT=yes"], "it has its own exchanges where no phase keeps any")
        outcome, began, _ = self.outcome_of_phases(["--only", "test-e2e,test-openapi"], {})
        kept, read = ([word for word in variables if word.startswith("EXCHANGES=")] for name, variables, _ in began if name.startswith("test-"))
        self.assertEqual((len(kept), kept), (1, read))
        for wrong in (["full", "--only", "test-nothing"], ["--only", "test-kills"], ["whole"]):
            with self.assertRaises(SystemExit) as refused, contextlib.redirect_stderr(io.StringIO()):
                phases.main(wrong)
            self.assertEqual(refused.exception.code, 2, wrong)

    def test_every_phase_is_a_target_and_what_shares_something_is_in_one_chain(self):
        every = phases.names([phases.FIRST, phases.TEST, phases.SLOW])
        self.assertEqual(len(every), len(set(every)))
        does = {name: self.would_do(name) for name in phases.names([phases.TEST, phases.SLOW])}
        self.assertFalse([name for name, commands in does.items() if "cargo build" in commands], "it is built")
        self.assertIn("--seconds 7", does["fuzz-corpus"], "what make is told it is told")
        for chains in (phases.TEST, phases.SLOW):
            # The lock of cargo, what is installed at first use, the ports, a fleet's load.
            for shared in ("cargo ", "tests/e2e/run.sh", "tests/fleet/run.sh", "tests/judge/run.sh", "tests/patterns/run.sh", "tests/corpus/run.sh", "sdks/"):
                users = [place for place, chain in enumerate(chains) if any(shared in does[name] for name in chain)]
                self.assertLessEqual(len(users), 1, shared)
                self.assertFalse(shared in ("tests/e2e/run.sh", "tests/fleet/run.sh") and 0 in users, "the first chain has no ports to give")

    def would_do(self, name):
        """What make would do for a phase, whatever it is told."""
        with mock.patch.object(phases, "Behind") as begun:
            phases.phase(name, ["BUILT=yes", "FUZZ_SECONDS=7"], "1/2")
        (_, command, _), options = begun.call_args
        self.assertEqual(options["env"]["AEGIS_E2E_PORTS"], "1/2")
        return subprocess.run([*command, "--dry-run"], cwd=options["cwd"], env=options["env"], capture_output=True, text=True, check=True).stdout

    def test_a_variable_of_the_shell_does_not_leave_out_the_build(self):
        environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
        environment |= {"BUILT": "yes", "EXCHANGES": "/of/yesterday"}
        would_do = lambda *given: subprocess.run(["make", "-n", *given], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
        self.assertIn("cargo build", would_do("build"))
        self.assertNotIn("/of/yesterday", would_do("test-openapi"))
        self.assertNotIn("cargo build", would_do("build", "BUILT=yes"), "where it is said on the command line, it is so")

    def test_a_feature_that_cargo_names_is_found_and_cargo_that_fails_is_no_answer(self):
        cargo = self.folder / "cargo"
        environment = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        for prints, outcome in {"seq 200000": 0, "echo 'x serde_json feature \"raw_value\"'; seq 200000": 1, "exit 101": 101}.items():
            cargo.write_text(f"#!/bin/sh\nset -e\n{prints}\n")
            cargo.chmod(0o755)
            check = subprocess.run([REPOSITORY / "scripts/check-no-raw-value.sh"], env=environment, capture_output=True)
            self.assertEqual(check.returncode, outcome, prints)

    def test_every_file_of_tests_is_a_group_and_every_test_that_is_named_is_there(self):
        files = {file.stem for file in pathlib.Path(__file__).parent.glob("*.py") if "    def test_" in file.read_text()}
        self.assertEqual(files, set(run.GROUPS))
        self.assertLessEqual(set(run.LONGEST) | run.SPLIT | run.ALONE, files)
        for on_debian, tests in ((edges.EdgesOnDebian, edges.Edges), (edges_alone.EdgesAloneOnDebian, edges_alone.EdgesAlone)):
            self.assertLessEqual(on_debian.ITS_PART, set(dir(tests)))

    def test_groups_on_a_machine_of_many_cores_share_no_port_with_each_other_nor_with_the_crates(self):
        of_crates = (REPOSITORY / "crates/aegis-bus/tests/nats/port.rs").read_text()
        end_of_crates = int(re.search(r"OF_OTHERS: u16 = ([\d_]+);", of_crates)[1])
        for shares in (1, 2, 64):
            ports = []
            for share in range(shares):
                ports += self.ports_of(f"{share}/{shares}")
            self.assertEqual(len(ports), len(set(ports)))
            self.assertTrue(end_of_crates <= min(ports) and max(ports) < 32768)

    def test_groups_of_one_chain_share_no_port_with_another_chain_nor_with_each_other(self):
        jobs = 3
        ports = []
        for place in range(1, len(phases.SLOW)):
            with mock.patch.dict(os.environ, {"AEGIS_E2E_PORTS": phases.share_of_chain(place, len(phases.SLOW))}):
                of_groups = [nats.part_of_ports(group, jobs) for group in range(jobs)]
            ports += [port for share in of_groups for port in self.ports_of(share)]
        self.assertEqual(len(ports), len(set(ports)))
        self.assertGreater(len(ports), 0.99 * len(self.ports_of("0/1")))

    def ports_of(self, share):
        """On a machine whose clients have the usual ports."""
        with mock.patch.dict(os.environ, {"AEGIS_E2E_PORTS": share}), mock.patch.object(pathlib.Path, "read_text", lambda _: "32768\t60999"):
            return nats.own_ports()
