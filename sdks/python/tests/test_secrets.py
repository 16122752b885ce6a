"""No credential and no argument in a log, a repr, an error or what an error carries; and no request where it should not go."""

import copy
import io
import json
import logging
import pickle
import ssl
import traceback
from pathlib import Path

import anyio
import certifi
import pytest
from conftest import TOKEN, as_async
from fake import FakeEdge

import aegisagent
from aegisagent import _transport

SECRET_ARGUMENT = "hunter2-and-the-rest"


def chain(error):
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def shown_by(error):
    """All texts that an error report shows, for each error of the chain."""
    return "\n".join(f"{one!r} {one} {vars(one)!r} {one.args!r} {''.join(traceback.format_exception(one))}" for one in chain(error))


def shown_with_locals(error):
    """What a reporter shows that takes the local variables of every frame along; of our own frames and the HTTP library's."""
    shown = []
    for one in chain(error):
        report = traceback.TracebackException.from_exception(one, capture_locals=True)
        own = [frame for frame in report.stack if "/aegisagent/" in frame.filename or "/http" in frame.filename]
        assert own
        shown += [line for frame in own for line in map(repr, (frame.locals or {}).items())]
    return "\n".join(shown)


ANSWERS = {
    "allow": None, "500": (500, {"error": {"code": "internal", "message": f"Bearer {TOKEN}"}}), "an echo as a code": (400, {"error": {"code": TOKEN, "message": TOKEN}}),
    "an echo as a reason": lambda honest: (200, honest[1] | {"decision": "deny", "reason": f"no\n{TOKEN}"}), "garbage": (200, TOKEN.encode()),
    "an echo in escapes": (400, json.dumps({"error": {"code": "c", "message": TOKEN}}).replace(TOKEN[0], f"\\u{ord(TOKEN[0]):04x}").encode()),
    "an echo as an id": lambda honest: (200, honest[1] | {"decision": "deny", "decision_id": f"{TOKEN}\n"}),
    "a redirect": (302, {"to": TOKEN}), "broken off": lambda _honest: lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n"),
}  # fmt: skip


@pytest.mark.feature("no-secrets")
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_no_secret_in_logs_and_errors(edge, mode, answer, caplog):
    caplog.set_level(logging.DEBUG)
    if answer is not None:
        edge.replace["authorize"] = answer
    denied = None
    try:
        mode.run(edge.url, lambda protect: protect(lambda password: 1)(SECRET_ARGUMENT), timeout_s=2.0)
    except aegisagent.Denied as error:
        denied = error
    assert (denied is None) == (answer is None)
    logged = "".join(repr(vars(record)) for record in caplog.records)
    assert logged
    for text in (shown_by(denied), caplog.text, logged):
        assert TOKEN not in text
        assert SECRET_ARGUMENT not in text
    assert TOKEN not in shown_with_locals(denied)
    assert edge.seen[0][2]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.feature("no-secrets")
def test_no_secret_in_an_error_about_an_argument(edge, mode):
    for bad in ({SECRET_ARGUMENT: float("nan")}, [SECRET_ARGUMENT, object()], {SECRET_ARGUMENT: {1: 2}}, SECRET_ARGUMENT + "\ud800"):
        with pytest.raises(aegisagent.DeniedUnfreezable, match="password") as denied:
            mode.call(edge.url, lambda password: 1, bad)
        assert SECRET_ARGUMENT not in str(denied.value) + repr(denied.value) + repr(denied.value.__cause__) + repr(vars(denied.value))


@pytest.mark.feature("no-secrets")
def test_an_error_carries_no_error_of_the_http_library(mode, recorder):
    edge = FakeEdge()
    edge.close()
    with pytest.raises(aegisagent.DeniedUnavailable) as denied:
        mode.call(edge.url, recorder, "a")
    assert all(type(error).__module__.startswith("aegisagent") for error in chain(denied.value))


@pytest.mark.feature("no-secrets")
def test_clients_and_secrets_show_nothing_and_are_not_copied():
    secret = aegisagent.Secret(TOKEN)
    with aegisagent.Client("http://127.0.0.1:1", secret) as client:
        for thing in (secret, client, aegisagent.AsyncClient("http://127.0.0.1:1", secret)):
            for shown in (repr(thing), str(thing), f"{thing}", f"{thing!r}", "%s" % thing):  # noqa: UP031
                assert TOKEN not in shown
            for copying in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError):
                    copying(thing)
    assert secret == aegisagent.Secret(TOKEN) != aegisagent.Secret(TOKEN + "x")
    assert secret.reveal() == TOKEN


