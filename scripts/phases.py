#!/usr/bin/env python3
"""`make test` and `make test-full`: their phases, which are targets of the Makefile, and how long each took.

    phases.py [full] [--only NAME,...] [VARIABLE=VALUE]...     e.g. `full --only test-kills,test-fleet-debian BUILT=yes`: these two, of a program that is built

What computes keeps the processors busy, and what speaks to the running program mostly waits. So they run beside each other once the program is
built, as chains whose phases go one by one. `full` is the chains of `make test`, and then those of the slow checks. What a phase of a chain says is
shown whole when it is over. In `make test` a phase that fails ends its chain, and the others at their next phase; a full run goes on, and
fails at its end. The variables are make's.
"""

import argparse
import os
import pathlib
import shlex
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))

from behind import Behind, end_all, end_as_by_ctrl_c, wait_for_some  # noqa: E402

# What the Makefile calls for the build and for what the tests need beside it, and what comes then.
FIRST = [["setup-tools"], ["build"]]
# The first chain of each list computes, and its servers, the crates' tests', have ports that no other chain has. Cargo is in it alone, whose lock nobody then waits for.
TEST = [
    ["test-rust", "lint"],
    # They share what is installed.
    ["test-e2e", "test-fleet", "test-openapi", "test-rules", "test-judge", "test-patterns", "test-canonical", "corpus", "test-sdk-python", "test-sdk-typescript", "test-sdk-go", "test-demo"],
]
# What `make test` installs is there.
SLOW = [
    # The judges share an environment, and each takes every core that it is given.
    ["test-rust-full", "test-judge-full", "test-judge-flink-full", "test-patterns-full", "fuzz-corpus", "deny"],
    # Groups of end-to-end tests take as many cores as they may by themselves, and kills as many calls as the program answers.
    ["test-e2e-debian", "test-e2e-current", "test-kills"],
    # A fleet is seven servers under a steady load that has deadlines: never two at once.
    ["test-fleet-debian", "test-fleet-current"],
]
# A phase may have groups of its own to end (tests/e2e/beside.py).
LAST_WORDS_S = 20


def phase(name, variables, ports):
    """Begins it. `ports`: the share of those that it may give its servers (tests/e2e/nats.py), None where it takes none of them."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    environment |= {"AEGIS_E2E_PORTS": ports} if ports else {}
    return Behind(name, ["make", "--no-print-directory", name, *variables], name == "build", cwd=REPOSITORY, env=environment)


class Run:
    """Which phases took how long, and which failed. `goes_on`: also behind one that failed."""

    def __init__(self, title, goes_on):
        self.title, self.goes_on = title, goes_on
        self.took, self.failed = [], []

    def chains(self, chains, variables):
        """Runs the chains beside each other, with these variables of make's."""
        waiting = [list(chain) for chain in chains]
        running = {}
        try:
            while running or (any(waiting) and self.begins_more):
                for place, chain in enumerate(waiting):
                    if chain and place not in running and self.begins_more:
                        self.say(f"{chain[0]} begins")
                        running[place] = phase(chain.pop(0), variables, share_of_chain(place, len(chains)))
                for over in wait_for_some(running.values()):
                    running = {place: behind for place, behind in running.items() if behind is not over}
                    self.end(over)
        finally:
            end_all(list(running.values()), LAST_WORDS_S)

    @property
    def begins_more(self):
        return self.goes_on or not self.failed

    def end(self, over):
        """Shows what one that is over said, and what became of it."""
        seconds = over.seconds
        self.say(f"{over.name} is over; what it said:")
        self.took.append((over.name, seconds))
        if over.close() != 0:
            self.failed.append(over.name)
            self.say(f"{over.name} FAILED after {seconds:.0f} s")
        else:
            self.say(f"{over.name} passed in {seconds:.0f} s")

    def say(self, what):
        print(f"{self.title}: {what}", flush=True)

    def table(self, seconds):
        print("\nphase                   seconds   (some ran beside each other)")
        for name, of_phase in self.took:
            print(f"{name:<22} {of_phase:8.0f}   {'FAILED' if name in self.failed else ''}".rstrip())
        print(f"{self.title:<22} {seconds:8.0f}", flush=True)


def share_of_chain(place, chains):
    """A server of one chain that is down for a moment must find its port again: the chains behind the first share them."""
    return f"{place - 1}/{chains - 1}" if place else None


def names(stages):
    return [name for chains in stages for chain in chains for name in chain]


def main(arguments):
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False)
    parser.add_argument("--only", type=lambda listed: listed.split(","))
    parser.add_argument("words", nargs="*")
    told = parser.parse_intermixed_args(arguments)
    # What was given to the make above (`make test NAME=VALUE`); its jobs are its own.
    given = [*shlex.split(os.environ.get("MAKEFLAGS", "").partition("-- ")[2]), *(word for word in told.words if "=" in word)]
    words = [word for word in told.words if "=" not in word]
    if words not in ([], ["full"]):
        parser.error(f"what is `{' '.join(words)}`? There is `full`, and VARIABLE=VALUE")
    stages = [TEST, SLOW] if words else [TEST]
    unknown = set(told.only or []) - set(names(stages))
    if unknown:
        parser.error(f"there is no phase `{'`, `'.join(sorted(unknown))}`; the phases are {', '.join(names(stages))}")
    stages = [[[name for name in chain if told.only is None or name in told.only] for chain in chains] for chains in stages]
    return run("make test-full" if words else "make test", stages, bool(words), given)


def run(title, stages, goes_on, given):
    end_as_by_ctrl_c()
    started = time.monotonic()
    phases = Run(title, goes_on)
    try:
        with tempfile.TemporaryDirectory(prefix="aegis-exchanges-") as exchanges:
            # Nobody builds what is built: cargo would have them wait for each other. Who looks at what was said over HTTP wants somebody who said it.
            then = [*given, "BUILT=yes", *([f"EXCHANGES={exchanges}"] if "test-e2e" in names(stages) else [])]
            phases.chains(FIRST, given)
            for chains in [] if phases.failed else stages:
                phases.chains(chains, then)
    finally:
        phases.table(time.monotonic() - started)
    left = len(names([FIRST, *stages])) - len(phases.took)
    if phases.failed:
        phases.say(f"FAILED, their output is above: {' '.join(phases.failed)}{f'; {left} phases were not run' if left else ''}")
        return 1
    phases.say("all passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
