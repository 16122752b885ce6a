"""Runs the groups named on the command line (all when none is) and prints one line a test. Exit 1 when any failed.

    run.py [GROUP[.WORD]]...     e.g. `approvals`, `faults.disk`: the tests of `faults` with `disk` in their name
"""

import sys

from printer import run

GROUPS = ["webhooks", "bad_input", "connections", "bad_admin", "decisions", "approvals", "callbacks", "containment", "exports", "policies", "own_rules", "rules_fire", "rules_fire_apart", "siblings", "honest_work", "writing_rules", "backtest", "metrics", "lake", "lake_s3", "readme", "faults", "transport", "edges", "cut_off", "confirmations", "roles", "kills"]

if __name__ == "__main__":
    sys.exit(run("e2e", sys.argv[1:], GROUPS))