@pytest.mark.feature("no-secrets")
def test_a_registration_shows_no_token_and_a_decision_no_trust_token(edge):
    edge.replace["other"] = (201, {"id": "i", "agent_key": "k", "agent_token": TOKEN, "expires_at": "2026-01-01T00:00:00Z"})
    with aegisagent.Client(edge.url, "k" * 40) as client:
        registration = client.register("k", "K", environment="test", risk_tier="low")
        decision = client.authorize(aegisagent.ToolCall("crm", "a", None, True, {"password": SECRET_ARGUMENT}))
    assert TOKEN not in repr(registration)
    assert registration.agent_token.reveal() == TOKEN
    assert "trust_token" not in repr(decision)
    assert SECRET_ARGUMENT not in repr(aegisagent.ToolCall("crm", "a", None, True, {"password": SECRET_ARGUMENT}))


@pytest.mark.feature("no-secrets")
@pytest.mark.parametrize("bad", ["", " ", "a b", "a\nb", "é", "x" * 5000, "a\x00"])
def test_what_is_no_credential_is_refused_without_being_shown(bad):
    with pytest.raises(aegisagent.ConfigError) as refused:
        aegisagent.Client("http://127.0.0.1:1", bad)
    assert not bad.strip() or bad not in str(refused.value)


@pytest.mark.feature("transport")
def test_the_environment_is_asked_for_nothing(edge, mode, recorder, monkeypatch, tmp_path):
    other = FakeEdge()
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login eve password eve\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    assert mode.call(edge.url, recorder, "a") == "done"
    assert other.seen == []
    assert edge.seen[0][2]["Authorization"] == f"Bearer {TOKEN}"
    other.close()


@pytest.mark.feature("transport")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_carries_the_token_nowhere(edge, mode, recorder, status):
    other = FakeEdge()
    edge.replace["authorize"] = lambda _honest: lambda handler: handler.reply(status, b"{}", [("location", other.url + "/v1/authorize")])
    with pytest.raises(aegisagent.DeniedUnverified, match="redirect"):
        mode.call(edge.url, recorder, "a")
    assert (other.seen, recorder.calls) == ([], [])
    other.close()


@pytest.mark.feature("no-secrets")
@pytest.mark.parametrize("status", [200, 302, 400])
def test_an_answer_that_repeats_the_credential_is_that_before_all_else(edge, mode, recorder, status):
    edge.replace["authorize"] = (status, {"to": TOKEN})
    with pytest.raises(aegisagent.DeniedUnverified, match="repeats the credential") as denied:
        mode.call(edge.url, recorder, "a")
    assert (denied.value.code, recorder.calls) == ("bad_reply", [])


@pytest.mark.feature("transport")
def test_a_cookie_is_not_kept(edge, mode, recorder):
    edge.replace["authorize"] = lambda honest: lambda handler: handler.reply(*honest, [("set-cookie", "id=1; Path=/")])
    mode.run(edge.url, lambda protect: [protect(recorder)("a"), protect(recorder)("a")])
    assert all("Cookie" not in headers for _, _, headers in edge.seen)


@pytest.mark.feature("transport")
def test_connections_are_kept(edge, mode, recorder):
    ports = []
    edge.before["authorize"] = lambda: None
    edge.replace["authorize"] = lambda honest: lambda handler: (
        ports.append(handler.client_address[1]), setattr(handler, "close_connection", False), handler.reply(*honest))  # fmt: skip
    mode.run(edge.url, lambda protect: [protect(recorder)("a") for _ in range(5)])
    assert len(set(ports)) == 1


@pytest.mark.feature("transport")
@pytest.mark.parametrize(
    "bad",
    ["", "edge", "ftp://edge", "http://edge.example", "http://10.0.0.1:8484", "http://127.0.0.1.example", "http://u:p@127.0.0.1", "https://edge/?a=1",
     "https://edge/#a", "https://edge/path", "http://[::2]:1", "http://localhost.example", None, 3],
)  # fmt: skip
def test_a_base_url_that_shows_the_token_to_others_is_refused(bad):
    with pytest.raises(aegisagent.ConfigError):
        _transport.checked_base_url(bad, allow_plain_http=False)


