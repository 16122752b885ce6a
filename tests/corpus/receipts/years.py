"""Times at the edges of what is a time: the years 1 to 9999 in UTC, by the calendar of today all the way back."""

from collections.abc import Iterator

from case import Case
from chains import lane_at

FIRST, LAST = "0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"


def years() -> Iterator[Case]:
    for text in (
        FIRST, "0001-01-01T00:00:00.000001Z", "0001-12-31T23:59:59.999999Z", "0099-12-31T23:59:59.999999Z", "0100-01-01T00:00:00.000000Z",
        "0004-02-29T00:00:00.000000Z", "0400-02-29T00:00:00.000000Z", "1582-10-10T00:00:00.000000Z", "1677-09-21T00:12:43.145224Z",
        "1677-09-21T00:12:43.145225Z", "1900-02-28T23:59:59.999999Z", "1901-12-13T20:45:51.999999Z", "2038-01-19T03:14:08.000000Z",
        "2106-02-07T06:28:16.000000Z", "2262-04-11T23:47:16.854776Z", "8000-02-29T00:00:00.000000Z", LAST,
    ):  # fmt: skip
        yield Case(f"the time {text}", lane_at(text))
    for text in (
        "0000-01-01T00:00:00.000000Z", "0000-12-31T23:59:59.999999Z", "0000-02-29T00:00:00.000000Z", "0100-02-29T00:00:00.000000Z",
        "1900-02-29T00:00:00.000000Z", "9999-02-29T00:00:00.000000Z", "10000-01-01T00:00:00.000000Z", "+10000-01-01T00:00:00.000000Z",
        "-0001-01-01T00:00:00.000000Z", "+0001-01-01T00:00:00.000000Z", "001-01-01T00:00:00.000000Z", "1-01-01T00:00:00.000000Z",
        "0001-00-01T00:00:00.000000Z", "0001-01-00T00:00:00.000000Z", "9999-12-32T00:00:00.000000Z", "9999-12-31T24:00:00.000000Z",
        # Of the year 0 where it is UTC: no time, however it is read.
        "0001-01-01T00:00:00.000000+00:01", "0001-01-01T00:59:59.999999+01:00", "0001-01-01T23:58:59.999999+23:59",
    ):  # fmt: skip
        yield Case(f"the time {text}", lane_at(text), "malformed")
    yield Case("a lane from the first time to the last", lane_at(FIRST, FIRST, LAST, LAST))
    for before, after in [
        (LAST, FIRST), ("0001-01-01T00:00:00.000001Z", FIRST), (LAST, "9999-12-31T23:59:59.999998Z"), ("1970-01-01T00:00:00.000000Z", "1969-12-31T23:59:59.999999Z"),
        ("0002-01-01T00:00:00.000000Z", "0001-12-31T23:59:59.999999Z"), ("1582-10-15T00:00:00.000000Z", "1582-10-14T23:59:59.999999Z"),
    ]:  # fmt: skip
        yield Case(f"{after} after {before}", lane_at(before, after), "time_reversed")
        yield Case(f"{before} after {after}", lane_at(after, before))


CLASSES = [years]
