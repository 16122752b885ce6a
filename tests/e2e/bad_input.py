"""Requests to an edge that are wrong, and what is no HTTP at all."""

import base64
import json
import socket
import time
import unittest

from exchange import send
from harness import Aegis
from refused import LARGEST_SAFE, INTERNALS, MISSING, WRONG_TYPES, Refused, bad_tokens, jwt_read, nested, set_at, unreadable_bodies
from waiting import wait_until


class Authorize(Refused):
    REQUIRED = {
        "agent": "object", "agent.id": "text", "tool_call": "object", "tool_call.tool": "text", "tool_call.action": "text",
        "tool_call.mutates_state": "flag", "tool_call.parameters": "object", "context": "object", "context.source_trust": "text",
    }
    OPTIONAL = {
        "request_id": "optional text", "agent.environment": "optional text", "user": "optional object", "user.id": "text",
        "user.role": "optional text", "tool_call.resource": "optional text", "context.contains_sensitive_data": "optional flag",
        "context.channel": "optional text", "context.source_signature": "optional text", "trace": "optional object",
        "trace.run_id": "optional text", "trace.trace_id": "optional text", "trace.parent_run_id": "optional text",
        "trace.root_trust_level": "optional text", "trace.trust_token": "optional text", "callback": "optional object",
        "callback.url": "text", "nonce": "optional text", "timestamp": "optional text", "canon_version": "optional text",
        "dry_run": "optional flag",
    }

    def test_a_body_that_is_not_strict_json_is_refused(self):
        for name, body, code in unreadable_bodies(self.agent.request()):
            reply = self.agent.send(body)
            self.assert_refused(reply, 413 if name == "over the limit" else 400, code, name)

    def test_128_levels_and_the_largest_integers_are_taken(self):
        # The other side of the limits. A dry run, so that nothing changes: the body is level 1, tool_call 2, parameters 3.
        body = self.agent.request(dry_run=True)
        text = json.dumps(set_at(body, "tool_call.parameters", "@")).encode()
        deepest = b'{"a": ' + nested(125) + b', "n": [%d, %d]}' % (LARGEST_SAFE, -LARGEST_SAFE)
        self.assertEqual(self.agent.send(text.replace(b'"@"', deepest)).expect(200)["decision"], "allow")
        too_deep = b'{"a": ' + nested(126) + b"}"
        self.assert_refused(self.agent.send(text.replace(b'"@"', too_deep)), 400, "depth_exceeded")

    def test_a_field_of_the_wrong_type_is_refused_and_named(self):
        for path, kind in (self.REQUIRED | self.OPTIONAL).items():
            for wrong in WRONG_TYPES[kind]:
                body = set_at(self.agent.request(), path, wrong)
                if path == "user.id":
                    body["user"] = {"id": wrong}
                reply = self.agent.send(body)
                self.assert_refused(reply, 400, None, f"{path} = {wrong!r}")

    def test_a_missing_field_is_refused_and_named(self):
        for path in self.REQUIRED:
            reply = self.agent.send(set_at(self.agent.request(), path, MISSING))
            self.assert_refused(reply, 400, None, path)
            self.assertIn(path.split(".")[-1], reply.text)

    def test_a_field_that_is_too_long_or_not_printable_is_refused(self):
        # The trust label takes any text, as `unknown`; a parameter's text is the caller's business.
        named = [path for path, kind in (self.REQUIRED | self.OPTIONAL).items() if kind.endswith("text")]
        for path in named:
            if path in ("context.source_trust", "trace.root_trust_level"):
                continue
            for wrong in ("x" * 5000, "a\nb", "a\u0000b", "\u001b[31m", "\u007f"):
                body = set_at(self.agent.request(), path, wrong)
                if path == "user.id":
                    body["user"] = {"id": wrong}
                self.assert_refused(self.agent.send(body), 400, None, f"{path} = {wrong[:5]!r}")
        for path in ("request_id", "tool_call.tool", "tool_call.action"):
            self.assert_refused(self.agent.send(set_at(self.agent.request(), path, "")), 400, None, f"{path} empty")

    def test_a_time_that_is_none_is_refused(self):
        for wrong in ("yesterday", "2026-13-01T00:00:00Z", "2026-11-22", "1700000000", "2026-11-22T00:00:00"):
            self.assert_refused(self.agent.send(self.agent.request(timestamp=wrong)), 400, None, wrong)

    def test_a_callback_that_is_not_on_the_allow_list_is_refused(self):
        for url in ("http://169.254.169.254/latest/meta-data", "https://example.com/hook", "file:///etc/passwd", ""):
            self.assert_refused(self.agent.send(self.agent.request(callback={"url": url})), 400, "callback_not_allowed", url)

    def test_another_content_type_is_refused(self):
        body = self.agent.request()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", "multipart/form-data; boundary=x", ""):
            self.assert_refused(self.agent.send(body, {"content-type": kind}), 415, "unsupported_media_type", kind)

    def test_a_body_announced_too_large_is_refused_unread(self):
        connection = self.aegis.connection()
        self.addCleanup(connection.close)
        connection.putrequest("POST", "/v1/authorize")
        connection.putheader("authorization", f"Bearer {self.agent.token}")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(1 << 50))
        connection.endheaders()
        reply = connection.getresponse()
        self.assertEqual(reply.status, 413)
        self.refused += 1

    def test_a_body_without_an_announced_length_is_still_bounded(self):
        connection = self.aegis.connection()
        self.addCleanup(connection.close)
        headers = {"authorization": f"Bearer {self.agent.token}", "content-type": "application/json"}
        body = iter([b'{"a": "'] + [b"x" * 65536] * 40 + [b'"}'])
        self.assert_refused(send(connection, "POST", "/v1/authorize", body, headers), 413, "body_too_large")

    def test_another_tenant_s_header_is_refused(self):
        body = self.agent.request()
        for name in (self.other.name, "nobody", self.tenant.name.upper(), self.tenant.name + " x", "*", ""):
            self.assert_refused(self.agent.send(body, {"x-aegis-tenant-id": name}), 401, "tenant_mismatch", name)
        self.assertEqual(self.agent.send(self.agent.request(dry_run=True), {"x-aegis-tenant-id": self.tenant.name}).status, 200)

    def test_a_credential_that_is_no_agent_token_is_refused(self):
        for name, token in bad_tokens(self.aegis, self.agent) + [("an admin key", self.tenant.admin), ("a registrar key", self.tenant.registrar)]:
            reply = self.aegis.post("/v1/authorize", token, self.agent.request())
            self.assert_refused(reply, 401, "invalid_token", name)
        for name, header in (("basic", "Basic " + base64.b64encode(b"a:b").decode()), ("no scheme", self.agent.token), ("scheme only", "Bearer")):
            reply = self.aegis.post("/v1/authorize", None, self.agent.request(), {"authorization": header})
            self.assert_refused(reply, 401, "invalid_token", name)

    def test_what_is_wrong_is_said_after_who_is_asking(self):
        for body in (b"{", b"x" * (2 << 20)):
            self.assert_refused(self.aegis.post("/v1/authorize", None, body), 401, "invalid_token")


