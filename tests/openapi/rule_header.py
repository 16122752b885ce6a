"""docs/specs/rule-header.schema.json and the program's own reading of a rule's header: of every header, the shipped ones and many that are
wrong in one thing, both say the same. What `aegis rules lint --json` finds is also there as fields, and they say what its text says.
"""

import itertools
import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import jsonschema
import yaml
from harness import BINARY, CLEAN_ENVIRONMENT, REPOSITORY

SCHEMA = json.loads((REPOSITORY / "docs/specs/rule-header.schema.json").read_text(encoding="utf-8"))
# Its output has every column of events, and one that is named as the texts below are.
QUERY = 'SELECT *, agent_id AS "text" FROM events\n'
REQUIRED = {
    "id": "T-1",
    "name": "t",
    "version": 1,
    "severity": "low",
    "window": "10m",
    "key": ["agent_id"],
    "mode": "active",
    "owner": "test",
    "description": "a test",
    "false_positives": "none",
}
OPTIONAL = {
    "requires": "verified",
    "suppress": "1h",
    "respond": ["freeze_agent"],
    "atlas": ["AML.T0086"],
    "owasp": ["LLM02"],
    "runbook": "docs/runbooks/t.md",
}
LINE = {"version": 1, "date": "2026-11-26", "note": "first version"}
VALUES = [None, True, 7, 1.5, "text", "", "7", "true", [], ["text"], [7], [None], [[]], {}, {"a": 1}]
LEFT_OUT = object()

SPANS = ["1s", "60s", "86400s", "005s", "9999s", "10000s", "79999s", "1m", "1440m", "1h", "24h", "1d"]
NO_SPANS = ["0s", "000s", "86401s", "90000s", "100000s", "1441m", "25h", "2d", "-1s", "1.5m", "5", "s", "5w", "5 m", " 5m", "5m ", "5M", "٣s", "99999999999999999999s"]


class Core(yaml.SafeLoader):
    """YAML 1.2's core schema, by which the program and editors read: a date is a text there, and so are `yes` and `on`."""

    yaml_implicit_resolvers = {}


for tag, pattern, first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    Core.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)


def read(header):
    return yaml.load(header, Core)


def written(header):
    """The header as YAML, a key a line: JSON is YAML too."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in header.items())


def header(**changed):
    """A header that is in order, with something changed. The changelog follows the version."""
    version = changed.get("version", LEFT_OUT)
    whole = REQUIRED | {"changelog": [LINE | {"version": 1 if version is LEFT_OUT else version}]} | changed
    return {key: value for key, value in whole.items() if value is not LEFT_OUT}


def with_line(**changed):
    line = LINE | changed
    return header(changelog=[{key: value for key, value in line.items() if value is not LEFT_OUT}])


def mutations():
    """Headers as text: each differs from one that is in order in one thing, or in what belongs together."""
    yield from (header(**{key: LEFT_OUT}) for key in [*REQUIRED, "changelog"])
    yield from (header(**{key: value}) for key, value in OPTIONAL.items())
    yield header(**OPTIONAL)
    yield from (header(**{key: value}) for key in [*REQUIRED, *OPTIONAL, "changelog"] for value in VALUES)
    yield from (with_line(**{key: value}) for key in LINE for value in [LEFT_OUT, *VALUES] if (key, value) != ("version", 7))
    yield from (header(**{key: span}) for key in ("window", "suppress") for span in [*SPANS, *NO_SPANS])
    yield from (header(version=version) for version in (0, -1, 2**32 - 1, 2**32, 10**30))
    yield from (header(id=word) for word in ("a", "A_b-9", "a" * 64, "a" * 65, "a b", "a.b", "ä", "a/b"))
    yield from (header(name=word) for word in ("a", "a-9", "a" * 64, "a" * 65, "A", "a_b", "ä"))
    yield from (header(key=key) for key in (["agent_id", "agent_id"], ["agent_id", "tool"], ["agent_id", ""]))
    columns = ["agent_id", "token_id", "tenant_id", "edge_id", "lane", "environment", "tool", "action", "kind"]
    yield from (header(key=columns[:count]) for count in range(10))
    yield from (header(severity=word) for word in ("info", "medium", "high", "critical", "LOW", "severe"))
    yield from (header(mode=word) for word in ("disabled", "log_only", "on", "Active"))
    yield from (header(**{key: "x"}) for key in ("mystery", "Id", "responds"))
    yield with_line(who="me")
    yield header(changelog=[LINE, LINE | {"version": 0}])
    yield header(changelog=[LINE, "text"])
    yield header(changelog=LINE)
    responses = ["freeze_agent", "quarantine_agent", "quarantine_mcp_server", "reboot"]
    respond = [[], *([one] for one in responses), ["freeze_agent", "freeze_agent"], ["quarantine_agent", "quarantine_mcp_server"]]
    keys = (["agent_id"], ["tool"], ["agent_id", "tool"], ["edge_id"])
    for respond, requires, key in itertools.product(respond, (LEFT_OUT, None, "verified", "any"), keys):
        yield header(respond=respond, requires=requires, key=key)


# As a person writes them: plain words, and what YAML takes for something else.
PLAIN = [f"{key}: {word}\n" for key in ("owner", "id", "runbook", "suppress") for word in ("soc", "yes", "12", "1.5", "true", "null", "~", "2026-11-26", "10m", "")]


def texts():
    yield from (written(one) for one in mutations())
    for plain in PLAIN:
        key = plain.split(":")[0]
        yield written(header(**{key: LEFT_OUT})) + plain


def lint(headers):
    """What lint says of rules with these headers: one answer each, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(headers):
            file = pathlib.Path(folder) / f"{number:04}" / "rule.sql"
            file.parent.mkdir()
            file.write_text(f"/* rule\n{text}*/\n{QUERY}", encoding="utf-8")
        done = subprocess.run([BINARY, "rules", "lint", "--json", folder], capture_output=True, text=True, timeout=300, env=CLEAN_ENVIRONMENT)
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["ok"] else 1), done
    return answer["files"]


