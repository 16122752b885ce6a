"""Groups beside each other: each is a process of its own with ports and folders of its own. What one says is shown whole when it is over."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from printer import Counts

# So long may a group take to end when it is asked to.
LAST_WORDS_S = 10


class Group:
    """One group that runs. Its processes are a group of the system's, so that none of them is left when it is over."""

    def __init__(self, name, arguments, share, shares):
        self.name, self.share = name, share
        self.started = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="aegis-group-")
        self._counts = pathlib.Path(self._folder.name) / "counts"
        self._log = pathlib.Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "run.py", "--counts", self._counts, *arguments],
                env=os.environ | {"AEGIS_E2E_PORTS": f"{share}/{shares}"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )

    @property
    def is_over(self):
        """It is not reaped yet: its number stands for its processes until they are ended."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    @property
    def seconds(self):
        return time.monotonic() - self.started

    def close(self):
        """Shows what it said and returns its counts. One that ended without counting has failed, whatever it said before."""
        self._signal(signal.SIGKILL)
        print(self._log.read_text("utf-8", "replace"), end="", flush=True)
        returncode = self._process.wait()
        counts = Counts(**json.loads(self._counts.read_text())) if self._counts.exists() else Counts()
        if not counts.failed and returncode != 0:
            print(f"FAIL  {self.name:<11} ended with exit code {returncode}", flush=True)
            counts += Counts(failed=1)
        self._folder.cleanup()
        return counts

    def interrupt(self):
        self._signal(signal.SIGINT)

    def _signal(self, number):
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass


def run_beside(title, groups, alone, jobs):
    """Runs `groups` (name and arguments of `run.py`) in their order, `jobs` at a time, and those named in `alone` by themselves when all others
    are over. 1 when any failed."""
    started = time.monotonic()
    waiting = [group for group in groups if group[0] not in alone]
    last = [group for group in groups if group[0] in alone]
    running, counts, took, failed = [], Counts(), {}, []
    # Whoever runs us ends us so; the groups would go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while waiting or running or last:
            if not waiting and not running:
                waiting, jobs, last = last[:1], 1, last[1:]
            while waiting and len(running) < jobs:
                free = min(set(range(jobs)) - {group.share for group in running})
                running.append(Group(*waiting.pop(0), free, jobs))
            time.sleep(0.05)
            for group in [group for group in running if group.is_over]:
                running.remove(group)
                took[group.name] = group.seconds
                of_group = group.close()
                counts += of_group
                if of_group.failed:
                    failed.append(group.name)
    finally:
        end_all(running)
    longest = sorted(took, key=took.get, reverse=True)[:5]
    print(f"{title}: longest were " + ", ".join(f"{name} {took[name]:.0f} s" for name in longest))
    if failed:
        print(f"{title}: FAILED, their output is above: {' '.join(failed)}")
    print(f"{title}: {counts} in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if counts.failed else 0


def end_all(running):
    """Ends what still runs, and shows what it said: nobody else will."""
    for group in running:
        group.interrupt()
    end = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < end and not all(group.is_over for group in running):
        time.sleep(0.05)
    for group in running:
        group.close()
