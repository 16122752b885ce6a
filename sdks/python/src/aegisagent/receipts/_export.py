"""An export, line by line: published events with receipt and proof, bare bodies, or the older form without `schema`.

Streams, so memory follows the number of lanes, not of lines. Stops at the first receipt that fails, and names it.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from ..canon import parse_strict
from ..errors import AegisError, CanonError
from ._failure import Failure, VerifyError
from ._keys import Roots
from ._proof import Commits
from ._wire import VerifiedReceipt, check_bare, check_event, hash_of

# A receipt has at most 60 KiB, its event as much.
MAX_LINE_BYTES = 1 << 20
MAX_LANES = 1_000_000
_SPACE = b" \t\n\x0c\r"


class Verdict(enum.Enum):
    """What an export proves."""

    VALID = "valid"
    """Chained, and signed under a pinned key."""
    SELF_CONSISTENT = "self-consistent"
    """Chained; no key was pinned, so whoever made the export could have made all of it."""
    INVALID = "invalid"


class BadInput(AegisError):
    """The input is not an export, whatever its receipts say."""


@dataclass
class LaneSpan:
    """How much of a lane an export holds. Over 1, `starts_at` says that the link to what came before cannot be seen."""

    starts_at: int
    last_seq: int
    closed: bool = False
    gaps: int = 0


@dataclass
class ExportReport:
    """The result. The counts are of receipts that hold, up to the first that does not; `line` is where that one stands."""

    verdict: Verdict
    receipts: int = 0
    older_form: int = 0
    proofs: int = 0
    events: int = 0
    lanes: dict[str, LaneSpan] = field(default_factory=dict)
    failure: Failure | None = None
    line: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The form that `aegis-verify-receipts --json` prints."""
        failure = None if self.failure is None else {"line": self.line, **asdict(self.failure)}
        lanes = {lane: asdict(self.lanes[lane]) for lane in sorted(self.lanes)}
        counts = {name: getattr(self, name) for name in ("receipts", "older_form", "proofs", "events")}
        return {"verdict": self.verdict.value, **counts, "lanes": lanes, "failure": failure}


def verify_export(lines: BinaryIO, roots: Roots | None = None) -> ExportReport:
    """Verifies an export. Lanes may be interleaved and may start in the middle; within a lane nothing may be missing."""
    check = _Check(roots)
    number = 0
    while line := lines.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise BadInput(f"line {number}: it is longer than {MAX_LINE_BYTES} bytes")
        text = line.strip(_SPACE)
        if not text:
            continue
        try:
            check.line(_object(text, number))
        except VerifyError as error:
            check.report.verdict, check.report.failure, check.report.line = Verdict.INVALID, error.failure, number
            return check.report
        if max(len(check.report.lanes), check.older.tenants) > MAX_LANES:
            raise BadInput(f"it names more than {MAX_LANES} lanes; split it")
    if check.report.receipts == 0:
        raise BadInput("it holds no receipt")
    return check.report


def _object(text: bytes, number: int) -> dict[str, Any]:
    try:
        value = parse_strict(text, max_bytes=MAX_LINE_BYTES)
    except CanonError as error:
        raise BadInput(f"line {number}: not strict JSON: {error.reason}; give one JSON object per line") from None
    if not isinstance(value, dict):
        raise BadInput(f"line {number}: it is not a JSON object; give one JSON object per line")
    return value


