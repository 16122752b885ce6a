"""aegis-jcs-1: the one canonical JSON form, and the action hash over it (CONTRACTS section 1, `corpus/canonical/`).

The strict door is ours; the canonical writing is RFC 8785 by the package `rfc8785`. Only the exact JSON types pass: a subclass could say
one thing here and another where it is used.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

import rfc8785

from . import _door
from .errors import CanonError

CANON_VERSION = "aegis-jcs-1"
# Of an input and of a canonical form, bytes.
DEFAULT_MAX_BYTES = 1 << 20
MAX_DEPTH = _door.MAX_DEPTH


def parse_strict(data: bytes | str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """The value of a JSON text that means one thing in every language; CanonError for any other text."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > max_bytes:
        raise CanonError("size_exceeded")
    text = _decoded(raw)
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        pass
    else:
        # Only a text with a `\ud…` escape can hold half a pair, and only one with many brackets can be too deep.
        is_whole = "\\ud" not in text and "\\uD" not in text
        if is_whole and (text.count("[") + text.count("{") <= MAX_DEPTH or _is_flat(value, MAX_DEPTH)):
            return value
    return _door.read(text)


def _is_flat(value: Any, levels: int) -> bool:
    """True if no more than `levels` containers are open at once."""
    items = value.values() if type(value) is dict else value if type(value) is list else None
    if items is None:
        return True
    return levels > 0 and all(_is_flat(item, levels - 1) for item in items if type(item) in (dict, list))


def canonicalize(data: bytes | str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """The canonical form of a JSON text. `max_bytes` holds for the text and for the form."""
    return _bounded(rfc8785.dumps(parse_strict(data, max_bytes=max_bytes)), max_bytes)


def canonicalize_value(value: Any, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """The canonical form of a value made of None, bool, int, float, str, list and dict, and of nothing else."""
    return _bounded(rfc8785.dumps(exact_copy(value, max_bytes=max_bytes)), max_bytes)


def action_hash(tool: str, action: str, resource: str | None, mutates_state: bool, parameters: dict[str, Any]) -> str:
    """What an approval, a receipt and an execution are bound to: lower-case hex SHA-256 over exactly these five."""
    is_action = type(tool) is type(action) is str and type(resource) in (str, type(None))
    if not is_action or type(mutates_state) is not bool or type(parameters) is not dict:
        raise CanonError("unsupported_type", "the action: texts, a resource or None, a bool and a dict")
    five = {
        "tool": tool,
        "action": action,
        "resource": resource,
        "mutates_state": mutates_state,
        "parameters": parameters,
    }
    return sha256_hex(canonicalize_value(five))


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def exact_copy(value: Any, *, where: str = "", depth: int = 0, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """A deep copy of plain JSON, each value looked at once. `where` names the value in errors, which never repeat it."""
    return Copier(max_bytes).copy(value, where, depth)


class Copier:
    """Makes exact copies that together have a canonical form of at most `max_bytes`.

    Each part is charged no more than it takes in that form, before it is copied. So nothing that fits is refused, and what cannot fit ends
    early, also what refers to one thing many times.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._left = max_bytes

    def copy(self, value: Any, where: str = "", depth: int = 0) -> Any:
        """An exact copy of a value that stands at this depth."""
        kind = type(value)
        if kind is str:
            return self._text(value, where)
        self._charge(1, where)
        if value is None or kind is bool:
            return value
        if kind is int:
            if abs(value) > _door.MAX_SAFE_INTEGER:
                raise CanonError("integer_out_of_range", where)
            return value
        if kind is float:
            if value - value != 0.0:
                raise CanonError("non_finite_number", where)
            return value
        if kind is not list and kind is not dict:
            raise CanonError("unsupported_type", f"{where or 'the value'} ({kind.__name__}); only plain JSON types have a canonical form")
        if depth >= MAX_DEPTH:
            raise CanonError("depth_exceeded", where)
        if kind is list:
            return [self._item(item, where, depth + 1) for item in value]
        return {self.key(key, where): self.copy(item, where, depth + 1) for key, item in value.items()}

    def key(self, key: Any, where: str = "") -> str:
        """A key of an object."""
        if type(key) is not str:
            raise CanonError("unsupported_type", f"{where or 'the value'} (a key of type {type(key).__name__}); keys are texts")
        # The colon, and the comma or bracket behind the value.
        self._charge(2, where)
        return self._text(key, where)

    def _item(self, item: Any, where: str, depth: int) -> Any:
        # The comma or bracket behind it.
        self._charge(1, where)
        return self.copy(item, where, depth)

    def _text(self, text: str, where: str) -> str:
        self._charge(len(text) + 2, where)
        return _sound_text(text, where)

    def _charge(self, size: int, where: str) -> None:
        self._left -= size
        if self._left < 0:
            raise CanonError("size_exceeded", where)


def _sound_text(text: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CanonError("lone_surrogate", where) from None
    return text


def _bounded(canonical: bytes, max_bytes: int) -> bytes:
    if len(canonical) > max_bytes:
        raise CanonError("size_exceeded")
    return canonical


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise CanonError("invalid_utf8") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise CanonError("duplicate_key")
    return members


def _integer(literal: str) -> int:
    # A decoder in pure Python would take digits of other scripts.
    return _door.integer(literal) if literal.isascii() else _refuse("syntax")


def _double(literal: str) -> float:
    return _door.double(literal) if literal.isascii() else _refuse("syntax")


def _refuse(reason: str) -> NoReturn:
    raise CanonError(reason)


def _constant(_name: str) -> NoReturn:
    _refuse("non_finite_number")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=_integer, parse_float=_double, parse_constant=_constant)
