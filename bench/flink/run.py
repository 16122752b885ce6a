#!/usr/bin/env python3
"""Two shipped rules over one log, by the engine's backtest and by Apache Flink, on one core, in turn. Prints a table and writes
bench/out/flink.json. No figure is printed unless all find the same alerts: else the exit code is 1.

Either has the events in memory before its clock starts; Flink has also been warmed up by the same log. AEGIS_BIN names the program, beside
which aegis-bench stands. Flink is fetched from PyPI into AEGIS_CACHE (~/.cache/aegis); javac and java are the machine's."""

import argparse
import collections
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import edges
import library

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent / "out/flink.json"
# The columns of events that the rules read, in Peer.java's order, behind the time.
COLUMNS = [
    "event_id", "tenant_id", "agent_id", "kind", "decision", "reason", "data_access", "destination", "tool", "action", "target",
    "mutates_state",
]  # fmt: skip
NULL = "\\N"
MEMORY = ["-Xms1g", "-Xmx4g"]
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

OVER, STORM, EXFIL = "deny-storm.over", "deny-storm.pattern", "read-sensitive-then-exfil.pattern"
# What is compared: how many rules of `aegis-bench detect`'s first ones the engine runs, and the queries that are one job of Flink's.
BOTH = "deny-storm and read-sensitive-then-exfil"
SETS = {
    "deny-storm": (1, {"Flink, OVER": [OVER], "Flink, MATCH_RECOGNIZE": [STORM]}),
    BOTH: (
        2,
        {"Flink, OVER and MATCH_RECOGNIZE": [OVER, EXFIL], "Flink, MATCH_RECOGNIZE": [STORM, EXFIL]},
    ),
}
ENGINE = "the engine's backtest"
# They prove; and Java has not compiled everything that these jobs have in common before.
UNTIMED_ROUNDS = 2


def options():
    parser = argparse.ArgumentParser(description="Two rules by the engine's backtest and by Apache Flink, over the same events.")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lateness", type=int, default=120, help="seconds that an event may come late in Flink; the engine's are 120")
    parser.add_argument("--warm", type=int, default=5, help="passes over the log before Flink's clock starts, in each job")
    parser.add_argument("--passes", type=int, default=5, help="passes over the log that are timed, in each job")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core that both run on")
    asked = parser.parse_args()
    if min(asked.events, asked.tenants, asked.rounds, asked.passes) < 1 or min(asked.warm, asked.lateness) < 0:
        parser.error("events, tenants, rounds and passes must be at least one, the rest not negative")
    return asked


def program():
    """The benchmark, beside the program."""
    aegis = os.environ.get("AEGIS_BIN")
    path = aegis and pathlib.Path(aegis).resolve().with_name("aegis-bench")
    if not path or not path.exists():
        sys.exit("bench: set AEGIS_BIN to the built program; aegis-bench must stand beside it")
    return path


def engine(asked, log, rules):
    """One run of the engine's backtest."""
    command = [program(), "detect-peer", "--log", log, "--core", asked.core, "--rules", rules]
    command += ["--events", asked.events, "--tenants", asked.tenants]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit("no figure: the engine's run failed")
    return json.loads(done.stdout)


class Log:
    """What Flink is given, and where an alert of the engine's lies in it."""

    def __init__(self, path, table):
        self.places = collections.defaultdict(list)
        with path.open() as lines:
            events = [json.loads(line) for line in lines]
        first = min(micros(event["ts"]) for event in events)
        with table.open("w") as rows:
            for event in events:
                ts = micros(event["ts"])
                self.places[event["tenant_id"], event.get("agent_id"), ts].append(event["event_id"])
                rows.write("\t".join([str(ts - first), *(text_of(event.get(column)) for column in COLUMNS)]) + "\n")

    def event_of(self, tenant, agent, ts):
        ids = self.places[tenant, agent, ts]
        if len(ids) != 1:
            sys.exit(f"no figure: agent {agent} of {tenant} has {len(ids)} events at {ts}, and an alert's evidence could be any of them")
        return ids[0]

    def told_by(self, ran):
        """The alerts as Flink tells them: rule, tenant, agent, first and last evidence, how much evidence."""
        told = []
        for alert in ran["alerts"]:
            tenant, agent = alert["tenant"], alert["key"]["agent_id"]
            first, last = (self.event_of(tenant, agent, alert[end]) for end in ("first_us", "last_us"))
            told.append((ran["rules"][alert["rule"]], tenant, agent, first, last, str(alert["evidence"])))
        return collections.Counter(told)


def micros(text):
    return (datetime.datetime.fromisoformat(text) - EPOCH) // datetime.timedelta(microseconds=1)


def text_of(value):
    if value is None:
        return NULL
    text = str(value).lower() if isinstance(value, bool) else value
    if "\t" in text or "\n" in text or text == NULL:
        sys.exit(f"no figure: {text!r} cannot stand in the table for Flink")
    return text


