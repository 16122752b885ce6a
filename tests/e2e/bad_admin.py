"""Requests to control that are wrong."""

import json

from deliveries import webhook_headers
from refused import MISSING, WRONG_TYPES, Refused, bad_tokens, set_at, unreadable_bodies
from waiting import unique, wait_until


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
            ("PUT", "/v1/callbacks/secret", admin, {"secret": "s" * 32}, {"secret": "text"}),
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
            ("PUT", "/v1/settings", admin, {"run_idle_s": 86_401}),
            ("PUT", "/v1/settings", admin, {"implicit_run_idle_s": 86_401}),
            ("PUT", "/v1/settings", admin, {"agent_rate_per_s": 0}),
            ("PUT", "/v1/settings", admin, {"approval_ttl": 60}),
            ("PUT", "/v1/settings", admin, {"callback_allow_list": "https://example.com"}),
            ("PUT", "/v1/settings", admin, {"callback_allow_list": ["http://example.com"]}),
            ("PUT", "/v1/settings", admin, {"callback_allow_list": ["https://user:secret@example.com"]}),
            ("PUT", "/v1/webhooks/github/secret", admin, {"secret": "short"}),
            ("PUT", "/v1/callbacks/secret", admin, {"secret": "s" * 31}),
            ("PUT", "/v1/callbacks/secret", admin, {"secret": "s" * 32, "overlap_s": -1}),
            ("POST", "/v1/keys", admin, {"role": "root", "name": "n"}),
            ("POST", "/v1/keys", admin, {"role": "auditor", "name": ""}),
            ("POST", "/v1/keys", admin, {"role": "auditor", "name": "n", "value": "short"}),
            ("POST", f"/v1/decisions/{self.decision}/outcome", self.agent.token, {"status": "fine"}),
        ]
        for method, path, key, body in cases:
            self.assert_refused(self.aegis.call(method, path, key, body), 400, None, f"{method} {path} {str(body)[:120]}")

    def test_a_record_that_no_edge_could_be_told_of_is_refused(self):
        registrar, admin = self.tenant.registrar, self.tenant.admin
        # Below the limit of a body, and over that of an entry of the control feed.
        schema = {"description": "x" * 1_044_000}
        nested = json.loads('{"a":' * 125 + "1" + "}" * 125)
        action = {"action": "x", "risk": "low", "mutates_state": False}
        for method, path, key, body in [
            ("POST", "/v1/tools", registrar, {"tool": "large", "name": "Large", "actions": [action | {"parameters": schema}]}),
            ("POST", "/v1/tools", registrar, {"tool": "deep", "name": "Deep", "actions": [action | {"parameters": nested}]}),
            ("POST", "/v1/mcp/servers", registrar, {"key": "large", "name": "Large", "tools": [{"name": "x", "inputSchema": schema}]}),
            ("PUT", "/v1/policies", admin, {"policies": "// " + "x" * 1_044_000}),
        ]:
            self.assert_refused(self.aegis.call(method, path, key, body), 422, "record_too_large", f"{method} {path}")
        # What any tenant changes next is published as before.
        agent = self.other.register_agent().id
        frozen = self.aegis.post(f"/v1/agents/{agent}/freeze", self.other.admin, {"reason": "r"}).expect(200)
        self.assertTrue(frozen["enforced"], frozen)

    def test_a_secret_never_comes_back_in_a_complaint(self):
        secret = "correct horse battery staple"
        cases = [("PUT", "/v1/webhooks/github/secret", {"secret": [secret]}), ("PUT", "/v1/webhooks/github/secret", {"secret": {"x": secret}}),
                 ("PUT", "/v1/callbacks/secret", {"secret": [secret]}), ("PUT", "/v1/callbacks/secret", {"secret": secret * 2, "overlap_s": secret}),
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
        alert, incident = self.of_a_third()
        targets += [f"/v1/decisions/{self.decision}/outcome", f"/v1/incidents/{incident}/close"]
        call = {"tool": "crm", "action": "refund", "resource": None, "mutates_state": True, "parameters": {}}
        body = {"reason": "r", "tool_call": call, "claimed_action_hash": self.action_hash, "status": "ok"}
        for path in targets:
            for role, key in keys.items():
                self.assert_refused(self.aegis.post(path, key, body), (403, 404), None, f"{path} by {role}")
        for path in (f"/v1/agents/{self.agent.id}", f"/v1/approvals/{self.approval}", "/v1/tools/crm", f"/v1/alerts/{alert}", f"/v1/incidents/{incident}"):
            for role, key in keys.items():
                self.assert_refused(self.aegis.get(path, key), (403, 404), None, f"{path} by {role}")
        # One role each: a decision of a moment ago is waited for, which takes its time for one that never comes.
        for path, role in ((f"/v1/decisions/{self.decision}", "agent"), (f"/v1/receipts/{self.decision}", "admin"),
                           (f"/v1/receipts/{self.decision}/verify", "auditor")):
            self.assert_refused(self.aegis.get(path, keys[role]), 404, None, f"{path} by {role}")

    def of_a_third(self):
        """The ids of an alert and of its incident, in a tenant beside the two, to which they are shown: an agent that was denied too often."""
        third = self.aegis.tenant().register_tools()
        agent = third.register_agent().until_tools_are_known()
        for _ in range(5):
            agent.authorize(trust="untrusted_external")
        incident = wait_until("an incident", lambda: third.list("/v1/incidents"))[0]["incident_id"]
        alert = wait_until("its alert", lambda: [one["alert_id"] for one in third.list("/v1/alerts") if one["incident_id"] == incident])[0]
        for path in (f"/v1/alerts/{alert}", f"/v1/incidents/{incident}"):
            third.get(path).expect(200)
        return alert, incident

    def test_no_list_shows_what_is_another_tenant_s(self):
        keys = {role: self.other.key(role, groups=("*",)) for role in ("registrar", "approver", "analyst", "auditor")} | {"admin": self.other.admin}
        made = [f'"{self.tenant.name}"', self.agent.id, self.witness.id, self.approval, self.decision, self.action_hash]
        lists = ["agents", "tools", "decisions", "receipts", "receipts/export", "alerts", "incidents", "audit/events", "keys", "containment", "approvals",
                 "channels", "resources", "mcp/servers", "rules"]
        full = {path for path in lists if any(name in self.tenant.get(f"/v1/{path}").text for name in made)}
        self.assertLessEqual({"agents", "decisions", "receipts", "approvals", "audit/events"}, full)
        answered = set()
        for path in lists:
            for role, key in keys.items():
                reply = self.aegis.get(f"/v1/{path}", key)
                self.assertIn(reply.status, (200, 403), f"{path} by {role}: {reply}")
                answered |= {path} if reply.status == 200 else set()
                self.assertEqual([name for name in made if name in reply.text], [], f"{path} by {role}")
        self.assertEqual(answered, set(lists))

    def test_no_key_of_people_s_opens_what_agents_and_adapters_call(self):
        self.tenant.set_webhook_secret("s" * 32)
        keys = {role: self.tenant.key(role, groups=("*",)) for role in ("registrar", "approver", "analyst", "auditor")} | {"admin": self.tenant.admin}
        # Secret and keys are made now; what is refused changes nothing beyond.
        self.before = self.holdings()
        call = self.agent.request(run_id=unique("run"))
        body = json.dumps({"action": "opened"}).encode()
        for role, key in keys.items():
            self.assert_refused(self.aegis.post("/v1/authorize", key, call), 401, "invalid_token", f"authorize by {role}")
            for name, headers in (("unsigned", {}), ("signed with its own", webhook_headers("issues", unique("delivery"), body, key))):
                path = f"/v1/webhooks/github/{self.tenant.name}"
                self.assert_refused(self.aegis.call("POST", path, key, body, headers), 401, None, f"webhook by {role}, {name}")

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