@pytest.mark.feature("transport")
def test_base_urls_that_are_fine():
    for good in ("http://127.0.0.1:8484", "http://localhost:1/", "http://[::1]:1", "https://edge.example", "https://10.0.0.1:1"):
        assert _transport.checked_base_url(good, allow_plain_http=False) == good.rstrip("/")
    assert _transport.checked_base_url("http://edge.example:8484", allow_plain_http=True)


@pytest.mark.feature("transport")
def test_an_id_leads_nowhere_else(edge):
    with aegisagent.Client(edge.url, "x" * 40) as client:
        for bad in ("", ".", ".."):
            with pytest.raises(aegisagent.ConfigError):
                client.receipt(bad)
        client.receipt("../agents/a?b=c#d é")
    assert edge.seen[-1][0] == "other"


@pytest.mark.feature("transport")
def test_a_token_that_changes_is_asked_for_each_time(edge):
    tokens = iter(["a" * 32, "b" * 32, "c" * 32, "d" * 32])
    with aegisagent.Client(edge.url, lambda: next(tokens)) as client:
        client.receipt("a")
        client.receipt("b")
    first, second = (headers["Authorization"] for _, _, headers in edge.seen)
    assert first != second


@pytest.mark.feature("transport")
def test_an_export_that_breaks_off_is_an_error(edge):
    def half(handler):
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"3\r\n{}\n\r\n")

    out = io.BytesIO()
    with aegisagent.Client(edge.url, "x" * 40) as client:
        edge.replace["other"] = lambda _honest: half
        with pytest.raises(aegisagent.Unreachable):
            client.export_receipts(out)
        edge.replace["other"] = (403, {"error": {"code": "wrong_role", "message": "m"}})
        out = io.BytesIO()
        with pytest.raises(aegisagent.ApiError, match="wrong_role"):
            client.export_receipts(out)
        assert out.getvalue() == b""
        edge.replace["other"] = (200, b"{}\n")
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
            client.export_receipts(full)


@pytest.mark.feature("client-config")
def test_url_and_token_come_from_the_environment_where_none_is_given(monkeypatch, tmp_path, edge, recorder):
    monkeypatch.setenv("AEGISAGENT_URL", edge.url)
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("AEGISAGENT_TOKEN_FILE", str(tmp_path / "token"))
    with aegisagent.Client() as client:
        client.receipt("a")
    assert edge.seen[-1][2]["Authorization"] == f"Bearer {TOKEN}"
    for name, value in (("AEGISAGENT_TOKEN", TOKEN), ("AEGISAGENT_TOKEN_FILE", str(tmp_path / "missing"))):
        with monkeypatch.context() as both:
            both.setenv(name, value)
            with pytest.raises(aegisagent.ConfigError):
                aegisagent.Client()
    monkeypatch.delenv("AEGISAGENT_TOKEN_FILE")
    with pytest.raises(aegisagent.ConfigError):
        aegisagent.Client()


@pytest.mark.feature("client-config")
def test_a_timeout_is_a_timeout():
    for bad in (0, -1, 10_000, float("nan")):
        with pytest.raises(aegisagent.ConfigError):
            aegisagent.Client("http://127.0.0.1:1", TOKEN, timeout_s=bad)


@pytest.mark.feature("transport")
def test_what_the_http_library_does_not_survive_is_a_denial(edge, recorder):
    with aegisagent.Client(edge.url, TOKEN) as client:
        protected = aegisagent.protect(client, tool="crm", action="a")(recorder)
    with pytest.raises(aegisagent.DeniedUnavailable):
        protected("a")

    async def main():
        async with aegisagent.AsyncClient(edge.url, TOKEN) as client:
            protected = aegisagent.protect(client, tool="crm", action="a")(as_async(recorder))
        with pytest.raises(aegisagent.DeniedUnavailable):
            await protected("a")

    anyio.run(main)
    assert (recorder.calls, edge.seen) == ([], [])


