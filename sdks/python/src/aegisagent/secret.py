"""A credential that no log, repr, error or pickle shows."""

from __future__ import annotations

import hmac
from typing import NoReturn

from .errors import ConfigError

# RFC 6750: what may stand behind `Bearer`. Longer than any of ours: 4096.
_MAX_CHARACTERS = 4096


class Secret:
    """A text that is shown by `reveal()` only."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        text = value.strip()
        if not text or len(text) > _MAX_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
            raise ConfigError(f"a credential is one line of 1 to {_MAX_CHARACTERS} printable ASCII characters without spaces")
        self._value = text

    def reveal(self) -> str:
        """The text itself. Where it goes from here is the caller's to answer for."""
        return self._value

    def redact(self, text: str) -> str:
        """`text` without the secret in it."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled or copied; hand over the object itself")
