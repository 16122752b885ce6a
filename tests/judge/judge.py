"""Every shipped rule without a row pattern, and random rules, over random histories, by two engines: DuckDB by the letter of the specification,
one query for each tenant and instant, and the program, which must find the same alerts in one batch and event by event. What side tables and
`alerts` say DuckDB tells from the same history; what each side table says of each event is compared by itself."""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import duckdb

from database import START_US, fill, fill_alerts, open_database, rows_at
from histories import apart, exactly, history, near, tests_of, together
from queries import COLUMNS, columns, random_rules
from rule import Rule
from told import alerts, ask_program, expected, numbers, test_file

RULES = Path(__file__).resolve().parents[2] / "rules"
SIZES = [15, 40, 80]
"""Events of a history that is made of none of a rule's tests."""
SIZES_OF_RANDOM = [15, 30, 50]
HISTORIES_OF_A_RANDOM_RULE = 3
HISTORIES_OF_A_TABLE = 24
TRIES = 3
"""So many histories of a random rule of which it says nothing, and another rule is made."""
MOST_REFUSED, MOST_SILENT = 0.1, 0.5
"""Shares of the random rules that may be refused, and that may raise nothing: with more, little is judged."""


def matches(database, rule, events, sources, fields=None):
    """The rule's match set: for each instant the rows whose last evidence is at it, as (tenant, key, instant, evidence). `sources` are the rules
    whose alerts it may read. `fields` is told what of each evidence is compared too."""
    if rule.reads_alerts:
        read = [sources[name] for name in rule.sources()]
        told = [(source, *alert) for source in read for alert in alerts(source, matches(database, source, events, sources))]
        fill_alerts(database, told)
        seen = {(tenant, evidence[-1][0][0]) for _, tenant, _, evidence in told}
    else:
        seen = {(event["tenant_id"], START_US + event["ms"] * 1000) for event in events}
    order = fill(database, events, bool(rule.sides))
    found = set()
    # Where the frames end after their row, each row is decided once all that they take in has come: over the whole log. So are rows that see no other.
    at_once = rule.waits or rule.fields
    looks = [(tenant, 0, 1 << 60) for tenant in ("t1", "t2")] if at_once else [(t, at - rule.window, at) for t, at in sorted(seen)]
    for tenant, first, instant in looks:
        columns, rows = rows_at(database, rule, tenant, first, instant)
        for values in rows:
            row = dict(zip(columns, values, strict=True))
            if any(row[name] is None for name in rule.key):
                continue
            listed = (row["event_ids"] or []) if "event_ids" in row else [row["event_id"]]
            evidence = sorted({order[i] for i in listed if i is not None})
            if evidence and (at_once or evidence[-1][0][0] == instant):
                found.add((tenant, tuple(row[name] for name in rule.key), evidence[-1][0][0], tuple(evidence)))
                if fields is not None:
                    fields[tuple(evidence)] = {name: as_told(row[name]) for name in rule.fields if row[name] is not None}
    return found


