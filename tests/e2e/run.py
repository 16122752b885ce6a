"""Runs the groups named on the command line (all when none is) and prints one line a test. Exit 1 when any failed.

    run.py [--jobs N] [--record FOLDER] [GROUP[.WORD]]...     e.g. `approvals`, `faults.disk`: the tests of `faults` with `disk` in their name, `edges.Edges`: a class

Several groups run beside each other, N at a time (as many as there are cores, and at least two), and those of ALONE afterwards. What is said over
HTTP is kept in the folder, a file for each group.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import sys
import unittest

import harness
from beside import run_beside
from printer import run_here
from record import recording

GROUPS = ["webhooks", "bad_input", "connections", "bad_admin", "decisions", "approvals", "callbacks", "containment", "exports", "policies", "own_rules", "rules_fire", "rules_fire_apart", "siblings", "honest_work", "writing_rules", "backtest", "metrics", "lake", "lake_s3", "readme", "faults", "failing_disks", "transport", "edges", "edges_alone", "cut_off", "confirmations", "roles", "runner", "kills"]
# What takes longest begins first, so that nothing is waited for at the end.
LONGEST = ["edges_alone", "edges", "lake_s3", "cut_off", "own_rules", "confirmations", "faults", "transport", "rules_fire_apart"]
# Of these each class goes by itself.
SPLIT = {"edges", "edges_alone"}
# It loads the machine as much as it can.
ALONE = {"kills"}


def by_group(names):
    """What runs in one process: the names of each group, the longest group first."""
    chosen = {}
    for name in names or GROUPS:
        group = name.partition(".")[0]
        if group not in GROUPS:
            sys.exit(f"there is no group `{group}`; the groups are {', '.join(GROUPS)}")
        of_one = name == group and group in SPLIT
        for part in [f"{group}.{case}" for case in classes(group)] if of_one else [name]:
            chosen.setdefault(part if of_one else group, []).append(part)
    longest = {group: place for place, group in enumerate(LONGEST)}
    return sorted(chosen.items(), key=lambda part: longest.get(part[0].partition(".")[0], len(longest)))


def classes(group):
    """The names of a group's classes that have tests."""
    suites = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(group))
    return dict.fromkeys(type(test).__name__ for suite in suites for test in suite)


def main():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False)
    parser.add_argument("--jobs", type=int, default=max(2, os.cpu_count() or 0))
    parser.add_argument("--counts", type=pathlib.Path, help="where the counts of a group go that runs beside others")
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    told = parser.parse_args()
    groups = by_group(told.names)
    if len(groups) > 1 and (told.jobs > 1 or told.record):
        options = ["--record", told.record.resolve()] if told.record else []
        return run_beside("e2e", [(group, [*options, *names]) for group, names in groups], ALONE, told.jobs)
    with contextlib.ExitStack() as stack:
        if told.record:
            told.record.mkdir(parents=True, exist_ok=True)
            kept = told.record / f"{'+'.join(told.names)}.jsonl"
            harness.send = recording(harness.send, stack.enter_context(kept.open("w")))
        counts = run_here("e2e", told.names, GROUPS)
    if told.counts:
        told.counts.write_text(json.dumps(dataclasses.asdict(counts)))
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
