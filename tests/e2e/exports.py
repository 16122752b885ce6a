"""Exports: what an auditor gets verifies, and one changed byte is found and named."""

import base64
import json
import tempfile

from ed25519 import SigningKey
from harness import VERIFIER
from receipts import check_chain
from story import Story
from waiting import wait_until


class Evidence(Story):
    def test_an_export_verifies_and_one_changed_byte_is_found_and_named(self):
        for amount in range(5):
            self.agent.authorize(parameters={"amount": amount})
        exported = self.tenant.export()
        lines = [json.dumps(line) for line in exported]
        self.assertEqual(self.aegis.verify(lines)["verdict"], "valid")
        self.assertEqual(self.aegis.verify(lines, roots=False)["verdict"], "self-consistent")
        decided = [index for index, line in enumerate(exported) if line["kind"] == "authorize_decision"]
        index = decided[1]
        target, text = exported[index], lines[index]
        self.assertEqual(exported[index + 1]["lane"], target["lane"])

        def edited(old, new):
            self.assertIn(old, text)
            return lines[:index] + [text.replace(old, new, 1)] + lines[index + 1:]

        cases = {
            "the decision changed": (edited('"decision": "allow"', '"decision": "deny"'), target["seq"]),
            "an agent exchanged": (edited(target["agent_id"], target["agent_id"][:-1] + "x"), target["seq"]),
            "the hash changed": (edited(target["receipt_hash"], "0" * 64), target["seq"]),
            "the proof changed": (edited(target["proof"]["signature"][:8], "AAAAAAAA"), target["seq"]),
            "one receipt left out": (lines[:index] + lines[index + 1:], target["seq"] + 1),
            "two receipts exchanged": (lines[:index] + [lines[index + 1], text] + lines[index + 2:], target["seq"] + 1),
            "one receipt twice": (lines[:index] + [text, text] + lines[index + 1:], target["seq"]),
        }
        for name, (changed, seq) in cases.items():
            with self.subTest(name):
                report = self.aegis.verify(changed, expect=1)
                self.assertEqual((report["verdict"], report["failure"]["lane"], report["failure"]["seq"]), ("invalid", target["lane"], seq), report)
        with self.subTest("signed by somebody else"):
            stranger = base64.b64encode(SigningKey(b"s" * 32).public).decode()
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
                file.write("\n".join(lines))
                file.flush()
                said = self.aegis.cli(file.name, "--root", stranger, "--json", expect=1, program=VERIFIER)
            self.assertEqual(json.loads(said)["failure"]["code"], "unknown_key")
        with self.subTest("no export at all"):
            self.aegis.verify(["this is no receipt"], expect=2)
            self.aegis.verify([], expect=2)

    def test_the_export_over_http_is_the_export_of_the_command_line(self):
        self.agent.authorize()
        lines = self.assert_chained()
        hashes = {line["receipt_hash"] for line in lines}

        def over_http():
            text = self.tenant.get("/v1/receipts/export").text
            return {json.loads(line)["receipt_hash"] for line in text.splitlines()} >= hashes

        wait_until("the history has all receipts", over_http)
        for line in lines:
            verdict = self.tenant.get(f"/v1/receipts/{line['event_id']}/verify").expect(200)
            self.assertEqual((verdict["verdict"], verdict["checks"]["link"]), ("valid", "ok"), verdict)

    def test_an_export_has_one_tenant_s_receipts_only(self):
        other = self.aegis.tenant().register_tools()
        other.register_agent().authorize()
        self.agent.authorize()
        for tenant in (self.tenant, other):
            self.assertEqual({line["tenant_id"] for line in tenant.export()}, {tenant.name})

    def test_an_export_works_while_stopped_and_is_the_same(self):
        self.agent.authorize()
        running = {line["receipt_hash"] for line in self.tenant.export()}
        self.aegis.stop()
        stopped = self.tenant.export()
        self.assertLessEqual(running, {line["receipt_hash"] for line in stopped})
        check_chain(stopped)
        closed = [line["receipt"]["phase"] for line in stopped].count("close")
        self.assertGreaterEqual(closed, 1)
        self.aegis.start()