@pytest.mark.feature("client-config")
def test_labels_are_what_a_server_takes():
    for bad in ({"agent": ""}, {"agent": "\ud800"}, {"environment": "a\nb"}, {"tenant": "A"}, {"tenant": "a\r\nx-evil: 1"}):
        with pytest.raises(aegisagent.ConfigError):
            aegisagent.Client("http://127.0.0.1:1", TOKEN, **bad)


@pytest.mark.feature("no-secrets")
def test_errors_survive_a_trip_between_processes():
    for error in (
        aegisagent.DeniedByPolicy("agent_frozen", "frozen", decision_id="d", approval_id="a"), aegisagent.ApiError(409, "code", "m", retry_after_s=1.0),
        aegisagent.CanonError("syntax", "x"), aegisagent.Unreachable("unreachable", "m", sent=False), aegisagent.BadReply("m"),
    ):  # fmt: skip
        copied = pickle.loads(pickle.dumps(error))
        assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))


def counted():
    """A credential that is another one each time."""
    asked = []

    def token():
        asked.append(None)
        return f"token-{len(asked):03}-" + "x" * 24

    return token


@pytest.mark.feature("no-secrets")
def test_the_credential_that_is_sent_is_the_one_that_no_answer_may_repeat(edge, mode, recorder, caplog):
    caplog.set_level(logging.DEBUG)
    edge.replace["authorize"] = lambda honest: (
        200, honest[1] | {"decision": "deny", "reason": edge.seen[-1][2]["Authorization"].removeprefix("Bearer ")},
    )  # fmt: skip
    with pytest.raises(aegisagent.DeniedUnverified, match="repeats the credential") as denied:
        mode.run(edge.url, lambda protect: protect(recorder)("a"), token=counted())
    assert "token-0" not in shown_by(denied.value) + caplog.text
    assert recorder.calls == []


@pytest.mark.feature("transport")
def test_a_credential_is_asked_for_once_for_each_request_that_is_sent(edge, mode, recorder):
    edge.replace["authorize"] = lambda honest: (
        honest if len(edge.sent("authorize")) == 3 else (503, {"error": {"code": "c", "message": "m"}})
    )
    mode.run(edge.url, lambda protect: protect(recorder)("a"), token=counted())
    assert [headers["Authorization"][:16] for _, _, headers in edge.seen] == [f"Bearer token-{number:03}"[:16] for number in range(1, 5)]


def failing(at):
    """A credential that there is none of at the calls of these numbers."""
    asked = []

    def token():
        asked.append(None)
        if len(asked) in at:
            raise OSError(f"no {TOKEN}")
        return TOKEN

    return token


@pytest.mark.feature("no-secrets")
@pytest.mark.feature("fail-open")
def test_without_a_credential_nothing_runs_and_nothing_fails_open(edge, mode, recorder):
    for how in ({}, {"mutates_state": False, "risk": "low", "fail_open_reads": True}):
        with pytest.raises(aegisagent.DeniedUnavailable) as denied:
            mode.run(edge.url, lambda protect, how=how: protect(recorder, **how)("a"), token=failing({1}))
        assert denied.value.code == "unreachable"
        assert TOKEN not in shown_by(denied.value)
    assert (recorder.calls, edge.seen) == ([], [])
    edge.decision = "require_approval"
    for at in (2, 3):
        with pytest.raises(aegisagent.DeniedUnavailable):
            mode.run(edge.url, lambda protect: protect(recorder)("a"), token=failing({at}))
    assert recorder.calls == []


