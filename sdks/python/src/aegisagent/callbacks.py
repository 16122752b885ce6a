"""Callbacks about approvals: whether one is the server's. docs/specs/callback.md."""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from .errors import ConfigError

# What the server takes at least: with a shorter or empty one, anybody could sign.
_LEAST_SECRET_BYTES = 32
# Two while a secret is changed; room for more, and no room for work without end.
_MOST_SIGNATURES = 8
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"v1=[0-9a-f]{64}")


def verify_callback(
    secret: str | bytes,
    timestamp: str | None,
    signature: str | None,
    body: bytes,
    *,
    tolerance_s: float = 300,
    now: float | None = None,
) -> bool:
    """True for a callback that a holder of the secret signed not longer than `tolerance_s` ago. `timestamp` and `signature` are the headers
    `AegisAgent-Timestamp` and `AegisAgent-Signature` as they came, None for one that did not; `body` is what came, before any parser.

    What is true of a callback is that something changed: ask `Client.approval`, and act on its answer alone.
    """
    key = secret.encode() if isinstance(secret, str) else bytes(secret)
    if len(key) < _LEAST_SECRET_BYTES:
        raise ConfigError(f"the secret of callbacks has {_LEAST_SECRET_BYTES} bytes at least")
    if not isinstance(body, bytes | bytearray | memoryview):
        raise ConfigError("the body of a callback is bytes, as they came")
    if timestamp is None or signature is None or not _TIMESTAMP.fullmatch(timestamp):
        return False
    # Not "later than": of a tolerance that is no number nothing is true.
    if not abs((time.time() if now is None else now) - int(timestamp)) <= tolerance_s:
        return False
    signatures = signature.split(",", _MOST_SIGNATURES)
    if len(signatures) > _MOST_SIGNATURES or not all(_SIGNATURE.fullmatch(one.strip()) for one in signatures):
        return False
    right = "v1=" + hmac.new(key, timestamp.encode() + b"." + bytes(body), hashlib.sha256).hexdigest()
    # Each is compared, in constant time.
    return sum(hmac.compare_digest(one.strip(), right) for one in signatures) > 0
