"""Why a receipt does not verify. The codes are part of the format; exports, events and corpora name them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import AegisError

# What fails may be hostile, and this goes into reports and logs.
_SHOWN = 200


@dataclass(frozen=True)
class Failure:
    """The first rule that is broken, and what the receipt says it is, where that can be read."""

    code: str
    message: str
    event_id: str | None = None
    lane: str | None = None
    seq: int | None = None

    def about(self, body: dict[str, Any]) -> Failure:
        """The same with what `body` claims to be."""
        seq = body.get("seq")
        return replace(
            self,
            event_id=self.event_id or _text(body, "event_id"),
            lane=self.lane or _text(body, "lane"),
            seq=self.seq if self.seq is not None else seq if type(seq) is int else None,
        )


def _text(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    return value[:_SHOWN] if isinstance(value, str) else None


class VerifyError(AegisError):
    """A receipt does not verify: see `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure

    @classmethod
    def of(cls, code: str, message: str) -> VerifyError:
        """A failure of which only the rule is known yet."""
        return cls(Failure(code, message))
