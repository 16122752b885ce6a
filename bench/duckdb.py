#!/usr/bin/env python3
"""The shipped window rules over one log, by the engine's backtest and by DuckDB, one core and one thread each, in turn: over the Parquet files of a
lake, which both read while the clock runs, and over events that both have in memory. Prints a table and writes bench/out/duckdb.json. No figure is
printed unless both find the same alerts, in the files and in memory: else the exit code is 1.

The engine is shown events as they come, and tells each once. DuckDB is given the whole at once, in two ways over the files: each query reads them, or
they are first read into a table; the faster one counts. AEGIS_BIN names the program, beside which aegis-bench stands. DuckDB is fetched into an
environment below AEGIS_CACHE (~/.cache/aegis)."""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE.parent / "rules"
OUT = HERE / "out/duckdb.json"
REQUIREMENTS = HERE / "requirements.txt"
CACHE = pathlib.Path(os.environ.get("AEGIS_CACHE", pathlib.Path.home() / ".cache/aegis"))
# The smallest set of `aegis-bench detect`: sliding windows but for one rule, no row pattern.
RULES_OF_A_SET = 10
# The engine's backtest over the files must be so fast, by DuckDB over the same files.
REQUIRED = 0.3
# The columns of events that those rules read.
TEXTS = [
    "event_id", "tenant_id", "edge_id", "kind", "agent_id", "token_id", "run_id", "environment", "tool", "action", "resource",
    "target", "destination", "data_access", "source_trust", "root_trust", "decision", "reason", "policy_digest", "action_hash",
]  # fmt: skip
FLAGS = ["mutates_state", "contains_sensitive_data"]


def in_environment():
    """Runs this script again in an environment that has DuckDB. Isolated: beside this file, `duckdb` would be the file itself."""
    home = CACHE / "venv-bench"
    installed = home / "requirements.installed"
    if not installed.exists() or installed.read_bytes() != REQUIREMENTS.read_bytes():
        venv.create(home, clear=True, with_pip=True)
        pip = [home / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS]
        subprocess.run(pip, check=True)
        installed.write_bytes(REQUIREMENTS.read_bytes())
    python = str(home / "bin/python")
    os.execv(python, [python, "-I", __file__, *sys.argv[1:]])


def options():
    parser = argparse.ArgumentParser(description="The window rules by the engine's backtest and by DuckDB, over the same events.")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core that both run on")
    return parser.parse_args()


def program():
    """The benchmark, beside the program."""
    aegis = os.environ.get("AEGIS_BIN")
    path = aegis and pathlib.Path(aegis).resolve().with_name("aegis-bench")
    if not path or not path.exists():
        sys.exit("bench: set AEGIS_BIN to the built program; aegis-bench must stand beside it")
    return path


def sql_of(name):
    """A rule's query in DuckDB's words. The engine never looks across tenants; there, every partition says so."""
    query = (RULES / name / "rule.sql").read_text().split("*/", 1)[1]
    query = query.replace("PARTITION BY ", "PARTITION BY tenant_id, ")
    query = re.sub(r"\bSELECT\s+(?!\*)", "SELECT tenant_id, ", query)
    query = query.replace("CAST(CAST(ts AS BIGINT) AS VARCHAR)", "CAST(epoch_us(ts) AS VARCHAR)")
    return query.replace("make_array(", "list_value(")


def key_of(name):
    header = (RULES / name / "rule.sql").read_text().split("*/", 1)[0]
    return re.search(r"^key: \[(.*)\]", header, re.MULTILINE)[1].split(", ")


def connected():
    import duckdb

    return duckdb.connect(config={"threads": 1})


def load(path):
    """The proved events of a log as a table in memory, on one thread."""
    database = connected()
    columns = dict.fromkeys([*TEXTS, "ts"], "VARCHAR") | dict.fromkeys(FLAGS, "BOOLEAN")
    database.execute(
        "CREATE TABLE events AS SELECT * REPLACE (CAST(ts AS TIMESTAMP) AS ts) "
        "FROM read_json(?, format = 'newline_delimited', columns = ?) ORDER BY ts",
        [str(path), columns],
    )
    return database


def files_of(lake):
    """The files that are a lake: those that the manifests of its hours name."""
    manifests = sorted(lake.rglob("manifest.json"))
    return [str(manifest.parent / file["name"]) for manifest in manifests for file in json.loads(manifest.read_text())["files"]]


def rows_of(files):
    """What selects the columns from the files that the rules read. Times in UTC, as the rules have them."""
    names = ", ".join(f"'{name}'" for name in files)
    return f"SELECT {', '.join(TEXTS + FLAGS)}, make_timestamp(epoch_us(ts)) AS ts FROM read_parquet([{names}], hive_partitioning = false)"


def view(files):
    """The files of a lake as they are: each query reads them."""
    database = connected()
    database.execute(f"CREATE VIEW events AS {rows_of(files)}")
    return database


def timed_over_table(files, names):
    """Seconds that it takes to read the files into a table and to ask that."""
    database = connected()
    began = time.perf_counter()
    database.execute(f"CREATE TABLE events AS {rows_of(files)}")
    for name in names:
        database.execute(sql_of(name)).fetchall()
    return time.perf_counter() - began


