"""What wrong requests are tried with: a clear 4xx without internals each, and afterwards nothing has changed."""

import base64
import copy
import json
import re
import unittest

from ed25519 import SigningKey
from harness import Aegis
from waiting import unique, wait_until

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
        cls.agent = cls.tenant.register_agent().until_tools_are_known()
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
        # Many calls in a few seconds is what `runaway` tells of, and what these tests are.
        held["alerts"] = [alert for alert in held["alerts"] if alert["rule_name"] != "runaway"]
        # Time passes, whatever is refused.
        held["approvals"] = [{k: v for k, v in approval.items() if k != "expires_in"} for approval in held["approvals"]]
        for name in ("policies", "settings"):
            held[name] = self.tenant.get(f"/v1/{name}").expect(200)
        held["decisions"] = len(self.tenant.list("/v1/decisions"))
        # Of the rules that run a new tenant is told when control looks for it.
        held["receipts"] = len([body for body in (receipt.get("receipt", receipt) for receipt in receipts) if not (body.get("detail") or {}).get("rule_set")])
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
