"""Groups beside each other: each is a process of its own with ports and folders of its own. What one says is shown whole when it is over."""

import json
import os
import pathlib
import sys
import tempfile
import time

from behind import Behind, end_all, end_as_by_ctrl_c, wait_for_some
from nats import part_of_ports
from printer import Counts

# What runs a group.
PROGRAM = "run.py"
# So long may a group take to end when it is asked to.
LAST_WORDS_S = 10


class Group(Behind):
    def __init__(self, name, arguments, share, shares):
        self.share = share
        self._folder = tempfile.TemporaryDirectory(prefix="aegis-group-")
        self._counts = pathlib.Path(self._folder.name) / "counts"
        command = [sys.executable, PROGRAM, "--counts", self._counts, *arguments]
        super().__init__(name, command, env=os.environ | {"AEGIS_E2E_PORTS": part_of_ports(share, shares)})

    def counts(self):
        """Ends it. One that ended without counting has failed, whatever it said before."""
        returncode = self.close()
        has_counted = self._counts.exists()
        counts = Counts(**json.loads(self._counts.read_text())) if has_counted else Counts()
        if not counts.failed and (returncode != 0 or not has_counted):
            print(f"FAIL  {self.name:<11} ended with exit code {returncode}", flush=True)
            counts += Counts(failed=1)
        self._folder.cleanup()
        return counts


def run_beside(title, groups, alone, jobs):
    """Runs `groups` (name and arguments of `run.py`) in their order, `jobs` at a time, and those named in `alone` by themselves when all others
    are over. 1 when any failed."""
    started = time.monotonic()
    waiting = [group for group in groups if group[0] not in alone]
    last = [group for group in groups if group[0] in alone]
    running, counts, took, failed = [], Counts(), {}, []
    end_as_by_ctrl_c()
    try:
        while waiting or running or last:
            if not waiting and not running:
                waiting, jobs, last = last[:1], 1, last[1:]
            while waiting and len(running) < jobs:
                free = min(set(range(jobs)) - {group.share for group in running})
                running.append(Group(*waiting.pop(0), free, jobs))
            for group in wait_for_some(running):
                running.remove(group)
                took[group.name] = group.seconds
                of_group = group.counts()
                counts += of_group
                if of_group.failed:
                    failed.append(group.name)
    finally:
        end_all(running, LAST_WORDS_S)
    longest = sorted(took, key=took.get, reverse=True)
    print(f"{title}: seconds of each group: " + ", ".join(f"{name} {took[name]:.0f}" for name in longest))
    if failed:
        print(f"{title}: FAILED, their output is above: {' '.join(failed)}")
    print(f"{title}: {counts} in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if counts.failed else 0
