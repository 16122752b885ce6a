"""What runs the tests swallows no failure: of a group, of a phase of `make test`, of a check that asks cargo; and leaves no test out unsaid."""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

import beside
import edges
import nats
import printer
import run
from behind import Behind
from harness import REPOSITORY
from unfelt import assert_not_felt

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

    def test_a_phase_that_fails_fails_all_and_ends_both_chains(self):
        spec = importlib.util.spec_from_file_location("phases", REPOSITORY / "scripts/phases.py")
        phases = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(phases)
        codes = {"good": 0, "bad": 7, "slow": 0}
        waits = {"slow": "sleep 1; "}
        phases.phase = lambda name, _: Behind(name, ["sh", "-c", f"{waits.get(name, '')}exit {codes[name]}"])
        took, failed = [], []
        with contextlib.redirect_stdout(io.StringIO()):
            phases.run([["good", "bad", "never"], ["slow", "never"]], self.folder, took, failed)
        self.assertEqual(failed, ["bad"])
        self.assertEqual({name for name, _ in took}, {"good", "bad", "slow"}, "what ran goes to its end, and nothing begins behind it")

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
        self.assertLessEqual(edges.EdgesOnDebian.ITS_PART, set(dir(edges.Edges)))

    def test_groups_on_a_machine_of_many_cores_share_no_port_with_each_other_nor_with_the_crates(self):
        of_crates = (REPOSITORY / "crates/aegis-bus/tests/nats/port.rs").read_text()
        end_of_crates = int(re.search(r"OF_OTHERS: u16 = ([\d_]+);", of_crates)[1])
        for shares in (1, 2, 64):
            ports = []
            for share in range(shares):
                with mock.patch.dict(os.environ, {"AEGIS_E2E_PORTS": f"{share}/{shares}"}), mock.patch.object(pathlib.Path, "read_text", lambda _: "32768\t60999"):
                    ports += nats.own_ports()
            self.assertEqual(len(ports), len(set(ports)))
            self.assertTrue(end_of_crates <= min(ports) and max(ports) < 32768)
