"""Requests that are wrong: each gets a clear 4xx without internals, and afterwards nothing has changed."""

import base64
import copy
import json
import re
import socket
import time
import unittest

from ed25519 import SigningKey
from harness import Aegis, send, unique, wait_until

LARGEST_SAFE = 2**53 - 1
# What must never stand in an answer: storage, sources, places on the disk, panics.
INTERNALS = re.compile(r"sqlite|sqlx|src/|\.rs\b|panicked|unwrap|/root|/tmp|/home|\.db\b|thread '|backtrace", re.IGNORECASE)
MISSING = object()


def nested(depth):
    return b"[" * depth + b"]" * depth


def set_at(body, path, value):
    """A copy of `body` with `value` at the dotted path; without it for MISSING."""
    changed = copy.deepcopy(body)
    *parents, last = path.split(".")
    place = changed
    for name in parents:
        place = place.setdefault(name, {})
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return changed


class Refused(unittest.TestCase):
    """One instance and tenant, and what the tenant holds before and after each test."""

    @classmethod
    def setUpClass(cls):
        cls.aegis = Aegis()
        cls.addClassCleanup(cls.aegis.close)
        cls.aegis.start()
        cls.tenant = cls.aegis.tenant().register_tools()
        cls.other = cls.aegis.tenant()
        cls.agent = cls.tenant.register_agent()
        cls.witness = cls.tenant.register_agent()
        cls.approver = cls.tenant.key("approver", groups=("*",))
        waiting = cls.agent.authorize(action="refund", parameters={"amount": 5})
        cls.approval = waiting["approval"]["approval_id"]
        cls.action_hash = waiting["action_hash"]
        cls.decision = waiting["decision_id"]
        path = f"/v1/approvals/{cls.approval}"
        wait_until("the approval is there", lambda: cls.tenant.get(path).status == 200)

    def setUp(self):
        self.before = self.holdings()
        self.refused = 0

    def tearDown(self):
        self.assert_unchanged()
        self.note = f"{self.refused} requests"

    def holdings(self):
        """Everything a request could have changed. A fence on each path shows that nothing is still on its way."""
        fences = [self.witness.authorize()["decision_id"]]
        channel = {"channel": unique("fence"), "source_trust": "unknown"}
        self.tenant.post("/v1/channels", channel).expect(201)

        def receipts_behind_the_fences():
            receipts = self.tenant.list("/v1/receipts")
            bodies = [receipt.get("receipt", receipt) for receipt in receipts]
            changes = [(body.get("detail") or {}).get("channel") for body in bodies]
            seen = {body["event_id"] for body in bodies}
            return receipts if seen.issuperset(fences) and channel["channel"] in changes else None

        receipts = wait_until("the fences are in the history", receipts_behind_the_fences)
        lists = ["agents", "tools", "mcp/servers", "resources", "approvals", "containment", "alerts", "incidents", "keys"]
        held = {name: self.tenant.list(f"/v1/{name}") for name in lists}
        for name in ("policies", "settings"):
            held[name] = self.tenant.get(f"/v1/{name}").expect(200)
        held["decisions"] = len(self.tenant.list("/v1/decisions"))
        held["receipts"] = len(receipts)
        return held

    def assert_unchanged(self):
        after = self.holdings()
        # The second look's own fences: one decision, and one change of the registry.
        self.before["decisions"] += 1
        self.before["receipts"] += 2
        for name, before in self.before.items():
            self.assertEqual(after[name], before, f"{name} changed")

    def assert_refused(self, reply, status, code=None, name=""):
        """A clear error: this status (or one of these), a code, a message for people, and nothing of the inside."""
        self.refused += 1
        allowed = status if isinstance(status, tuple) else (status,)
        with self.subTest(name):
            self.assertIn(reply.status, allowed, f"{name}: {reply}")
            self.assertTrue(reply.headers.get("content-type", "").startswith("application/json"), reply.headers)
            body = reply.json
            self.assertEqual(set(body), {"error"})
            self.assertEqual(set(body["error"]), {"code", "message"})
            self.assertRegex(body["error"]["code"], r"^[a-z0-9_]+$")
            self.assertTrue(body["error"]["message"])
            self.assertIsNone(INTERNALS.search(reply.text), f"internals in {reply.text[:500]}")
            self.assertLess(len(reply.body), 2000)
            if code is not None:
                allowed_codes = code if isinstance(code, tuple) else (code,)
                self.assertIn(body["error"]["code"], allowed_codes)


