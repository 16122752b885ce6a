"""Runs the groups named on the command line (all when none is) and prints one line a test. Exit 1 when any failed.

    run.py [--jobs N] [GROUP[.WORD]]...     e.g. `approvals`, `faults.disk`: the tests of `faults` with `disk` in their name

Several groups run beside each other, N at a time (as many as there are cores, and at least two), and those of ALONE afterwards.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

from beside import run_beside
from printer import run_here

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
    parser.add_argument("names", nargs="*")
    told = parser.parse_args()
    groups = by_group(told.names)
    if unknown := [group for group, _ in groups if group not in GROUPS]:
        sys.exit(f"there is no group `{unknown[0]}`; the groups are {', '.join(GROUPS)}")
    if told.jobs > 1 and len(groups) > 1:
        return run_beside("e2e", groups, ALONE, told.jobs)
    counts = run_here("e2e", told.names, GROUPS)
    if told.counts:
        told.counts.write_text(json.dumps(dataclasses.asdict(counts)))
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
