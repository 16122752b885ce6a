#!/usr/bin/env python3
"""`make test`: its phases, which are targets of the Makefile, and how long each took.

What compiles keeps the processors busy, and what speaks to the running program mostly waits. So they run beside each other, as two chains, once the
program is built: one of cargo alone, whose lock nobody then waits for, and one of everything else, which shares what is installed and goes one by
one. What a phase of a chain says is shown whole when it is over. A phase that fails ends its chain, and the other one at its next phase.
"""

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
FIRST = ["setup-tools", "build"]
CHAINS = [
    ["test-rust", "lint"],
    ["test-e2e", "test-fleet", "test-openapi", "test-rules", "test-judge", "test-patterns", "test-canonical", "corpus", "test-sdk-python", "test-sdk-typescript", "test-sdk-go", "test-demo"],
]
# A phase may have groups of its own to end (tests/e2e/beside.py).
LAST_WORDS_S = 20


def phase(name, exchanges):
    print(f"make test: {name} begins", flush=True)
    # What was given to the make above (`make test NAME=VALUE`); its jobs are its own.
    given = shlex.split(os.environ.get("MAKEFLAGS", "").partition("-- ")[2])
    # Nobody builds what is built: cargo would have them wait for each other.
    built = [] if name in FIRST else ["BUILT=yes", f"EXCHANGES={exchanges}"]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return Behind(name, ["make", "--no-print-directory", name, *given, *built], name == "build", cwd=REPOSITORY, env=environment)


def run(chains, exchanges, took, failed):
    """Runs the chains beside each other. What took how long, and what failed, is added to both lists."""
    waiting = [list(chain) for chain in chains]
    running = {}
    try:
        while running or (any(waiting) and not failed):
            for place, chain in enumerate(waiting):
                if chain and place not in running and not failed:
                    running[place] = phase(chain.pop(0), exchanges)
            for over in wait_for_some(running.values()):
                running = {place: behind for place, behind in running.items() if behind is not over}
                seconds = over.seconds
                print(f"make test: {over.name} is over; what it said:", flush=True)
                took.append((over.name, seconds))
                if over.close() != 0:
                    failed.append(over.name)
                    print(f"make test: {over.name} FAILED after {seconds:.0f} s", flush=True)
                else:
                    print(f"make test: {over.name} passed in {seconds:.0f} s", flush=True)
    finally:
        end_all(list(running.values()), LAST_WORDS_S)


def main():
    end_as_by_ctrl_c()
    started = time.monotonic()
    took, failed = [], []
    try:
        with tempfile.TemporaryDirectory(prefix="aegis-exchanges-") as exchanges:
            run([[name] for name in FIRST], exchanges, took, failed)
            if not failed:
                run(CHAINS, exchanges, took, failed)
    finally:
        print("\nphase                 seconds   (some ran beside each other)")
        for name, seconds in took:
            print(f"{name:<20} {seconds:8.0f}   {'FAILED' if name in failed else ''}".rstrip())
        print(f"{'make test':<20} {time.monotonic() - started:8.0f}")
    left = sum(map(len, [FIRST, *CHAINS])) - len(took)
    if failed:
        print(f"make test: FAILED: {' '.join(failed)}{f'; {left} phases were not run' if left else ''}", flush=True)
        return 1
    print("make test: all passed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