class Expiry(unittest.TestCase):
    def test_a_token_past_its_time_is_refused_everywhere(self):
        aegis = Aegis(environment={"AEGIS_CONTROL_AGENT_TOKEN_TTL_S": "2"})
        self.addCleanup(aegis.close)
        tenant = aegis.start().tenant().register_tools()
        agent = tenant.register_agent()
        expires = jwt_read(agent.token.split(".")[1])["exp"]
        reply = wait_until("the token expires", lambda: (r := agent.send(agent.request())).status != 200 and r)
        self.assertEqual((reply.status, reply.code), (401, "invalid_token"))
        self.assertGreaterEqual(time.time(), expires)
        self.assertEqual(aegis.get("/v1/decisions/x", agent.token).status, 401)


class Wire(Refused):
    """Below HTTP's own rules."""

    def test_what_is_not_http_is_refused_and_the_server_goes_on(self):
        head = b"POST /v1/authorize HTTP/1.1\r\nhost: x\r\n"
        for name, raw in {
            "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
            "a line": b"hello there\r\n\r\n",
            "no version": b"GET /v1/tools\r\n\r\n",
            "HTTP/9": b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
            "two lengths": head + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}",
            "a negative length": head + b"content-length: -1\r\n\r\n",
            "a bad chunk": head + b"transfer-encoding: chunked\r\n\r\nZZZ\r\n",
            "a header without end": head + b"x: " + b"y" * (2 << 20),
            "10,000 headers": head + b"".join(b"x%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
            "a space in the name": head + b"content length: 5\r\n\r\n",
            "a NUL in a value": head + b"x: a\x00b\r\n\r\n",
        }.items():
            with self.subTest(name), socket.create_connection(("127.0.0.1", self.aegis.port), timeout=30) as connection:
                self.refused += 1
                answer = b""
                try:
                    connection.sendall(raw)
                    while chunk := connection.recv(65536):
                        answer += chunk
                except (ConnectionResetError, BrokenPipeError):
                    pass
                if answer:
                    self.assertRegex(answer.split(b"\r\n")[0], rb"^HTTP/1\.[01] (4\d\d|505)")
                    self.assertIsNone(INTERNALS.search(answer.decode("latin-1")))

    def test_a_length_and_chunks_at_once_are_not_two_requests(self):
        # RFC 9112 section 6.1: the smuggler's favourite. Either refused, or read as chunks with the connection closed behind it.
        smuggled = b"GET /v1/tools HTTP/1.1\r\nhost: x\r\n\r\n"
        raw = (b"POST /v1/nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(smuggled))) + smuggled
        with socket.create_connection(("127.0.0.1", self.aegis.port), timeout=30) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while chunk := connection.recv(65536):
                    answer += chunk
            except ConnectionResetError:
                pass
        self.refused += 1
        self.assertLessEqual(answer.count(b"HTTP/1.1 "), 1, answer)
