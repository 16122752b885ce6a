"""RFC 3339 times, with any offset and any number of fraction digits, also where the standard library reads fewer."""

from __future__ import annotations

import datetime
import re

_RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_FIRST_S = (datetime.date(1, 1, 1).toordinal() - _EPOCH_DAY) * 86400


def microseconds(text: str) -> int | None:
    """Microseconds since the epoch, digits past the microsecond cut off; None for a text that is no such time."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, ahead_h, ahead_min = match.groups()
    # 60 is a leap second.
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60 or int(ahead_h or 0) > 23 or int(ahead_min or 0) > 59:
        return None
    try:
        days = datetime.date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    ahead = (int(ahead_h or 0) * 60 + int(ahead_min or 0)) * (-1 if sign == "-" else 1)
    seconds = days * 86400 + int(hour) * 3600 + (int(minute) - ahead) * 60 + int(second)
    # Years begin with 1 in UTC too.
    if seconds < _FIRST_S:
        return None
    return seconds * 1_000_000 + int((fraction or "")[:6].ljust(6, "0"))
