"""`aegis policy simulate`: what policies would decide about calls on record, told before they run."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from harness import BINARY, CLEAN_ENVIRONMENT

TOOLS = [{"tool": "bank", "name": "Bank", "default_risk": "high", "actions": [
    {"action": "pay", "risk": "high", "mutates_state": True, "approval_required": False, "default_decision": "policy",
     "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}}}]}]
STRICT = '@id("big-payments") @reason("large payments are forbidden")\nforbid (principal, action == Action::"bank/pay", resource)\nwhen { context has parameters && context.parameters has amount && context.parameters.amount > 1000 };\n'


def call(amount, trust="trusted_internal_unsigned"):
    return {"tenant_id": "acme", "agent_id": "payer", "tool": "bank", "action": "pay", "registered_mutates": True, "mutates_state": True,
            "trust_level": trust, "root_trust": trust, "environment": "production", "parameters": {"amount": amount}}


class Simulate(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.file("tools.json", json.dumps(TOOLS))
        self.file("strict.cedar", STRICT)
        self.file("calls.jsonl", "".join(json.dumps(c) + "\n" for c in (call(5), call(5000), call(5, "untrusted_external"))))

    def file(self, name, text):
        (self.folder / name).write_text(text)

    def simulate(self, *arguments, stdin=""):
        command = [BINARY, "policy", "simulate", "--tools", "tools.json", *arguments]
        return subprocess.run(command, cwd=self.folder, input=stdin, capture_output=True, text=True, timeout=300, env=CLEAN_ENVIRONMENT)

    def test_what_would_change_is_told_call_by_call(self):
        done = self.simulate("strict.cedar", "--calls", "calls.jsonl")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = done.stdout.splitlines()
        self.assertEqual(lines[-1], "3 calls: 1 allow, 2 deny, 0 require_approval; 1 would be decided otherwise than now")
        self.assertEqual(len(lines), 2)
        self.assertRegex(lines[0], r"^call 2: bank/pay by payer: allow -> deny \(large payments are forbidden; policies: .*big-payments.*\)$")

    def test_nothing_changes_against_the_same_policies(self):
        done = self.simulate("strict.cedar", "--running", "strict.cedar", "--calls", "-", stdin=json.dumps(call(5000)))
        self.assertEqual(done.stdout, "1 calls: 0 allow, 1 deny, 0 require_approval; 0 would be decided otherwise than now\n", done.stderr)

    def test_each_call_is_one_json_object(self):
        done = self.simulate("strict.cedar", "--calls", "calls.jsonl", "--json")
        outcomes = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([(o["call"], o["outcome"]["decision"]) for o in outcomes], [(1, "allow"), (2, "deny"), (3, "deny")])
        self.assertEqual([o["changed_from"] and o["changed_from"]["decision"] for o in outcomes], [None, "allow", None])

    def test_a_call_that_no_policy_is_asked_about_is_said(self):
        stranger = call(5) | {"action": "transfer"}
        done = self.simulate("strict.cedar", "--calls", "-", stdin=json.dumps(stranger))
        self.assertIn("1 of them name an action that --tools does not register", done.stdout)

    def test_the_packs_of_a_folder_take_the_place_of_the_shipped_ones(self):
        (self.folder / "packs").mkdir()
        self.file("packs/open.cedar", '@id("open")\npermit (principal, action, resource);\n')
        done = self.simulate("--packs", "packs", "--calls", "calls.jsonl")
        self.assertTrue(done.stdout.startswith("3 calls: 3 allow, 0 deny"), done)

    def test_bad_input_is_named_with_its_place(self):
        self.file("broken.cedar", "permit (principal")
        self.file("twice.jsonl", json.dumps(call(1)) + '\n{"tenant_id": "acme", "tenant_id": "beta"}\n')
        self.file("misspelt.jsonl", json.dumps(call(1) | {"source_trust": "unknown"}) + "\n")
        self.file("short.jsonl", '{"tenant_id": "acme"}\n')
        cases = [(1, ["broken.cedar", "--calls", "calls.jsonl"], "broken.cedar"), (2, ["--calls", "twice.jsonl"], "twice.jsonl, line 2"),
                 (2, ["--calls", "short.jsonl"], "short.jsonl, line 1"), (2, ["--calls", "missing.jsonl"], "missing.jsonl"), (2, ["--calls", "misspelt.jsonl"], "source_trust")]
        for code, arguments, named in cases:
            with self.subTest(arguments=arguments):
                done = self.simulate(*arguments)
                self.assertEqual((done.returncode, done.stdout), (code, ""))
                self.assertIn(named, done.stderr)
