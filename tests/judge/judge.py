"""Every shipped rule without a row pattern, over random histories, by two engines: DuckDB by the letter of the specification, one query for
each tenant and instant, and the program, which must find the same alerts in one batch and event by event."""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

from histories import VOCABULARY, event_id, exactly, history, near, tests_of

RULES = Path(__file__).resolve().parents[2] / "rules"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
START_US = 1_767_225_600_000_000
"""Time zero of a rule test, 2026-01-01."""
MOST_EVIDENCE = 64
"""Of a longer list than twice as many, so many of both ends are evidence."""
SIZES = [15, 40, 80]
"""Events of a history that is made of none of a rule's tests."""
SIDE_COLUMNS = re.compile(r"\b(first_seen|baseline|registry)_|\bFROM alerts\b")
UNSET = ["ref_event_id", "root_trust", "trace_id", "receipt_hash", "source", "attributes"]
"""Columns that are null in every history."""
BOOLEANS = {"mutates_state", "contains_sensitive_data", "clock_suspect", "verified"}


class Rule:
    """A rule file: what of its header the judge needs, and its query in DuckDB's words."""

    def __init__(self, folder):
        self.folder = folder
        self.text = (folder / "rule.sql").read_text(encoding="utf-8")
        header, self.query = re.match(r"/\* rule\n(.*?)\*/\n(.*)", self.text, re.S).groups()
        line = dict(re.findall(r"^(\w+): *([^#\n]*)", header, re.M))
        self.window = span(line["window"])
        self.suppress = span(line["suppress"]) if line.get("suppress") else None
        self.key = re.findall(r"\w+", line["key"])
        contains = bool(re.findall(r"\w+", line.get("respond", "")))
        self.verified = line.get("requires", "verified" if contains else "any").strip() == "verified"
        self.waits = "FOLLOWING" in self.query
        # DuckDB has no cast from a time to its microseconds, and other names for two functions (see `open_database`).
        self.sql = re.sub(r"CAST\(ts AS BIGINT\)", "epoch_us(ts)", self.query)


def span(text):
    """Microseconds."""
    number, unit = re.fullmatch(r"(\d+)([smhd])", text.strip()).groups()
    return int(number) * UNITS_S[unit] * 1_000_000


def open_database():
    """A database whose view `events` is what the query of one tenant sees at one instant."""
    database = duckdb.connect()
    database.execute("SET threads = 1")
    database.execute("SET TimeZone = 'UTC'")
    columns = ["event_id VARCHAR", "tenant_id VARCHAR", "ts TIMESTAMPTZ", "us BIGINT", "lane VARCHAR", "seq BIGINT", "kind VARCHAR"]
    columns += [f"{name} {'BOOLEAN' if name in BOOLEANS else 'VARCHAR'}" for name in VOCABULARY]
    columns += [f"{name} VARCHAR" for name in UNSET]
    database.execute(f"CREATE TABLE log ({', '.join(columns)})")
    database.execute("CREATE MACRO make_array(a, b) AS [a, b]")
    database.execute(
        "CREATE VIEW events AS SELECT * EXCLUDE (us) FROM log WHERE tenant_id = getvariable('tenant') "
        "AND us BETWEEN getvariable('first') AND getvariable('last') AND (verified OR NOT getvariable('verified'))"
    )
    return database


def fill(database, events):
    """Makes these events the log. Answers each id's place in the order of events with its label."""
    database.execute("DELETE FROM log")
    names = ["event_id", "tenant_id", "us", "lane", "seq", "kind", *VOCABULARY]
    rows, order = [], {}
    for event in events:
        us = START_US + event["ms"] * 1000
        row = dict(event, event_id=event_id(event["tenant_id"], event["id"]), us=us)
        rows.append([row[name] for name in names])
        # Nulls come first.
        place = (us, event["lane"] or "", event["seq"] or 0, row["event_id"])
        order[row["event_id"]] = (place, event["id"])
    marks = ", ".join("?" for _ in names)
    database.executemany(f"INSERT INTO log ({', '.join(names)}, ts) SELECT {', '.join('x.' + n for n in names)}, make_timestamptz(x.us) "
                         f"FROM (VALUES ({marks})) AS x({', '.join(names)})", rows)
    return order


def rows_at(database, rule, tenant, first, last):
    """What the query answers over a tenant's events of that time: names of columns, and rows."""
    for name, value in (("tenant", tenant), ("first", first), ("last", last), ("verified", rule.verified)):
        database.execute(f"SET VARIABLE {name} = {sql_text(value)}")
    result = database.execute(rule.sql)
    return [column[0] for column in result.description], result.fetchall()


def matches(database, rule, events):
    """The rule's match set: for each instant the rows whose last evidence is at it, as (tenant, key, instant, evidence)."""
    order = fill(database, events)
    found = set()
    seen = {(event["tenant_id"], START_US + event["ms"] * 1000) for event in events}
    # Where the frames end after their row, each row is decided once all that they take in has come: over the whole log.
    looks = [(tenant, 0, 1 << 60) for tenant in ("t1", "t2")] if rule.waits else [(t, at - rule.window, at) for t, at in sorted(seen)]
    for tenant, first, instant in looks:
        columns, rows = rows_at(database, rule, tenant, first, instant)
        for values in rows:
            row = dict(zip(columns, values, strict=True))
            if any(row[name] is None for name in rule.key):
                continue
            listed = row["event_ids"] if "event_ids" in row else [row["event_id"]]
            evidence = sorted({order[i] for i in listed if i is not None})
            if evidence and (rule.waits or evidence[-1][0][0] == instant):
                found.add((tenant, tuple(row[name] for name in rule.key), evidence[-1][0][0], tuple(evidence)))
    return found


