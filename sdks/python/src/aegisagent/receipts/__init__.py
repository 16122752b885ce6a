"""Offline verification of receipts (docs/specs/receipt.md): an implementation of its own, which shares nothing with the server's."""

from ._export import BadInput, ExportReport, LaneSpan, Verdict, verify_export
from ._failure import Failure, VerifyError
from ._keys import Roots, VerifyingKey
from ._wire import VerifiedReceipt, verify_event

__all__ = [
    "BadInput",
    "ExportReport",
    "Failure",
    "LaneSpan",
    "Roots",
    "Verdict",
    "VerifiedReceipt",
    "VerifyError",
    "VerifyingKey",
    "verify_event",
    "verify_export",
]