def as_told(value):
    """A value as an alert tells it."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value


class Task:
    """A rule that is to be judged: over how many histories, and what they are made of."""

    def __init__(self, rule, histories, sources, own_tests=(), tests_of_sources=()):
        self.rule, self.histories, self.sources = rule, histories, sources
        self.own_tests, self.tests_of_sources = own_tests, tests_of_sources

    def run(self, database, seed, folder):
        """Writes the rule below the folder, with its histories as tests, and the alerts that DuckDB says each must raise. Answers how many those are."""
        rule, counts = self.rule, []
        tests = folder / rule.name / "tests"
        tests.mkdir(parents=True)
        (tests.parent / "rule.sql").write_text(rule.text, encoding="utf-8")
        for number in range(self.histories):
            rng = numbers(seed, rule.name, number)
            events = exactly(self.own_tests[0]) if self.own_tests and number == 0 else self.make(rng)
            events = apart(events) if rule.reads_alerts else events
            fields = {}
            found = matches(database, rule, events, self.sources, fields)
            expect = expected(rule, found, fields)
            counts.append(len(expect))
            (tests / f"h{number}.yaml").write_text(test_file(f"history {number}", events, expect), encoding="utf-8")
        return {rule.name: counts}

    def make(self, rng):
        """Half of the histories are made of the rule's own tests: few others say anything of a rule that counts to a hundred. Of a rule on rules they
        are made of the tests of those, most of them."""
        if self.tests_of_sources and rng.random() < 0.8:
            return together(rng, self.tests_of_sources)
        if self.own_tests and rng.random() < 0.5:
            return near(rng, self.rule, self.own_tests)
        return history(rng, self.rule, rng.choice(SIZES_OF_RANDOM if is_random(self.rule.name) and not self.rule.fields else SIZES))


class RandomTask:
    """A random rule that is to be judged, and maybe one that reads its alerts."""

    def __init__(self, number):
        self.number = number

    def run(self, database, seed, folder):
        rng = numbers(seed, "rule", self.number)
        kept = []

        def says_something(rule):
            """True of a rule of whose histories some raise alerts: those are kept, to be judged first."""
            kept[:] = []
            for _ in range(TRIES):
                events = history(rng, rule, rng.choice(SIZES_OF_RANDOM))
                if matches(database, rule, events, {}):
                    kept.append(events)
                    break
            return bool(kept)

        rules = random_rules(rng, self.number, says_something)
        found = {}
        for rule in rules:
            sources = {name: rules[0] for name in rule.sources()}
            # Histories of which the source has something to say.
            of_sources = [kept + [history(rng, rules[0], 30) for _ in range(2)]] if sources else []
            found |= Task(rule, HISTORIES_OF_A_RANDOM_RULE, sources, kept, of_sources).run(database, seed, folder)
        return found


def shipped(names, histories):
    """The shipped rules of these names, or all."""
    rules = {rule.name: rule for rule in (Rule(file.read_text(encoding="utf-8")) for file in sorted(RULES.glob("*/rule.sql")))}
    tests = {name: tests_of(RULES / name) for name in rules}
    tasks = []
    for name, rule in rules.items():
        if names and name not in names:
            continue
        if "MATCH_RECOGNIZE" in rule.query:
            print(f"left    {name}: a row pattern, which DuckDB has not")
            continue
        of_sources = [tests[source] for source in rule.sources() if tests[source]]
        tasks.append(Task(rule, histories, {source: rules[source] for source in rule.sources()}, tests[name], of_sources))
    return tasks


DATABASE = []
"""That of a process."""


def work(task, seed, folder):
    if not DATABASE:
        DATABASE.append(open_database())
    return task.run(DATABASE[0], seed, folder)


def is_random(name):
    return name.startswith("random-")


def options_of():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", help="names of shipped rules, which alone are judged; all and random ones where none is named")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("AEGIS_SEED", random.SystemRandom().randrange(1 << 32))))
    parser.add_argument("--histories", type=int, default=6, help="histories of each shipped rule (default 6)")
    parser.add_argument("--random", type=int, default=24, help="random rules (default 24), beside those that read the alerts of some")
    parser.add_argument("--keep", type=Path, help="a folder for the tests that differed")
    options = parser.parse_args()
    options.random = 0 if options.rules else options.random
    return options


def judge(tasks, options, folder):
    """How many histories were judged, how many differ, and which rules raised nothing. Says of each rule how it went."""
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        counted = {name: counts for found in pool.map(work, tasks, repeat(options.seed), repeat(folder)) for name, counts in found.items()}
    answers, refused = ask_program(os.environ["AEGIS_BIN"], folder)
    verdict = Counter()
    quiet = []
    for name, counts in counted.items():
        verdict["random"] += is_random(name)
        if name in refused and is_random(name):
            print(f"left    {name} is refused: {refused[name]}")
            verdict["refused"] += 1
            continue
        wrong = {n: answers.get((name, f"h{n}"), [refused.get(name, "the program did not run it")]) for n in range(len(counts))}
        wrong = {n: failures for n, failures in wrong.items() if failures}
        verdict["judged"] += len(counts)
        verdict["failed"] += len(wrong)
        if not any(counts):
            quiet.append(name)
        print(f"{'FAIL' if wrong else 'ok  '}    {name}: {sum(counts)} alerts in {len(counts)} histories")
        for number, failures in wrong.items():
            for failure in failures[:4]:
                print(f"        history {number}: {failure}")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name / "tests" / f"h{number}.yaml", options.keep / f"{name}-h{number}.yaml")
                shutil.copy(folder / name / "rule.sql", options.keep / f"{name}.sql")
    return verdict, quiet


def main():
    options = options_of()
    said = f"{options.histories} histories of each rule, {options.random} random rules"
    print(f"judge: DuckDB {duckdb.__version__}, {said}, AEGIS_SEED={options.seed}", flush=True)
    tasks = shipped(options.rules, options.histories) + [RandomTask(number) for number in range(options.random)]
    if options.random:
        tasks += [Task(columns(table), HISTORIES_OF_A_TABLE, {}) for table in COLUMNS]
    with tempfile.TemporaryDirectory() as folder:
        verdict, quiet = judge(tasks, options, Path(folder))
    silent = sum(map(is_random, quiet))
    quiet = [name for name in quiet if not is_random(name)]
    if quiet:
        print(f"judge: no history raised an alert of {', '.join(quiet)}: nothing was judged there")
    idle = verdict["refused"] > verdict["random"] * MOST_REFUSED or silent > verdict["random"] * MOST_SILENT
    if verdict["random"]:
        print(f"judge: of {verdict['random']} random rules {verdict['refused']} are refused, and {silent} raised no alert")
    if idle:
        print("judge: too many random rules judge nothing: the generator makes what is refused, or what never matches")
    print(f"judge: {verdict['judged']} histories judged, {verdict['failed']} differ")
    sys.exit(1 if verdict["failed"] or quiet or idle or not verdict["judged"] else 0)


if __name__ == "__main__":
    main()
