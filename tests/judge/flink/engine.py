"""The program's side: `aegis sql` over rows of its own, and rules with their tests."""

import json
import os
import subprocess

TYPES = {"p": "VARCHAR", "q": "VARCHAR", "n": "BIGINT", "at_ms": "BIGINT", "event_id": "VARCHAR", "tool": "VARCHAR", "decision": "VARCHAR",
         "risk_score": "BIGINT", "mutates_state": "BOOLEAN"}  # fmt: skip


class Engine:
    def __init__(self, folder):
        self.program, self.data = os.environ["AEGIS_BIN"], folder / "data"
        # The lake of a tenant that has no rows: what is asked stands in the query.
        (self.data / "lake" / "tenant=t").mkdir(parents=True)

    def ask(self, query, rows, names):
        """The rows that it answers, each a list of the columns of these names; what it says instead is raised."""
        text = f"WITH input({', '.join(TYPES)}) AS (VALUES {', '.join(map(literals, rows))})\n{query}"
        command = [self.program, "sql", "-", "--data", str(self.data), "--tenant", "t", "--json"]
        asked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if asked.returncode:
            raise Refused(asked.stderr.strip())
        return [[row.get(name) for name in names] for row in map(json.loads, asked.stdout.splitlines())]

    def shapes(self, folder):
        """Which way each rule of a folder runs: its shape, and what a pattern's conditions read."""
        linted = subprocess.run([self.program, "rules", "lint", str(folder), "--json"], capture_output=True, text=True, check=False)
        ways = []
        for file in json.loads(linted.stdout)["files"]:
            report = file.get("report", {})
            reads = report.get("pattern", {}).get("conditions", "")
            ways.append(f"{report.get('shape', 'refused')} {reads}".strip())
        return ways


class Refused(Exception):
    """What the program says of a query that it does not run."""


def literals(row):
    return "(" + ", ".join(f"CAST({literal(row[name])} AS {kind})" for name, kind in TYPES.items()) + ")"


def literal(value):
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value).lower()
