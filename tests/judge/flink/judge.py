"""Random row patterns by two engines: Apache Flink, and the program, as a query over a table (`aegis sql`) and as a rule (`aegis rules test`, in one
batch and event by event). Both must find the same matches: their first and last row, how many rows each variable has, and measures.

As a rule, what Flink is given is what the rule sees at each instant (docs/specs/detection-rule.md): a partition for each."""

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import engine  # noqa: E402
import outside  # noqa: E402
import rows  # noqa: E402
from flink import Flink, library  # noqa: E402
from histories import event_id, with_places  # noqa: E402
from patterns import MUTATIONS, WHERE, mutated, random_pattern  # noqa: E402
from queries import HEADER  # noqa: E402
from rule import Rule  # noqa: E402
from told import ask_program, expected, numbers, test_file  # noqa: E402

WINDOWS_S = [2, 4, 8]
MOST_SILENT = 0.5
"""Share of the patterns that may have no match: with more, little is judged."""
TRIES_OF_A_MUTATION = 40
TRIES_OF_A_SHRINKING = 40
MUTATED_RULES = 12


class TableCase:
    """A pattern over a table of its own."""

    def __init__(self, name, seed):
        self.name, rng = name, numbers(seed, name)
        self.pattern, self.items = random_pattern(rng, False), rows.table(rng)

    def asked_of_flink(self):
        return self.pattern.flink_sql, self.items

    def told_by_flink(self, answer):
        return Counter(map(json.dumps, answer))

    def narrow(self, differences):
        """Leaves out the partitions in which nothing differs first."""
        p, q = json.loads(differences[0].partition(": ")[2])[:2]
        self.items = [row for row in self.items if (row["p"], row["q"]) == (p, q)]

    def told_by_engine(self, machine, pattern=None):
        asked = pattern or self.pattern
        return Counter(map(json.dumps, machine.ask(asked.engine_sql(), self.items, ["p", "q", *asked.columns()])))

    def told_or_refused(self, machine):
        try:
            return self.told_by_engine(machine)
        except engine.Refused as said:
            return Counter([str(said)])

    def differs(self, machine, flink):
        """What either tells that the other does not."""
        if not self.items:
            return []
        theirs, own = self.told_by_flink(flink.ask(*self.asked_of_flink())), self.told_or_refused(machine)
        return [f"Flink alone: {row}" for row in theirs - own] + [f"the engine alone: {row}" for row in own - theirs]

    def show(self):
        columns = ["p", "q", "n", "at_ms", "event_id", *rows.COLUMNS]
        ordered = sorted(self.items, key=lambda row: (str(row["p"]), str(row["q"]), row["at_ms"], row["n"]))
        table = [columns] + [[row[name] for name in columns] for row in ordered]
        return "\n".join([self.pattern.engine_sql(), self.pattern.flink_sql("rows"), *(" ".join(map(str, line)) for line in table)])


class RuleCase:
    """A pattern as a rule over a history of its own."""

    def __init__(self, name, seed):
        self.name, rng = name, numbers(seed, name)
        self.pattern, self.window_s = random_pattern(rng, True), rng.choice(WINDOWS_S)
        self.by = rng.choice([["agent_id"]] * 3 + [["agent_id", "decision"]])
        self.items = rows.history(rng, self.window_s)

    def rule(self, pattern=None):
        query = (pattern or self.pattern).rule_sql(self.by)
        text = HEADER.format(number=self.name, name=self.name, window=self.window_s, key="agent_id", requires="any", suppress="", query=query)
        return Rule(text)

    def asked_of_flink(self):
        return self.pattern.flink_sql, rows.instants(self.items, self.window_s, self.by)

    def told_by_flink(self, answer):
        """The alerts that the rule must raise, as a test expects them."""
        labels = {event_id(event["tenant_id"], event["id"]): event for event in self.items}
        found, fields = set(), {}
        for partition, instant, *values in answer:
            tenant, agent = partition.split("/")[:2]
            columns = dict(zip(self.pattern.columns(), values, strict=True))
            first, last = (place_of(labels[one]) for one in ends_of(columns))
            passes = WHERE[self.pattern.where] if self.pattern.where else bool
            near = [event for event in self.items if rows.partition_of(event, self.by) == partition and passes(event)]
            match = sorted((place_of(event), event["id"]) for event in near if first <= place_of(event) <= last)
            if len(match) != sum(value for name, value in columns.items() if name.startswith("count_")):
                sys.exit(f"judge: the rows of Flink's match {columns} of {self.name} are not one after the other")
            if last[0] == int(instant) * 1000:
                found.add((tenant, (agent,), last[0], tuple(match)))
                fields[tuple(match)] = {f"told_{name}": as_text(value) for name, value in columns.items()}
        return expected(self.rule(), found, fields)

    def write(self, folder, expect, pattern=None):
        tests = folder / self.name / "tests"
        tests.mkdir(parents=True)
        (tests.parent / "rule.sql").write_text(self.rule(pattern).text, encoding="utf-8")
        (tests / "h0.yaml").write_text(test_file(self.name, self.items, expect), encoding="utf-8")

    def differs(self, machine, flink):
        if not self.items:
            return []
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder), self.told_by_flink(flink.ask(*self.asked_of_flink())))
            return failures(machine, [self], Path(folder))[self.name]

    def show(self):
        events = [{name: event[name] for name in ("ms", "id", "tenant_id", "agent_id", "edge_id", *rows.COLUMNS)} for event in self.items]
        return "\n".join([f"window {self.window_s} s", self.pattern.rule_sql(self.by), self.pattern.flink_sql("rows"), *map(json.dumps, events)])


