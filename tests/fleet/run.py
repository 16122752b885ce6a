"""Runs the faults that are named, or a set of them. Exit 1 when any failed.

    run.py short                 the faults that `make test` runs
    run.py full                  all (the default)
    run.py GROUP[.WORD]...       e.g. `processes`, `nats_faults.hangs`: those of `nats_faults` with `hangs` in their name

Of all, none may be left out for what this machine lacks, but those that AEGIS_MAY_SKIP names (GROUP[.WORD], with commas).
"""

import os
import sys

if sys.argv[1:] == ["short"]:
    os.environ.setdefault("AEGIS_FLEET_LONG_S", "5")

from case import LONG_S, SEED, SERVER, Shared
from disk import enter_own_namespace
from printer import run

# `playing` starts a fleet of its own, and so comes before there is another one.
GROUPS = ["playing", "processes", "nats_faults", "stores", "copies", "disks", "entries", "clocks"]
SHORT = ["playing", "processes.edge", "processes.leader_of_the_events", "nats_faults.is_down"]


def main(names):
    print(f"     fleet: three servers of NATS ({SERVER}), faults of {LONG_S:g} s, AEGIS_SEED={SEED}", flush=True)
    try:
        chosen = {("short",): SHORT, ("full",): []}.get(tuple(names), names)
        may_skip = None if chosen else [name for name in os.environ.get("AEGIS_MAY_SKIP", "").split(",") if name]
        return run("fleet", chosen, GROUPS, may_skip)
    finally:
        Shared.close()


if __name__ == "__main__":
    # For a full disk.
    enter_own_namespace()
    sys.exit(main(sys.argv[1:]))
