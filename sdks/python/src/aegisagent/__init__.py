"""AegisAgent for Python: a tool function runs only as it was authorized, and receipts are verified offline. See README.md."""

from . import receipts
from ._flow import Clearance
from ._version import VERSION
from .aclient import AsyncClient
from .callbacks import verify_callback
from .canon import CANON_VERSION, action_hash, canonicalize, canonicalize_value, parse_strict
from .client import Client
from .errors import (
    AegisError,
    ApiError,
    BadReply,
    CanonError,
    ConfigError,
    Denied,
    DeniedByApprover,
    DeniedByPolicy,
    DeniedUnavailable,
    DeniedUnfreezable,
    DeniedUnverified,
    LazyResult,
    RequestFailed,
    Unreachable,
)
from .models import Approval, ApprovalRef, Consumed, Containment, Decision, Outcome, Registration, ToolCall
from .protect import protect
from .secret import Secret
from .trust import (
    SourceTrust,
    Thread,
    TrustThreadPoolExecutor,
    current_run,
    current_trust,
    in_context,
    on_behalf_of,
    run,
    source_trust,
    submit,
)

__version__ = VERSION

__all__ = [
    "CANON_VERSION",
    "AegisError",
    "ApiError",
    "Approval",
    "ApprovalRef",
    "AsyncClient",
    "BadReply",
    "CanonError",
    "Clearance",
    "Client",
    "ConfigError",
    "Consumed",
    "Containment",
    "Decision",
    "Denied",
    "DeniedByApprover",
    "DeniedByPolicy",
    "DeniedUnavailable",
    "DeniedUnfreezable",
    "DeniedUnverified",
    "LazyResult",
    "Outcome",
    "Registration",
    "RequestFailed",
    "Secret",
    "SourceTrust",
    "Thread",
    "ToolCall",
    "TrustThreadPoolExecutor",
    "Unreachable",
    "action_hash",
    "canonicalize",
    "canonicalize_value",
    "current_run",
    "current_trust",
    "in_context",
    "on_behalf_of",
    "parse_strict",
    "protect",
    "receipts",
    "run",
    "source_trust",
    "submit",
    "verify_callback",
]
