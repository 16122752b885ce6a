"""Runs the groups named on the command line (all when none is) and prints one line a test. Exit 1 when any failed.

    run.py [--jobs N] [--record FOLDER] [GROUP[.WORD]]...     e.g. `approvals`, `faults.disk`: the tests of `faults` with `disk` in their name

Several groups run beside each other, N at a time (as many as there are cores, and at least two), and those of ALONE afterwards. What is said over
HTTP is kept in the folder, a file for each group.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys

import harness
from beside import run_beside
from printer import run_here
from record import recording

GROUPS = ["webhooks", "bad_input", "bad_admin", "decisions", "approvals", "callbacks", "containment", "exports", "policies", "own_rules", "rules_fire", "rules_fire_apart", "siblings", "honest_work", "writing_rules", "backtest", "metrics", "lake", "lake_s3", "readme", "faults", "transport", "edges", "cut_off", "confirmations", "roles", "kills"]
# What takes longest begins first, so that nothing is waited for at the end.
LONGEST = ["cut_off", "lake_s3", "edges"]
# It loads the machine as much as it can.
ALONE = {"kills"}


def by_group(names):
    """The names of each group, the longest group first."""
    chosen = {}
    for name in names or GROUPS:
        chosen.setdefault(name.partition(".")[0], []).append(name)
    first = [group for group in LONGEST if group in chosen]
    return [(group, chosen[group]) for group in [*first, *(group for group in chosen if group not in first)]]


def main():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False)
    parser.add_argument("--jobs", type=int, default=max(2, os.cpu_count() or 0))
    parser.add_argument("--counts", type=pathlib.Path, help="where the counts of a group go that runs beside others")
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    told = parser.parse_args()
    groups = by_group(told.names)
    if unknown := [group for group, _ in groups if group not in GROUPS]:
        sys.exit(f"there is no group `{unknown[0]}`; the groups are {', '.join(GROUPS)}")
    if len(groups) > 1 and (told.jobs > 1 or told.record):
        options = ["--record", told.record.resolve()] if told.record else []
        return run_beside("e2e", [(group, [*options, *names]) for group, names in groups], ALONE, told.jobs)
    with contextlib.ExitStack() as stack:
        if told.record:
            told.record.mkdir(parents=True, exist_ok=True)
            [(group, _)] = groups
            harness.send = recording(harness.send, stack.enter_context((told.record / f"{group}.jsonl").open("w")))
        counts = run_here("e2e", told.names, GROUPS)
    if told.counts:
        told.counts.write_text(json.dumps(dataclasses.asdict(counts)))
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