# Bodies no JSON endpoint takes, with the code the strict parser gives. `limit` is the endpoint's, in bytes.
def unreadable_bodies(good, limit=1 << 20):
    text = json.dumps(good).encode()
    assert text.endswith(b"}")

    def with_extra(extra):
        return text[:-1] + b', "extra": ' + extra + b"}"

    return [
        ("empty", b"", None),
        ("blank", b"  \n", "syntax"),
        ("cut off", text[: len(text) // 2], "syntax"),
        ("trailing data", text + b"{}", "trailing_data"),
        ("trailing comma", text[:-1] + b",}", "syntax"),
        ("single quotes", text.replace(b'"', b"'"), "syntax"),
        ("a comment", b"/* hi */" + text, "syntax"),
        ("a byte order mark", b"\xef\xbb\xbf" + text, None),
        ("UTF-16", json.dumps(good).encode("utf-16"), None),
        ("not UTF-8", with_extra(b'"\xff\xfe"'), "invalid_utf8"),
        ("overlong UTF-8", with_extra(b'"\xc0\xaf"'), "invalid_utf8"),
        ("a raw control character", with_extra(b'"\x01"'), "syntax"),
        ("NaN", with_extra(b"NaN"), "non_finite_number"),
        ("Infinity", with_extra(b"-Infinity"), "non_finite_number"),
        ("an overflowing number", with_extra(b"1e400"), None),
        ("a leading zero", with_extra(b"01"), "syntax"),
        ("2^53", with_extra(str(LARGEST_SAFE + 1).encode()), "integer_out_of_range"),
        ("-2^53", with_extra(str(-LARGEST_SAFE - 1).encode()), "integer_out_of_range"),
        ("an integer of 400 digits", with_extra(b"9" * 400), "integer_out_of_range"),
        ("a lone high surrogate", with_extra(rb'"\ud800"'), "lone_surrogate"),
        ("a lone low surrogate", with_extra(rb'"\udc00 x"'), "lone_surrogate"),
        ("surrogates in the wrong order", with_extra(rb'"\udc00\ud800"'), "lone_surrogate"),
        ("a lone surrogate in a key", with_extra(rb'{"\ud800": 1}'), "lone_surrogate"),
        ("a duplicate key", with_extra(b'1, "extra": 1'), "duplicate_key"),
        ("a duplicate key, escaped", with_extra(rb'1, "\u0065xtra": 2'), "duplicate_key"),
        ("a duplicate key deep inside", with_extra(b'[{"a": {"b": 1, "b": 1}}]'), "duplicate_key"),
        ("129 levels", with_extra(nested(129)), "depth_exceeded"),
        ("100,000 levels", with_extra(nested(100_000)), "depth_exceeded"),
        ("100,000 levels, never closed", b"[" * 100_000, ("depth_exceeded", "syntax")),
        ("100,000 levels of objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "depth_exceeded"),
        ("null", b"null", None),
        ("an array", b"[" + text + b"]", None),
        ("a text", b'"hello"', None),
        ("a number", b"7", None),
        ("over the limit", with_extra(b'"' + b"x" * limit + b'"'), None),
    ]


# Everything one JSON type is not.
WRONG_TYPES = {
    "text": [None, True, 7, 1.5, [], {}],
    "optional text": [True, 7, [], {}],
    "flag": [None, "true", 1, [], {}],
    "optional flag": ["true", 1, [], {}],
    "object": [None, True, 7, "x", []],
    "optional object": [True, 7, "x"],
}


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
        for path in ("tool_call.tool", "tool_call.action"):
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


def jwt_part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def jwt_read(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def bad_tokens(aegis, agent):
    """Tokens made from a good one as a forger would."""
    header_part, payload_part, signature_part = agent.token.split(".")
    header, payload = jwt_read(header_part), jwt_read(payload_part)
    forger = SigningKey(b"a key that nobody should trust!!")

    def signed(new_header, new_payload):
        text = f"{jwt_part(new_header)}.{jwt_part(new_payload)}"
        return f"{text}.{base64.urlsafe_b64encode(forger.sign(text.encode())).rstrip(b'=').decode()}"

    def hmac_signed():
        # The classic confusion: HS256 with the public key as the secret.
        import hashlib
        import hmac

        text = f"{jwt_part(header | {'alg': 'HS256'})}.{payload_part}"
        public = (aegis.data / "keys" / "control.pub").read_text().strip()
        code = hmac.new(base64.b64decode(public), text.encode(), hashlib.sha256).digest()
        return f"{text}.{base64.urlsafe_b64encode(code).rstrip(b'=').decode()}"

    raw = base64.urlsafe_b64decode(signature_part + "==")
    flipped = base64.urlsafe_b64encode(bytes([raw[0] ^ 1]) + raw[1:]).rstrip(b"=").decode()
    stretched = jwt_part(payload | {"exp": payload["exp"] + 365 * 24 * 3600})
    return [
        ("none", None),
        ("empty", ""),
        ("garbage", "garbage"),
        ("three dots", "..."),
        ("a very long one", "x" * 6000),
        ("alg none, no signature", f"{jwt_part(header | {'alg': 'none'})}.{payload_part}."),
        ("alg none, old signature", f"{jwt_part(header | {'alg': 'none'})}.{payload_part}.{signature_part}"),
        ("alg HS256 with the public key", hmac_signed()),
        ("no signature", f"{header_part}.{payload_part}."),
        ("flipped bit in the signature", f"{header_part}.{payload_part}.{flipped}"),
        ("a longer life", f"{header_part}.{stretched}.{signature_part}"),
        ("another agent", f"{header_part}.{jwt_part(payload | {'sub': 'admin'})}.{signature_part}"),
        ("another key, its own id", signed(header | {"kid": forger.key_id()}, payload)),
        ("another key, the real id", signed(header, payload)),
        ("another key, offered as jwk", signed(header | {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": forger.public_base64()}}, payload)),
    ]


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


class Control(Refused):
    """Every endpoint of the control plane that takes a body."""

    def endpoints(self):
        """(method, path, key, a body it would take, required fields with their kind)"""
        registrar, admin, approver, agent = self.tenant.registrar, self.tenant.admin, self.approver, self.agent.token
        action = {"action": "x", "risk": "low", "mutates_state": False, "approval_required": False, "default_decision": "policy"}
        call = {"tool": "crm", "action": "refund", "resource": "customer-1", "mutates_state": True, "parameters": {"amount": 6}}
        approval = f"/v1/approvals/{self.approval}"
        return [
            ("POST", "/v1/agents/register", registrar, {"agent_key": unique("a"), "name": "n", "environment": "e", "risk_tier": "low"},
             {"agent_key": "text", "name": "text", "environment": "text", "risk_tier": "text"}),
            ("POST", "/v1/tools", registrar, {"tool": "new", "name": "New", "default_risk": "low", "actions": [action]},
             {"tool": "text", "name": "text", "actions": "list"}),
            ("POST", "/v1/mcp/servers", registrar, {"key": "new", "name": "New"}, {"key": "text", "name": "text"}),
            ("POST", "/v1/channels", registrar, {"channel": unique("c"), "source_trust": "unknown"}, {"channel": "text", "source_trust": "text"}),
            ("POST", "/v1/resources", registrar, {"resource": unique("r"), "visibility": "public"}, {"resource": "text"}),
            ("PUT", "/v1/policies", admin, {"policies": ""}, {"policies": "text"}),
            ("PUT", "/v1/settings", admin, {"approval_ttl_s": 60}, {}),
            ("PUT", "/v1/webhooks/github/secret", admin, {"secret": "s" * 32}, {"secret": "text"}),
            ("POST", "/v1/keys", admin, {"role": "auditor", "name": "n"}, {"role": "text", "name": "text"}),
            ("POST", f"/v1/agents/{self.agent.id}/freeze", admin, {"reason": "r"}, {"reason": "text"}),
            ("POST", f"{approval}/edit", approver, {"tool_call": call}, {"tool_call": "object"}),
            ("POST", f"{approval}/consume", agent, {"claimed_action_hash": self.action_hash}, {"claimed_action_hash": "text"}),
            ("POST", f"/v1/decisions/{self.decision}/outcome", agent, {"status": "ok"}, {"status": "text"}),
        ]

    def test_a_body_that_is_not_strict_json_is_refused(self):
        for method, path, key, good, _ in self.endpoints():
            for name, body, code in unreadable_bodies(good):
                reply = self.aegis.call(method, path, key, body)
                self.assert_refused(reply, 413 if name == "over the limit" else 400, code, f"{method} {path}: {name}")

    def test_a_missing_or_mistyped_field_is_refused(self):
        wrong_types = WRONG_TYPES | {"list": [None, True, 7, "x", {}]}
        for method, path, key, good, required in self.endpoints():
            for field, kind in required.items():
                for wrong in [MISSING, *wrong_types[kind]]:
                    reply = self.aegis.call(method, path, key, set_at(good, field, wrong))
                    shown = "missing" if wrong is MISSING else repr(wrong)
                    self.assert_refused(reply, 400, None, f"{method} {path}: {field} = {shown}")

    def test_a_value_outside_its_bounds_is_refused(self):
        registrar, admin = self.tenant.registrar, self.tenant.admin
        agent = {"agent_key": unique("a"), "name": "n", "environment": "e", "risk_tier": "low"}
        tool = {"tool": "new", "name": "New", "default_risk": "low", "actions": []}
        action = {"action": "x", "risk": "low", "mutates_state": False}
        cases = [
            ("POST", "/v1/agents/register", registrar, agent | {"risk_tier": "harmless"}),
            ("POST", "/v1/agents/register", registrar, agent | {"agent_key": ""}),
            ("POST", "/v1/agents/register", registrar, agent | {"agent_key": "x" * 300}),
            ("POST", "/v1/agents/register", registrar, agent | {"name": "a\u0000b"}),
            ("POST", "/v1/tools", registrar, tool | {"tool": ""}),
            ("POST", "/v1/tools", registrar, tool | {"actions": [action, action]}),
            ("POST", "/v1/tools", registrar, tool | {"actions": [action | {"risk": "none"}]}),
            ("POST", "/v1/tools", registrar, tool | {"actions": [action | {"action": "a\nb"}]}),
            ("POST", "/v1/tools", registrar, tool | {"actions": [action | {"parameters": "string"}]}),
            ("POST", "/v1/tools", registrar, tool | {"actions": [action | {"action": f"a{n}"} for n in range(501)]}),
            ("POST", "/v1/tools", registrar, tool | {"actions": [{"action": "x"}]}),
            ("POST", "/v1/channels", registrar, {"channel": "c", "source_trust": "unknown", "public_key": "AAAA"}),
            ("POST", "/v1/resources", registrar, {"resource": "r", "visibility": "secret"}),
            ("PUT", "/v1/settings", admin, {"approval_ttl_s": 0}),
            ("PUT", "/v1/settings", admin, {"approval_ttl_s": -1}),
            ("PUT", "/v1/settings", admin, {"approval_ttl_s": 1.5}),
            ("PUT", "/v1/settings", admin, {"agent_rate_per_s": 0}),
            ("PUT", "/v1/settings", admin, {"approval_ttl": 60}),
            ("PUT", "/v1/settings", admin, {"callback_allow_list": "https://example.com"}),
            ("PUT", "/v1/webhooks/github/secret", admin, {"secret": "short"}),
            ("POST", "/v1/keys", admin, {"role": "root", "name": "n"}),
            ("POST", "/v1/keys", admin, {"role": "auditor", "name": ""}),
            ("POST", "/v1/keys", admin, {"role": "auditor", "name": "n", "value": "short"}),
            ("POST", f"/v1/decisions/{self.decision}/outcome", self.agent.token, {"status": "fine"}),
        ]
        for method, path, key, body in cases:
            self.assert_refused(self.aegis.call(method, path, key, body), 400, None, f"{method} {path} {str(body)[:120]}")

    def test_a_secret_never_comes_back_in_a_complaint(self):
        secret = "correct horse battery staple"
        cases = [("PUT", "/v1/webhooks/github/secret", {"secret": [secret]}), ("PUT", "/v1/webhooks/github/secret", {"secret": {"x": secret}}),
                 ("POST", "/v1/keys", {"role": "auditor", "name": "n", "value": {"v": secret}}),
                 ("POST", "/v1/keys", {"role": "auditor", "name": ["n"], "value": secret})]
        for method, path, body in cases:
            reply = self.aegis.call(method, path, self.tenant.admin, body)
            self.assert_refused(reply, 400, None, path)
            self.assertNotIn(secret, reply.text)

    def test_another_content_type_is_refused(self):
        for method, path, key, good, _ in self.endpoints():
            for kind in ("text/plain", "application/x-www-form-urlencoded"):
                reply = self.aegis.call(method, path, key, json.dumps(good).encode(), {"content-type": kind})
                self.assert_refused(reply, 415, "unsupported_media_type", f"{method} {path}: {kind}")

    def test_a_credential_that_is_none_is_refused(self):
        for method, path, _, good, _ in self.endpoints():
            for name, token in bad_tokens(self.aegis, self.agent):
                self.assert_refused(self.aegis.call(method, path, token, good), 401, None, f"{method} {path}: {name}")

    def test_another_tenant_s_credential_reaches_nothing(self):
        stranger = self.other.register_agent()
        keys = {role: self.other.key(role, groups=("*",)) for role in ("registrar", "approver", "analyst", "auditor")}
        keys |= {"admin": self.other.admin, "agent": stranger.token}
        targets = [f"/v1/approvals/{self.approval}/{verb}" for verb in ("approve", "reject", "edit", "consume")]
        targets += [f"/v1/agents/{self.agent.id}/{verb}" for verb in ("freeze", "unfreeze", "revoke")]
        targets += [f"/v1/decisions/{self.decision}/outcome"]
        call = {"tool": "crm", "action": "refund", "resource": None, "mutates_state": True, "parameters": {}}
        body = {"reason": "r", "tool_call": call, "claimed_action_hash": self.action_hash, "status": "ok"}
        for path in targets:
            for role, key in keys.items():
                self.assert_refused(self.aegis.post(path, key, body), (403, 404), None, f"{path} by {role}")
        for path in (f"/v1/agents/{self.agent.id}", f"/v1/approvals/{self.approval}", "/v1/tools/crm"):
            for role, key in keys.items():
                self.assert_refused(self.aegis.get(path, key), (403, 404), None, f"{path} by {role}")
        # One role each: a decision of a moment ago is waited for, which takes its time for one that never comes.
        for path, role in ((f"/v1/decisions/{self.decision}", "agent"), (f"/v1/receipts/{self.decision}", "admin"),
                           (f"/v1/receipts/{self.decision}/verify", "auditor")):
            self.assert_refused(self.aegis.get(path, keys[role]), 404, None, f"{path} by {role}")

    def test_another_tenant_s_header_is_refused(self):
        for method, path, key, good, _ in self.endpoints():
            reply = self.aegis.call(method, path, key, good, {"x-aegis-tenant-id": self.other.name})
            self.assert_refused(reply, 401, "tenant_mismatch", f"{method} {path}")

    def test_an_agent_token_opens_nothing_of_people_s(self):
        for method, path, key, good, _ in self.endpoints():
            if key != self.agent.token:
                self.assert_refused(self.aegis.call(method, path, self.agent.token, good), 403, "wrong_role", f"{method} {path}")
        for path in ("agents", "tools", "decisions", "receipts", "receipts/export", "alerts", "incidents", "audit/events", "keys", "settings",
                     "policies", "containment", "approvals", "soc/summary", "channels", "resources", "mcp/servers"):
            self.assert_refused(self.aegis.get(f"/v1/{path}", self.agent.token), 403, "wrong_role", f"GET {path}")

    def test_another_agent_may_neither_see_nor_use_an_approval(self):
        approval = f"/v1/approvals/{self.approval}"
        self.assert_refused(self.aegis.get(approval, self.witness.token), 404, None)
        self.assert_refused(self.aegis.get(f"/v1/decisions/{self.decision}", self.witness.token), (403, 404), None)

    def test_a_query_that_cannot_be_read_is_refused(self):
        for query in ("limit=0", "limit=501", "limit=-1", "limit=x", "limit=99999999999999999999", "offset=-1", "offset=1e3", "limit=", "limit=%00"):
            self.assert_refused(self.tenant.get(f"/v1/decisions?{query}"), 400, "invalid_query", query)
        self.assert_refused(self.tenant.get("/v1/approvals?status=MAYBE"), 400, "invalid_query")

    def test_an_id_that_is_none_finds_nothing(self):
        ids = ["nobody", "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e", "%00", "%0a", "%ff", "%c0%af", "x" * 5000, "'%20OR%201=1--", "*",
               "00000000-0000-0000-0000-000000000000", "%E2%98%95", "{id}"]
        for prefix in ("agents", "tools", "mcp/servers", "approvals", "decisions", "receipts", "alerts", "incidents"):
            for one in ids:
                reply = self.tenant.get(f"/v1/{prefix}/{one}")
                self.assert_refused(reply, (400, 404, 414, 431), None, f"GET {prefix}/{one[:40]}")
        for one in ids:
            self.assert_refused(self.tenant.post(f"/v1/agents/{one}/freeze", {"reason": "r"}), (400, 404, 414, 431), None, f"freeze {one[:40]}")
            reply = self.aegis.post(f"/v1/approvals/{one}/approve", self.approver, {})
            self.assert_refused(reply, (400, 404, 414, 431), None, f"approve {one[:40]}")

    def test_an_unknown_route_or_method_is_refused_as_json(self):
        for path in ("/", "/v1", "/v2/authorize", "/v1/authorize/", "/v1/authorize/x", "//v1/authorize", "/v1/../v1/authorize", "/../../etc/passwd",
                     "/%2e%2e/%2e%2e/etc/passwd", "/v1/agents/a/b/c", "/v1/webhooks/gitlab/x", "/debug/pprof", "/.env", "/v1/authorize;x", "/V1/authorize"):
            self.assert_refused(self.aegis.call("POST", path, self.tenant.admin, {}), 404, None, f"POST {path}")
            self.assert_refused(self.aegis.get(path, self.tenant.admin), 404, None, f"GET {path}")
        for method, path in (("GET", "/v1/authorize"), ("DELETE", "/v1/authorize"), ("PUT", "/v1/authorize"), ("PATCH", "/v1/tools"), ("DELETE", "/v1/tools"),
                             ("POST", "/v1/decisions"), ("DELETE", "/v1/receipts"), ("PUT", "/v1/agents/register"), ("GET", "/v1/webhooks/github/x"),
                             ("FOO", "/v1/authorize"), ("POST", "/health"), ("TRACE", "/v1/authorize")):
            self.assert_refused(self.aegis.call(method, path, self.tenant.admin, {}), 405, None, f"{method} {path}")


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