def make(rule, tests, rng):
    """Half of the histories are made of the rule's own tests: few others say anything of a rule that counts to a hundred."""
    if tests and rng.random() < 0.5:
        return near(rng, rule.query, tests)
    return history(rng, rule.query, rng.choice(SIZES))


def sql_text(value):
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return f"'{value}'" if isinstance(value, str) else f"{value}::BIGINT"


def alerts(rule, found):
    """The alerts of a match set: the first match of each episode, one for each first evidence."""
    by_key = {}
    for tenant, key, instant, evidence in found:
        ends = (instant, (evidence[0][0][0], evidence[0][0][3]), (evidence[-1][0][0], evidence[-1][0][3]))
        by_key.setdefault((tenant, key), []).append((ends, evidence))
    told = []
    for (tenant, key), of_key in sorted(by_key.items()):
        begin, first_of_all, ids = None, None, set()
        for (instant, first, _), evidence in sorted(of_key):
            joins = begin is not None and (instant < begin + rule.suppress if rule.suppress else first == first_of_all)
            if joins:
                continue
            begin, first_of_all = instant, first
            if first not in ids:
                ids.add(first)
                labels = [label for _, label in evidence]
                if len(labels) > 2 * MOST_EVIDENCE:
                    labels = labels[:MOST_EVIDENCE] + labels[-MOST_EVIDENCE:]
                told.append({"tenant": tenant, "key": dict(zip(rule.key, key, strict=True)), "evidence": labels})
    return told


def test_file(name, events, expect):
    """A rule test; JSON is YAML."""
    written = []
    for event in events:
        columns = {k: v for k, v in event.items() if k not in ("ms", "lane", "seq")}
        written.append({"at": f"{event['ms']}ms", **columns})
    return json.dumps({"name": name, "events": written, "expect": expect})


def ask_program(program, folder):
    """What the program says of the tests of a folder of rules: (rule, file) to failures."""
    result = subprocess.run([program, "rules", "test", str(folder), "--json"], capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        sys.exit(f"judge: `aegis rules test` ended with {result.returncode}: {result.stderr.strip()}")
    answers = {}
    for rule in json.loads(result.stdout)["rules"]:
        for test in rule["tests"]:
            answers[rule["rule"], Path(test["file"]).stem] = test["failures"]
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", help="names of rules; all where none is named")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("AEGIS_SEED", random.SystemRandom().randrange(1 << 32))))
    parser.add_argument("--histories", type=int, default=8, help="histories of each rule (default 8)")
    parser.add_argument("--keep", type=Path, help="a folder for the tests that differed")
    options = parser.parse_args()
    print(f"judge: DuckDB {duckdb.__version__}, {options.histories} histories of each rule, AEGIS_SEED={options.seed}")
    folders = sorted(f.parent for f in RULES.glob("*/rule.sql") if not options.rules or f.parent.name in options.rules)
    database = open_database()
    failed, quiet, judged = 0, [], 0
    with tempfile.TemporaryDirectory() as scratch:
        counts = {}
        for folder in folders:
            rule = Rule(folder)
            if "MATCH_RECOGNIZE" in rule.query:
                print(f"left    {folder.name}: a row pattern, which DuckDB has not")
                continue
            if SIDE_COLUMNS.search(rule.query):
                print(f"left    {folder.name}: a column of a side table, which looks back further than these histories go")
                continue
            own_tests = tests_of(folder)
            tests = Path(scratch, folder.name, "tests")
            tests.mkdir(parents=True)
            shutil.copy(folder / "rule.sql", tests.parent)
            for number in range(options.histories):
                rng = random.Random(f"{options.seed} {folder.name} {number}")
                events = exactly(own_tests[0]) if own_tests and number == 0 else make(rule, own_tests, rng)
                expect = alerts(rule, matches(database, rule, events))
                counts.setdefault(folder.name, []).append(len(expect))
                (tests / f"h{number}.yaml").write_text(test_file(f"history {number}", events, expect), encoding="utf-8")
        answers = ask_program(os.environ["AEGIS_BIN"], scratch)
        for name, expected in counts.items():
            wrong = {n: answers.get((name, f"h{n}"), ["the program did not run it"]) for n in range(options.histories)}
            wrong = {n: failures for n, failures in wrong.items() if failures}
            judged += len(expected)
            failed += len(wrong)
            if not any(expected):
                quiet.append(name)
            print(f"{'FAIL' if wrong else 'ok  '}    {name}: {sum(expected)} alerts in {len(expected)} histories")
            for number, failures in wrong.items():
                for failure in failures[:4]:
                    print(f"        history {number}: {failure}")
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(Path(scratch, name, "tests", f"h{number}.yaml"), options.keep / f"{name}-h{number}.yaml")
    if quiet:
        print(f"judge: no history raised an alert of {', '.join(quiet)}: nothing was judged there")
    print(f"judge: {judged} histories judged, {failed} differ")
    sys.exit(1 if failed or quiet or not judged else 0)


if __name__ == "__main__":
    main()
