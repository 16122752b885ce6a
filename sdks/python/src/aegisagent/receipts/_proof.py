"""Commit proofs: an inclusion path of RFC 6962 from a receipt hash to the root that a commit signed."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ._failure import VerifyError
from ._keys import Roots, decode_base64

# A tree of 2^63 leaves is higher than any.
_MAX_PATH = 63
# A commit's receipts stand close together in a log, so few are enough.
_REMEMBERED_COMMITS = 4096
_HASH = re.compile(r"[0-9a-f]{64}")


def hash_from_hex(text: object) -> bytes | None:
    """The hash that 64 lower-case hex digits write; None for anything else."""
    return bytes.fromhex(text) if isinstance(text, str) and _HASH.fullmatch(text) else None


def root_of(receipt_hash: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root that `path` leads to (RFC 9162 section 2.1.3.2); None if no tree of that size has this path."""
    if index >= size:
        return None
    node, position, last = sha256(b"\x00" + receipt_hash).digest(), index, size - 1
    for sibling in path:
        if last == 0:
            return None
        if position & 1 or position == last:
            node = sha256(b"\x01" + sibling + node).digest()
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            node = sha256(b"\x01" + node + sibling).digest()
        position, last = position >> 1, last >> 1
    return node if last == 0 else None


@dataclass(frozen=True)
class _Claim:
    size: int
    index: int
    signer: str
    signature: bytes
    path: list[bytes]


class Commits:
    """Checks proofs, and remembers the commits that it has checked: one signature serves all receipts of a commit."""

    def __init__(self, roots: Roots | None) -> None:
        self._roots = roots
        self._checked: OrderedDict[tuple[int, str, bytes], bytes] = OrderedDict()

    def check(self, proof: dict[str, Any], receipt_hash: bytes, key_id: str) -> None:
        """With roots, the commit must be signed by one of them; without, all paths under one signature must lead to one root."""
        claim = _read(proof)
        if claim.signer != key_id:
            raise VerifyError.of("invalid_proof", "body and proof name different keys")
        root = root_of(receipt_hash, claim.index, claim.size, claim.path)
        if root is None:
            raise VerifyError.of("invalid_proof", "its path cannot lead to the root of a commit of its size")
        key = self._roots.get(claim.signer) if self._roots else None
        if self._roots and key is None:
            raise VerifyError.of("unknown_key", "it is signed by a key that is not pinned")
        identity = (claim.size, claim.signer, claim.signature)
        known = self._checked.get(identity)
        if known is not None and known != root:
            raise _wrong_root(signed=key is not None)
        if known is None and key is not None and not key.verifies(_statement(claim.size, root), claim.signature):
            raise _wrong_root(signed=True)
        self._remember(identity, root)

    def _remember(self, identity: tuple[int, str, bytes], root: bytes) -> None:
        self._checked[identity] = root
        if len(self._checked) > _REMEMBERED_COMMITS:
            self._checked.popitem(last=False)


def _statement(size: int, root: bytes) -> bytes:
    return f"aegis-commit-1\n{size}\n{root.hex()}\n".encode()


def _wrong_root(*, signed: bool) -> VerifyError:
    if signed:
        return VerifyError.of("bad_signature", "the commit's signature is not over the root that its path leads to")
    return VerifyError.of("invalid_proof", "its path leads to another root than its commit's other receipts")


def _read(proof: dict[str, Any]) -> _Claim:
    size, index = _number(proof, "size"), _number(proof, "index")
    signer = _text(proof, "key_id")
    signature = decode_base64(_text(proof, "signature"))
    if signature is None:
        raise _malformed("signature is not base64")
    siblings = proof.get("path")
    if not isinstance(siblings, list):
        raise _malformed("path is not an array")
    if len(siblings) > _MAX_PATH:
        raise VerifyError.of("invalid_proof", "its path is longer than any tree is high")
    path = []
    for sibling in siblings:
        node = hash_from_hex(sibling)
        if node is None:
            raise _malformed("path holds something that is not a hash in lower-case hex")
        path.append(node)
    return _Claim(size, index, signer, signature, path)


def _malformed(what: str) -> VerifyError:
    return VerifyError.of("malformed", f"proof.{what}")


def _number(proof: dict[str, Any], key: str) -> int:
    value = proof.get(key)
    if type(value) is not int or value < 0:
        raise _malformed(f"{key} is not a number")
    return value


def _text(proof: dict[str, Any], key: str) -> str:
    value = proof.get(key)
    if not isinstance(value, str):
        raise _malformed(f"{key} is not a string")
    return value