class Flink:
    """A Java process with the log in memory, which runs one job for each line that it reads."""

    def __init__(self, asked, table, warm, passes):
        pinned = ["taskset", "--cpu-list", str(asked.core)]
        self.program = library.Program(table.parent, "Peer", [table, asked.lateness, warm, passes], MEMORY, pinned)
        self.process = self.program.process

    def run(self, queries):
        ran = self.program.ask(" UNION ALL ".join(sql_of(name) for name in queries))
        return ran if ran else sys.exit("no figure: Flink's run failed")


def sql_of(name):
    """A query on one line, without its comment."""
    lines = (HERE / f"{name}.sql").read_text().splitlines()
    return " ".join(line.strip() for line in lines if not line.startswith("--"))


def prove_edges(asked, folder):
    """Every query over sequences at the edges of the rules."""
    table = folder / "edges"
    told = edges.write(table, COLUMNS, NULL)
    flink = Flink(asked, table, warm=0, passes=1)
    with flink.process:
        for job, queries in SETS[BOTH][1].items():
            check("what must be told", told, flink.run(queries), job)


def check(who, ours, ran, job):
    """Each pass over a table must tell what it must, and nothing else."""
    theirs = collections.Counter(tuple(alert) for alert in ran["alerts"])
    expected = collections.Counter({alert: count * ran["passes"] for alert, count in ours.items()})
    if theirs == expected:
        return
    only = [sorted(alert[:5] for alert in (one - other))[:5] for one, other in ((expected, theirs), (theirs, expected))]
    counts = f"{who}: {sum(expected.values())} alerts in {ran['passes']} passes, {job}: {sum(theirs.values())}"
    sys.exit(f"no figure: {counts}; of the former alone {only[0]}, of the latter alone {only[1]}")


def rates_of(ran):
    return {"per_second": ran["events"] / ran["seconds"], "processor_us": 1e6 * ran["processor_seconds"] / ran["events"]}


def measure(asked, folder):
    """Proves that all tell the same, and then runs them in turn: alerts and rates of each set of rules."""
    log, table = folder / "log", folder / "table"
    first = {title: engine(asked, log, rules) for title, (rules, _) in SETS.items()}
    whole = Log(log, table)
    told = {title: whole.told_by(ran) for title, ran in first.items()}
    for title, (rules, _) in SETS.items():
        if len({alert[0] for alert in told[title]}) != rules:
            sys.exit(f"no figure: not every rule of {title} told something, so nothing was compared")
    measured = {title: {ENGINE: []} | {job: [] for job in jobs} for title, (_, jobs) in SETS.items()}
    library.compiled(HERE / "Peer.java", folder)
    prove_edges(asked, folder)
    flink = Flink(asked, table, asked.warm, asked.passes)
    # At the end of its input the process ends.
    with flink.process:
        for is_timed in [False] * UNTIMED_ROUNDS + [True] * asked.rounds:
            for title, (rules, jobs) in SETS.items():
                rates = measured[title]
                for job, queries in jobs.items():
                    ran = flink.run(queries)
                    check("the engine", told[title], ran, job)
                    if is_timed:
                        rates[job].append(rates_of(ran))
                if is_timed:
                    ran = engine(asked, log, rules)
                    if whole.told_by(ran) != told[title]:
                        sys.exit("no figure: of the same log the engine told otherwise in another run")
                    rates[ENGINE].append(rates_of(ran))
    return first, told, measured


def spread(rounds, what, digits):
    values = [rates[what] for rates in rounds]
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}..{max(values):,.{digits}f}]"


def main():
    asked = options()
    lacking = library.missing() + ([] if shutil.which("taskset") else ["taskset"])
    if lacking:
        sys.exit(f"bench: {', '.join(lacking)} is not there; install {library.JDK} and util-linux")
    program()
    with tempfile.TemporaryDirectory(prefix="aegis-bench-", dir=".") as folder:
        first, told, measured = measure(asked, pathlib.Path(folder).resolve())
    events = next(iter(first.values()))["events"]
    print(f"\n{events:,} events of {asked.tenants} tenants, one core; all found the same alerts")
    flink = f"Flink {library.VERSION}, parallelism 1, lateness {asked.lateness} s, warmed up, {asked.passes} passes a round"
    print(f"median [least..most] of {asked.rounds} rounds; events in memory before the clock starts; {flink}")
    for title, rates in measured.items():
        print(f"\n{title}: {sum(told[title].values())} alerts")
        print(f"{'':<34}{'events/s':>32}{'processor time, µs an event':>32}")
        for name, rounds in rates.items():
            print(f"{name:<34}{spread(rounds, 'per_second', 0):>32}{spread(rounds, 'processor_us', 2):>32}")
    OUT.parent.mkdir(exist_ok=True)
    sets = {title: {"alerts": sum(told[title].values()), "rounds": rates} for title, rates in measured.items()}
    report = {"flink": library.VERSION, "lateness_s": asked.lateness, "passes": [asked.warm, asked.passes], "events": events, "sets": sets}
    OUT.write_text(json.dumps(report, indent=2))
    print(f"\nwritten to {OUT}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
