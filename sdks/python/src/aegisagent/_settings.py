"""What both clients are told, and what they keep: one credential, one address, the server's word on each run."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from . import _endpoints, models, trust
from ._endpoints import Json
from ._exchange import Request, json_body
from ._flow import Caller
from ._transport import checked_base_url
from .errors import ConfigError
from .secret import Secret

Token = str | Secret | Callable[[], str | Secret]

DEFAULT_TIMEOUT_S = 10.0
_TENANT = re.compile(r"[a-z0-9_-]{1,64}")
# How long a report of an outcome may hold up the result that it is about.
REPORT_S = 5.0
EXPORT_S = 600.0
# Not `AEGIS_…`: the server refuses variables of that name that it does not know.
URL_VARIABLE, TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "AEGISAGENT_URL", "AEGISAGENT_TOKEN", "AEGISAGENT_TOKEN_FILE"


def token_from_env() -> Secret:
    """The credential that the environment names: in a variable, or in a file."""
    path, text = os.environ.get(TOKEN_FILE_VARIABLE), os.environ.get(TOKEN_VARIABLE)
    if path and text:
        raise ConfigError(f"set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}, not both")
    if path:
        try:
            text = Path(path).read_text(encoding="ascii")
        except (OSError, ValueError):
            text = None
        if text is None:
            raise ConfigError(f"the file that {TOKEN_FILE_VARIABLE} names cannot be read")
    if not text:
        raise ConfigError(f"set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE}")
    return Secret(text)


def url_from_env() -> str:
    """The server that the environment names."""
    return os.environ.get(URL_VARIABLE, "http://127.0.0.1:8484")


class Settings:
    """What both clients are told."""

    def __init__(
        self, base_url: str | None, token: Token | None, agent: str, environment: str | None, tenant: str | None,
        timeout_s: float, allow_plain_http: bool,
    ) -> None:  # fmt: skip
        if not 0 < timeout_s <= EXPORT_S:
            raise ConfigError(f"timeout_s is over 0 and at most {EXPORT_S:g}")
        self.base_url = checked_base_url(base_url or url_from_env(), allow_plain_http=allow_plain_http)
        given = token_from_env() if token is None else token
        self._token = Secret(given) if isinstance(given, str) else given
        if inspect.iscoroutinefunction(given):
            raise ConfigError("a function for the credential is called and not awaited; give one that is not async")
        label = {"id": trust.checked_name(agent, "agent")}
        if environment is not None:
            label["environment"] = trust.checked_name(environment, "environment")
        if tenant is not None and not _TENANT.fullmatch(tenant):
            raise ConfigError("a tenant has 1 to 64 characters of a-z, 0-9, _ and -")
        self.tenant = tenant
        self.caller = Caller(self.secret, label, timeout_s, trust.RunTokens())

    def secret(self) -> Secret:
        """The credential for the next request; a function is asked each time, so that it may change. ConfigError where it gives none."""
        if isinstance(self._token, Secret):
            return self._token
        given: object = None
        with contextlib.suppress(Exception):  # whatever it is, its text may hold anything
            given = self._token()
        if isinstance(given, Secret):
            return given
        if isinstance(given, str):
            return Secret(given)
        raise ConfigError("the function for the credential gave none")


class Base:
    _settings: Settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.base_url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client holds a credential and connections: it is not pickled or copied; make another one")

    @property
    def base_url(self) -> str:
        """Where it calls."""
        return self._settings.base_url

    @property
    def trust_tokens(self) -> trust.RunTokens:
        """The server's word on each run, which is sent back."""
        return self._settings.caller.tokens


def authorize_request(settings: Settings, call: models.ToolCall, request_id: str | None, fields: Json) -> Request[models.Decision]:
    """An authorize call as its caller wants it, with the label of the work at hand where `fields` has no context of its own."""
    body = {"agent": settings.caller.agent, "context": {"source_trust": trust.current_trust().value}} | fields
    # An empty one would be the key of every call that has an empty one: it is none.
    body |= {"tool_call": call.as_json()} | given(request_id=request_id or None)
    return _endpoints.authorize(json_body(body), is_idempotent=bool(request_id))


def given(**fields: Any) -> Json:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
