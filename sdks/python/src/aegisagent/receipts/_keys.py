"""The public keys that a verifier pins. A key that is no point of the curve, or a weak one, under which anybody can sign, is refused."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..canon import sha256_hex
from ..errors import ConfigError

_KEY_BYTES = 32
_KEY_ID_DIGITS = 16
# Edwards25519 (RFC 8032 section 5.1): −x² + y² = 1 + d·x²·y² over the integers modulo p.
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P


def decode_base64(text: str) -> bytes | None:
    """Standard base64 with padding, in its one canonical spelling; None for anything else."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None


class VerifyingKey:
    """An Ed25519 public key."""

    def __init__(self, text: str) -> None:
        """`text`: standard base64 of the 32 bytes."""
        raw = decode_base64(text.strip())
        if raw is None or len(raw) != _KEY_BYTES:
            raise ConfigError("a root is neither a key file nor an Ed25519 public key in base64")
        if not _is_point(raw):
            raise ConfigError("a root is no point of the curve")
        if _is_weak(raw):
            raise ConfigError("a root is a weak key")
        self._key = Ed25519PublicKey.from_public_bytes(raw)
        self.key_id = sha256_hex(raw)[:_KEY_ID_DIGITS]

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """True if the key has signed `message`. A signature with a weak point is refused, which only the key's holder could make."""
        if _is_weak(signature[:_KEY_BYTES]):
            return False
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Roots:
    """Pinned keys, by id."""

    def __init__(self, keys: Iterable[VerifyingKey]) -> None:
        self._keys = {key.key_id: key for key in keys}

    @classmethod
    def read(cls, roots: Iterable[str]) -> Roots | None:
        """Keys given as base64 or as files that hold it; None where none was given."""
        keys = [VerifyingKey(_content(root)) for root in roots]
        return cls(keys) if keys else None

    def get(self, key_id: str) -> VerifyingKey | None:
        """The key with this id."""
        return self._keys.get(key_id)


def _content(root: str) -> str:
    path = Path(root)
    try:
        return path.read_text(encoding="ascii") if path.is_file() else root
    except (OSError, ValueError):
        raise ConfigError("a root's file cannot be read") from None


def _y(raw: bytes) -> int:
    return (int.from_bytes(raw, "little") & (2**255 - 1)) % _P


def _is_point(raw: bytes) -> bool:
    """True for a point of the curve in its one spelling, with y below p (RFC 8032, 5.1.3)."""
    if int.from_bytes(raw, "little") & (2**255 - 1) >= _P:
        return False
    y2 = pow(_y(raw), 2, _P)
    x2 = (y2 - 1) * pow(_D * y2 + 1, -1, _P) % _P
    return x2 == 0 or pow(x2, (_P - 1) // 2, _P) == 1


def _is_weak(raw: bytes) -> bool:
    """True for the points of order 1, 2, 4 and 8: those with y = 1, −1, 0, and those whose double has y = 0."""
    y = _y(raw)
    return y in (0, 1, _P - 1) or (_D * pow(y, 4, _P) + 2 * y * y - 1) % _P == 0