class RuleHeader(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.validator = jsonschema.Draft202012Validator(SCHEMA)

    def complaints(self, text):
        return [f"{error.json_path}: {error.message[:200]}" for error in self.validator.iter_errors(read(text))]

    def test_it_is_a_schema_and_the_program_prints_it(self):
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        printed = subprocess.run([BINARY, "rules", "schema"], capture_output=True, text=True, timeout=60, env=CLEAN_ENVIRONMENT, check=True)
        self.assertEqual(json.loads(printed.stdout), SCHEMA)

    def test_it_takes_every_shipped_rule(self):
        rules = sorted((REPOSITORY / "rules").glob("*/rule.sql"))
        self.assertGreaterEqual(len(rules), 29)
        for rule in rules:
            with self.subTest(rule.parent.name):
                text = rule.read_text(encoding="utf-8").removeprefix("/* rule\n").split("*/")[0]
                self.assertEqual(self.complaints(text), [])

    def test_it_says_of_each_header_what_the_program_says(self):
        headers = list(texts())
        verdicts = set()
        for text, answer in zip(headers, lint(headers), strict=True):
            complaints = self.complaints(text)
            verdicts.add(answer["ok"])
            with self.subTest(text):
                self.assertEqual(complaints == [], answer["ok"], f"the schema: {complaints}; the program: {answer.get('error')}")
        self.assertEqual(verdicts, {True, False})

    def test_what_a_schema_cannot_say_the_program_says(self):
        for beyond, code in ((header(changelog=[LINE | {"version": 2}]), "RULE_HEADER"), (header(key=["no_column"]), "RULE_KEY")):
            text = written(beyond)
            self.assertEqual(self.complaints(text), [])
            self.assertEqual(lint([text])[0]["finding"]["code"], code)

    def test_a_finding_s_fields_say_what_its_text_says(self):
        for answer in lint(texts()):
            if answer["ok"]:
                self.assertNotIn("finding", answer)
                continue
            finding = answer["finding"]
            self.assertEqual(set(finding), {"code", "line", "column", "message", "hint"})
            self.assertEqual(finding["line"] is None, finding["column"] is None)
            place = f":{finding['line']}:{finding['column']}" if finding["line"] else ""
            hint = f"\n  hint: {finding['hint']}" if finding["hint"] else ""
            self.assertEqual(answer["error"], f"{answer['file']}{place}: {finding['code']}: {finding['message']}{hint}")
            self.assertRegex(finding["code"], "^RULE_[A-Z_]+$")

    def test_a_missing_file_is_a_finding_without_a_place(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "rule.sql"
            file.write_bytes(b"/* rule\n\xff\n*/")
            done = subprocess.run([BINARY, "rules", "lint", "--json", folder], capture_output=True, text=True, timeout=60, env=CLEAN_ENVIRONMENT)
        finding = json.loads(done.stdout)["files"][0]["finding"]
        self.assertEqual((finding["code"], finding["line"], finding["column"], finding["hint"]), ("RULE_FILE", None, None, None))

    def test_the_shipped_rules_are_linted_as_json_too(self):
        done = subprocess.run([BINARY, "rules", "lint", "--json"], capture_output=True, text=True, timeout=60, env=CLEAN_ENVIRONMENT, check=True)
        answer = json.loads(done.stdout)
        self.assertTrue(answer["ok"])
        self.assertEqual(len(answer["files"]), len(list((REPOSITORY / "rules").glob("*/rule.sql"))))
