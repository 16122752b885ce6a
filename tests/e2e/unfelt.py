"""What fails behind an edge is not felt in its answers: beside those of a calm time, by the middle one, and by the slowest, which no wait for
anything behind it would stay below. Figures of a good machine are in `bench/`; these hold on a busy one."""

import statistics
import time

# A wait of half a second in every answer fails this, and so does one of some seconds in one of them. Tests and a build are at work beside.
TIMES, BESIDE_S, SLOWEST_S = 5, 0.15, 2


def timed(call):
    """What `call` answers, and how long that took in seconds."""
    began = time.monotonic()
    answer = call()
    return answer, time.monotonic() - began


def assert_answered_soon(slowest_s, who):
    assert slowest_s < SLOWEST_S, f"{who}: an answer took {slowest_s:.2f} s, and {SLOWEST_S} s are the most"


def assert_not_felt(calm, during, who):
    """`calm`, `during`: the seconds that answers took."""
    before, now = statistics.median(calm), statistics.median(during)
    most = TIMES * before + BESIDE_S
    assert now < most, f"{who}: the middle answer took {now:.3f} s, and {before:.3f} s in calm times"
    assert_answered_soon(max(during), who)