@pytest.mark.feature("protect-outcome")
def test_a_report_without_a_credential_changes_nothing_for_the_caller(edge, mode, recorder, caplog):
    assert mode.run(edge.url, lambda protect: protect(recorder)("a"), token=failing({2})) == "done"
    assert "is not reported" in caplog.text
    assert TOKEN not in caplog.text
    with pytest.raises(ZeroDivisionError):
        mode.run(edge.url, lambda protect: protect(lambda note: 1 // 0)("a"), token=failing({2}))


@pytest.mark.feature("client-config")
def test_a_credential_may_be_a_function_that_gives_a_secret_and_is_not_awaited(edge):
    with aegisagent.Client(edge.url, lambda: aegisagent.Secret(TOKEN)) as client:
        client.receipt("a")
    assert edge.seen[-1][2]["Authorization"] == f"Bearer {TOKEN}"

    async def token():
        return TOKEN

    for kind in (aegisagent.Client, aegisagent.AsyncClient):
        with pytest.raises(aegisagent.ConfigError, match="not awaited"):
            kind(edge.url, token)
    for nothing in (None, 7, "", "two words"):
        with aegisagent.Client(edge.url, lambda nothing=nothing: nothing) as client, pytest.raises(aegisagent.ConfigError):
            client.receipt("a")


@pytest.mark.feature("transport")
def test_the_keys_of_a_connection_are_written_nowhere(monkeypatch, tmp_path):
    certificates = tmp_path / "ca.pem"
    certificates.write_bytes(Path(certifi.where()).read_bytes())
    for keys in (tmp_path / "keys", tmp_path / "nowhere" / "keys"):
        monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
        for ca_file in (None, str(certificates)):
            context = _transport.ssl_context(ca_file)
            assert (context.keylog_filename, keys.exists()) == (None, False)
            assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
            assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
            assert context.cert_store_stats()["x509_ca"] > 50


@pytest.mark.feature("client-config")
def test_a_file_of_certificates_is_one(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "none").write_text("no certificate")
    for bad in ("missing", "empty", "none", "."):
        for kind in (aegisagent.Client, aegisagent.AsyncClient):
            with pytest.raises(aegisagent.ConfigError, match="ca_file"):
                kind("https://127.0.0.1:1", TOKEN, ca_file=str(tmp_path / bad))


@pytest.mark.feature("fail-open")
def test_a_client_that_was_closed_never_fails_open(edge, recorder):
    how = {"tool": "crm", "action": "a", "mutates_state": False, "risk": "low", "fail_open_reads": True}
    with aegisagent.Client(edge.url, TOKEN) as client:
        protected = aegisagent.protect(client, **how)(recorder)
    with pytest.raises(aegisagent.DeniedUnavailable):
        protected("a")
    used = aegisagent.AsyncClient(edge.url, TOKEN)

    async def call():
        return await aegisagent.protect(used, **how)(as_async(recorder))("a")

    async def main():
        await used.close()
        with pytest.raises(aegisagent.DeniedUnavailable):
            await call()

    anyio.run(main)
    assert (recorder.calls, edge.seen) == ([], [])


@pytest.mark.feature("no-secrets")
def test_a_reply_that_is_refused_leaves_nothing_of_itself_in_the_error(edge):
    fresh = "fresh-agent-token-that-nobody-may-see-9876543210"
    for reply in (
        {"id": "i", "agent_key": "k", "agent_token": fresh}, {"id": "i", "agent_key": "k", "agent_token": f"{fresh} {fresh}", "expires_at": "x"},
        {"error": {"code": "c", "message": "m"}, "agent_token": fresh},
    ):  # fmt: skip
        edge.replace["other"] = (400 if "error" in reply else 201, reply)
        with aegisagent.Client(edge.url, TOKEN) as client, pytest.raises(aegisagent.RequestFailed) as failed:
            client.register("k", "K", environment="test", risk_tier="low")
        assert fresh not in shown_by(failed.value) + shown_with_locals(failed.value)

    async def main():
        async with aegisagent.AsyncClient(edge.url, TOKEN) as client:
            with pytest.raises(aegisagent.RequestFailed) as failed:
                await client.register("k", "K", environment="test", risk_tier="low")
        assert fresh not in shown_by(failed.value) + shown_with_locals(failed.value)

    anyio.run(main)


class InPieces(io.RawIOBase):
    """Takes three bytes at a time, and at `full` no more."""

    def __init__(self, full=None):
        self.taken, self.full = b"", full

    def writable(self):
        return True

    def write(self, data):
        if self.full is not None and len(self.taken) >= self.full:
            return None
        self.taken += bytes(data)[:3]
        return min(3, len(data))


@pytest.mark.feature("transport")
def test_an_export_is_written_whole_or_is_an_error(edge):
    edge.replace["other"] = (200, b'{"a":1}\n' * 5)
    with aegisagent.Client(edge.url, TOKEN) as client:
        client.export_receipts(whole := InPieces())
        with pytest.raises(OSError, match="takes no more"):
            client.export_receipts(InPieces(full=6))
    assert whole.taken == b'{"a":1}\n' * 5