def alerts_of(database, name):
    """Each match as the engine tells it: key, first and last evidence, how much evidence. Not what is timed."""
    rows = database.execute(sql_of(name))
    named = [column[0] for column in rows.description]
    ids = "event_ids" if "event_ids" in named else "[event_id]"
    key = ", ".join(f"{column} := match.{column}" for column in key_of(name))
    found = database.execute(f"""
        WITH match AS ({sql_of(name)}),
        numbered AS (SELECT *, row_number() OVER () AS place FROM match),
        evidence AS (SELECT place, unnest({ids}) AS event_id FROM numbered)
        SELECT any_value(match.tenant_id), any_value(to_json(struct_pack({key}))),
               epoch_us(min(events.ts)), epoch_us(max(events.ts)), count(DISTINCT events.event_id)
        FROM numbered AS match JOIN evidence USING (place)
        JOIN events ON events.event_id = evidence.event_id AND events.tenant_id = match.tenant_id
        GROUP BY place
    """).fetchall()
    return sorted((name, tenant, canonical(json.loads(text)), *rest) for tenant, text, *rest in found)


def canonical(key):
    return json.dumps(key, sort_keys=True)


def timed(database, names):
    """Seconds that all queries take, results fetched."""
    began = time.perf_counter()
    for name in names:
        database.execute(sql_of(name)).fetchall()
    return time.perf_counter() - began


def engine(asked, log, lake=None):
    """One run of the engine's backtest, over the events of the log or over their lake."""
    command = [program(), "detect-peer", "--log", log, "--core", asked.core, "--rules", RULES_OF_A_SET]
    command += ["--events", asked.events, "--tenants", asked.tenants]
    command += ["--lake", lake] if lake else []
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(1)
    return json.loads(done.stdout)


def differences(ran, database):
    names = ran["rules"]
    ours = sorted(
        (names[a["rule"]], a["tenant"], canonical(a["key"]), a["first_us"], a["last_us"], a["evidence"]) for a in ran["alerts"]
    )
    theirs = sorted(alert for name in names.values() for alert in alerts_of(database, name))
    if not ours:
        return "nothing was found, so nothing was compared"
    if ours == theirs:
        return None
    only = [sorted(set(a) - set(b))[:5] for a, b in ((ours, theirs), (theirs, ours))]
    return f"the engine finds {len(ours)} alerts, DuckDB {len(theirs)}; of the engine alone {only[0]}, of DuckDB alone {only[1]}"


def spread(values):
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}..{max(values):,.0f}]"


def main():
    asked = options()
    over_files = {"the engine's backtest": [], "DuckDB, each query reads the files": [], "DuckDB, read into a table first": []}
    in_memory = {"the engine's backtest": [], "DuckDB, the whole table at once": []}
    with tempfile.TemporaryDirectory(prefix="aegis-bench-", dir=".") as folder:
        log, lake = pathlib.Path(folder).resolve() / "log", pathlib.Path(folder).resolve() / "lake"
        ran, ran_lake = engine(asked, log), engine(asked, log, lake)
        os.sched_setaffinity(0, {asked.core})
        files = files_of(lake)
        database, over_view = load(log), view(files)
        for where, one, peer in (("in memory", ran, database), ("over the files", ran_lake, over_view)):
            if difference := differences(one, peer):
                sys.exit(f"no figure: {where} {difference}")
        names = list(ran["rules"].values())
        for _ in range(asked.rounds):
            ran_lake = engine(asked, log, lake)
            took = [ran_lake["seconds"], timed(over_view, names), timed_over_table(files, names)]
            for rates, seconds in zip(over_files.values(), took, strict=True):
                rates.append(ran_lake["events"] / seconds)
            ran = engine(asked, log)
            for rates, seconds in zip(in_memory.values(), [ran["seconds"], timed(database, names)], strict=True):
                rates.append(ran["events"] / seconds)
        size = sum(pathlib.Path(name).stat().st_size for name in files)
        version = database.execute("SELECT version()").fetchone()[0]
    ours, *theirs = (statistics.median(rates) for rates in over_files.values())
    ratio = ours / max(theirs)
    count = len(ran["alerts"])
    print(f"\n{RULES_OF_A_SET} rules over {ran['events']:,} events of {asked.tenants} tenants, one core; both found the same {count} alerts")
    print(f"median [least..most] of {asked.rounds} rounds, events/s; DuckDB {version}, one thread")
    print(f"\nover the {len(files)} Parquet files of the lake ({size / 2**20:.1f} MiB), reading them included")
    for name, values in over_files.items():
        print(f"{name:<40}{spread(values):>40}")
    print(f"{'the engine, by the faster of DuckDB':<40}{ratio:>39.2f}x  (required: {REQUIRED}x)")
    print("\nover events in memory before the clock starts")
    for name, values in in_memory.items():
        print(f"{name:<40}{spread(values):>40}")
    OUT.parent.mkdir(exist_ok=True)
    report = {"duckdb": version, "rules": sorted(names), "events": ran["events"], "tenants": asked.tenants, "alerts": count}
    report |= {"files": len(files), "bytes": size, "over_files_per_second": over_files, "ratio": ratio, "in_memory_per_second": in_memory}
    OUT.write_text(json.dumps(report, indent=2))
    print(f"\nwritten to {OUT}")


if __name__ == "__main__":
    if sys.flags.isolated:
        with contextlib.suppress(KeyboardInterrupt):
            main()
    else:
        in_environment()
