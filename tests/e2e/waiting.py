"""Waiting for a condition, with a deadline, and names that nobody else uses. Nothing here sleeps and hopes."""

import itertools
import time

# Long, because the machine may be busy; a condition that holds ends the wait at once.
DEADLINE_S = 60

_numbers = itertools.count(1)


def unique(prefix):
    """A name that no other test of this run uses."""
    return f"{prefix}-{next(_numbers)}"


def wait_until(what, condition, deadline_s=DEADLINE_S, longest_pause_s=0.25):
    """Returns the first truthy value of `condition`; fails when there is none within the deadline."""
    end = time.monotonic() + deadline_s
    pause = min(0.005, longest_pause_s)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, longest_pause_s)