def place_of(event):
    """Its place in the order of events: by time, lane, number in it, id."""
    return event["ms"] * 1000, event["lane"], event["seq"], event_id(event["tenant_id"], event["id"])


def ends_of(columns):
    """The ids of a match's first and last row: of its variables, those that have rows."""
    count = sum(name.startswith("count_") for name in columns)
    of_rows = [number for number in range(count) if columns[f"count_{number}"]]
    return columns[f"first_{of_rows[0]}"], columns[f"last_{of_rows[-1]}"]


def as_text(value):
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def failures(machine, cases, folder):
    """What the program has against the tests of rules, by their names."""
    answers, refused = ask_program(machine.program, folder)
    return {case.name: answers.get((case.name, "h0"), [refused.get(case.name, "the program did not run it")]) for case in cases}


def shrink(case, machine, flink):
    """Leaves out of a case's rows what it differs without."""
    differences = case.differs(machine, flink)
    if isinstance(case, TableCase) and differences and ": [" in differences[0]:
        case.narrow(differences)
    tries, size = 0, max(len(case.items) // 2, 1)
    while size and tries < TRIES_OF_A_SHRINKING:
        place = 0
        while place < len(case.items) and tries < TRIES_OF_A_SHRINKING:
            whole = case.items
            less = [dict(item) for item in whole[:place] + whole[place + size :]]
            case.items = with_places(less) if isinstance(case, RuleCase) else less
            tries += 1
            if not case.differs(machine, flink):
                case.items = whole
                place += size
        size //= 2


class Judge:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.machine, self.flink = engine.Engine(folder), Flink(folder)
        self.wrong, self.said, self.judged = [], 0, 0

    def fail(self, said):
        print(f"FAIL    {said}", flush=True)
        self.wrong.append(said)

    def report(self, case, differences):
        """A case that differs, with as few rows as it takes."""
        shrink(case, self.machine, self.flink)
        again = case.differs(self.machine, self.flink) or differences
        alone = f"tests/judge/run.sh flink --seed {self.options.seed} --only {case.name}"
        self.fail("\n        ".join([f"{case.name} differs; alone: {alone}", *again[:6], *case.show().splitlines()]))

    def tables(self, cases):
        answers = self.flink.ask_all([case.asked_of_flink() for case in cases])
        theirs = [case.told_by_flink(answer) for case, answer in zip(cases, answers, strict=True)]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            own = list(pool.map(lambda case: case.told_or_refused(self.machine), cases))
        for case, one, other in zip(cases, theirs, own, strict=True):
            self.count(sum(one.values()))
            if one != other:
                self.report(case, [f"Flink tells {len(one)} matches, the engine {len(other)}"])
        matches = sum(sum(one.values()) for one in theirs)
        print(f"tables  {len(cases)} patterns, {matches} matches", flush=True)
        return list(zip(cases, theirs, strict=True))

    def count(self, matches):
        self.judged += 1
        self.said += bool(matches)

    def rules(self, cases):
        answers = self.flink.ask_all([case.asked_of_flink() for case in cases])
        told = [case.told_by_flink(answer) for case, answer in zip(cases, answers, strict=True)]
        folder = self.folder / "rules"
        for case, expect in zip(cases, told, strict=True):
            case.write(folder, expect)
            self.count(len(expect))
        for case, failed in zip(cases, failures(self.machine, cases, folder).values(), strict=True):
            if failed:
                self.report(case, failed)
        ways = Counter(self.machine.shapes(folder))
        how = ", ".join(f"{number} {way}" for way, number in sorted(ways.items()))
        print(f"rules   {len(cases)} patterns, {sum(map(len, told))} alerts; {how}", flush=True)
        if not self.options.only and not (ways["pattern row"] and ways["pattern mapping"]):
            self.fail("no rule was followed by its rows alone, or none by the mapping: half of the engine is not judged")
        return list(zip(cases, told, strict=True))

    def prove(self, tables, rules):
        """That the judge finds what is wrong: a pattern of which one thing is another on the engine's side must differ, for each such thing."""
        for mutation in MUTATIONS if tables else []:
            name, tried = self.found(mutation, tables)
            print(f"proved  {mutation}: {name or 'nothing'} differs where it is changed, of {tried} tried", flush=True)
            if name is None:
                self.fail(f"of {tried} patterns none was found to differ where its {mutation} is changed")
        folder, changed = self.folder / "mutated", []
        for case, expect in rules:
            pattern = mutated(numbers(self.options.seed, "rule", case.name), case.pattern, "bound")
            if expect and len(changed) < MUTATED_RULES:
                case.write(folder, expect, pattern)
                changed.append(case)
        found = sum(map(bool, failures(self.machine, changed, folder).values())) if changed else 0
        if rules:
            print(f"proved  rules: {found} of {len(changed)} differ where a bound is changed", flush=True)
        if rules and not found:
            self.fail("no rule was found to differ where its pattern is changed")

    def found(self, mutation, tables):
        """The first pattern that differs where it is changed, and how many were tried."""
        tried = 0
        for case, theirs in tables:
            pattern = mutated(numbers(self.options.seed, mutation, case.name), case.pattern, mutation)
            if pattern is None or not theirs:
                continue
            tried += 1
            if case.told_by_engine(self.machine, pattern) != theirs:
                return case.name, tried
            if tried == TRIES_OF_A_MUTATION:
                break
        return None, tried

    def run(self):
        only = self.options.only
        if not only:
            for said in outside.problems(self.flink, self.machine.ask):
                self.fail(said)
            print(f"outside {len(outside.REFUSED)} things are refused by Flink, {len(outside.DIFFERENT)} are answered otherwise", flush=True)
        tables = [TableCase(f"pattern-{number}", self.options.seed) for number in range(self.options.patterns)]
        rules = [RuleCase(f"random-{number}", self.options.seed) for number in range(self.options.rules)]
        if only:
            kind = TableCase if only.startswith("pattern-") else RuleCase
            tables, rules = ([kind(only, self.options.seed)], []) if kind is TableCase else ([], [kind(only, self.options.seed)])
        tables = self.tables(tables) if tables else []
        rules = self.rules(rules) if rules else []
        if not only:
            self.prove(tables, rules)
            if self.said < self.judged * MOST_SILENT:
                self.fail(f"only {self.said} of {self.judged} patterns have a match: the generator makes what never matches")
        self.flink.close()
        print(f"judge: {self.judged} row patterns judged, {self.said} with matches, {len(self.wrong)} failures")
        return 1 if self.wrong or not self.judged else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("AEGIS_SEED", random.SystemRandom().randrange(1 << 32))))
    parser.add_argument("--patterns", type=int, default=60, help="patterns over tables (default 60)")
    parser.add_argument("--rules", type=int, default=40, help="patterns as rules (default 40)")
    parser.add_argument("--only", help="the name of a pattern (pattern-N, random-N), which alone is judged")
    options = parser.parse_args()
    if library.missing():
        sys.exit(f"judge: {' and '.join(library.missing())} is missing: install {library.JDK}")
    print(f"judge: Flink {library.VERSION}, {options.patterns} patterns over tables, {options.rules} as rules, AEGIS_SEED={options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return Judge(options, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
