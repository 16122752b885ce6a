"""Reads a reply field by field: the type it must have, or BadReply. Fields that this version does not know are ignored."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from .errors import BadReply

T = TypeVar("T")
_HASH = re.compile(r"[0-9a-f]{64}")
# Longest trust token that the server takes back, characters. One is kept for each run, so a longer one would also cost memory without end.
_LONGEST_TRUST_TOKEN = 4096
# Not the two that would lead elsewhere in a path.
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.:-]{1,256}")


class Fields:
    """One JSON object of a reply."""

    def __init__(self, value: Any, what: str) -> None:
        if type(value) is not dict:
            raise BadReply(f"{what} is not an object")
        self._value: dict[str, Any] = value
        self._what = what

    def _typed(self, name: str, kind: type[T], word: str) -> T:
        value = self._value.get(name)
        if type(value) is not kind:
            raise BadReply(f"`{name}` of {self._what} is not {word}")
        return value

    def is_null(self, name: str) -> bool:
        """True where a field that must be there is null."""
        if name not in self._value:
            raise BadReply(f"{self._what} has no `{name}`")
        return self._value[name] is None

    def is_absent(self, name: str) -> bool:
        """True where a field that may be missing is null or missing."""
        return self._value.get(name) is None

    def text(self, name: str) -> str:
        """A text."""
        return self._typed(name, str, "a text")

    def maybe_text(self, name: str) -> str | None:
        """A text, or null."""
        return None if self.is_null(name) else self.text(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._typed(name, bool, "true or false")

    def integer(self, name: str) -> int:
        """A whole number."""
        return self._typed(name, int, "a whole number")

    def maybe_seconds(self, name: str) -> int | None:
        """A whole number of seconds, none of them negative; None where it is null or missing."""
        if self.is_absent(name):
            return None
        seconds = self.integer(name)
        if seconds < 0:
            raise BadReply(f"`{name}` of {self._what} is negative")
        return seconds

    def hash(self, name: str) -> str:
        """64 lower-case hex digits."""
        text = self.text(name)
        if not _HASH.fullmatch(text):
            raise BadReply(f"`{name}` of {self._what} is not a hash")
        return text

    def id(self, name: str) -> str:
        """An id that the server made. It goes into paths, errors and logs."""
        text = self.text(name)
        if not _ID.fullmatch(text):
            raise BadReply(f"`{name}` of {self._what} is no id")
        return text

    def trust_token(self, name: str) -> str:
        """A token that is to be sent back."""
        text = self.text(name)
        if len(text) > _LONGEST_TRUST_TOKEN:
            raise BadReply(f"`{name}` of {self._what} is longer than one that is taken back")
        return text

    def maybe_hash(self, name: str) -> str | None:
        """A hash, or null."""
        return None if self.is_null(name) else self.hash(name)

    def items(self, name: str) -> list[Any]:
        """A list."""
        return self._typed(name, list, "a list")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        items = self.items(name)
        if any(type(item) is not str for item in items):
            raise BadReply(f"`{name}` of {self._what} is not a list of texts")
        return tuple(items)

    def object(self, name: str) -> dict[str, Any]:
        """An object as it is."""
        return self._typed(name, dict, "an object")

    def fields(self, name: str) -> Fields:
        """An object, to be read in turn."""
        return Fields(self._value.get(name), f"`{name}` of {self._what}")