class _Check:
    def __init__(self, roots: Roots | None) -> None:
        self.report = ExportReport(Verdict.VALID if roots else Verdict.SELF_CONSISTENT)
        self.older = _OlderChain()
        self._commits = Commits(roots)
        self._must_be_signed = roots is not None
        self._heads: dict[str, VerifiedReceipt] = {}

    def line(self, line: dict[str, Any]) -> None:
        if isinstance(line.get("receipt"), dict):
            self._follow(check_event(line, self._commits, must_be_signed=self._must_be_signed))
            self.report.proofs += 1
            self.report.events += 1
        elif "schema" in line:
            self._follow(check_bare(line, self._commits, must_be_signed=self._must_be_signed))
            self.report.proofs += "proof" in line
        else:
            self.older.check(line, must_be_signed=self._must_be_signed)
            self.report.older_form += 1
        self.report.receipts += 1

    def _follow(self, receipt: VerifiedReceipt) -> None:
        broken = _break_of(receipt, self._heads.get(receipt.lane))
        if broken is not None:
            raise VerifyError(Failure(*broken, event_id=receipt.event_id, lane=receipt.lane, seq=receipt.seq))
        self._heads[receipt.lane] = receipt
        span = self.report.lanes.setdefault(receipt.lane, LaneSpan(receipt.seq, receipt.seq))
        span.last_seq = receipt.seq
        span.closed = receipt.phase == "close"
        span.gaps += receipt.phase == "gap"


def _break_of(receipt: VerifiedReceipt, head: VerifiedReceipt | None) -> tuple[str, str] | None:
    """Which rule of its lane a receipt breaks, after the one before it in the export; None for none."""
    is_first = receipt.seq == 1
    if is_first != (receipt.prev_receipt_hash == "") or is_first != (receipt.phase == "open"):
        return "lane_rule", "seq 1, no previous receipt and phase open go together"
    if head is None:
        return None
    if receipt.seq == head.seq and receipt.receipt_hash == head.receipt_hash:
        return "repeated_seq", f"seq {receipt.seq} stands twice in the export"
    if receipt.seq <= head.seq:
        return "forked_seq", f"the lane has another receipt with seq {receipt.seq}, or had a later one before it"
    if head.phase == "close":
        return "lane_rule", f"the lane was closed at seq {head.seq}"
    if receipt.seq > head.seq + 1:
        return "missing_seq", f"receipts with seq {head.seq + 1} to {receipt.seq - 1} are missing before it"
    if receipt.prev_receipt_hash != head.receipt_hash:
        return "broken_link", f"it does not link to the receipt with seq {head.seq}"
    if receipt.ts < head.ts:
        return "time_reversed", f"its ts is earlier than that of seq {head.seq}"
    return None


class _OlderChain:
    """Bodies without `schema`: each links to the one before, in the file or of its tenant."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._last_of: dict[str, str] = {}

    @property
    def tenants(self) -> int:
        return len(self._last_of)

    def check(self, line: dict[str, Any], *, must_be_signed: bool) -> None:
        try:
            self._check(line, must_be_signed=must_be_signed)
        except VerifyError as error:
            raise VerifyError(error.failure.about(line)) from None

    def _check(self, line: dict[str, Any], *, must_be_signed: bool) -> None:
        if must_be_signed:
            raise VerifyError.of("unsigned", "the older form carries no signature, and a key is pinned; verify it without one")
        claimed = line.get("receipt_hash")
        if not isinstance(claimed, str):
            raise VerifyError.of("missing_receipt", "it has neither a receipt nor a receipt_hash")
        if hash_of(line, {"receipt_hash"}).hex() != claimed:
            raise VerifyError.of("hash_mismatch", "receipt_hash is not the hash of the rest")
        previous = line.get("prev_receipt_hash")
        previous = "" if previous is None else previous
        if not isinstance(previous, str):
            raise VerifyError.of("malformed", "its prev_receipt_hash is not a string")
        tenant = line.get("tenant_id")
        tenant = tenant if isinstance(tenant, str) else ""
        before = self._last_of.get(tenant)
        # The first line of the file may stand anywhere in its chain; a tenant's first may begin one.
        is_linked = self._last is None or previous in (self._last, before) or (before is None and previous == "")
        if not is_linked:
            raise VerifyError.of("broken_link", "it does not link to the receipt before it")
        self._last = self._last_of[tenant] = claimed
