"""Three questions: is docs/openapi.yaml a valid document, has it exactly the routes of the source and of docs/api.md, and does the real
program answer as it says. For the last, the end-to-end tests run with every reply looked at, and then what they leave out is called.
`run.py FOLDER`: they have run, and this is what they kept (`tests/e2e/run.sh --record FOLDER`).
The other schema that we publish, that of a rule's header, is held against the program in rule_header.
"""

import importlib
import pathlib
import sys
import threading
import unittest

import openapi_spec_validator

sys.path.insert(0, "../e2e")
import deliveries  # noqa: E402
import document  # noqa: E402
import harness  # noqa: E402
import routes  # noqa: E402
import rule_header  # noqa: E402
from record import recorded  # noqa: E402

GROUPS = ["decisions", "approvals", "callbacks", "containment", "own_rules", "bad_input", "bad_admin"]
# Needs a NATS server: `tests/e2e/run.sh edges` enrols edges.
NOT_CALLED = {"enrollEdge"}

lock = threading.Lock()
wrong, answered = {}, set()


def look_at(method, path, body, status, content_type, reply):
    """Holds an exchange against the document."""
    operation = document.operation_of(method, path)
    said = document.complaints(method, path, status, content_type, reply)
    if status < 300:
        said += document.complaints_about_request(method, path, body)
    with lock:
        if operation:
            answered.add((operation.definition["operationId"], status))
        for complaint in said:
            where = f"{method} {operation.path if operation else path[:80]} → {status}"
            wrong.setdefault((where, complaint), path)


def recording(send):
    def sent(connection, method, path, body=None, headers=None):
        reply = send(connection, method, path, body, headers)
        look_at(method, path, body, reply.status, reply.headers.get("content-type"), reply.body)
        return reply

    return sent


class Document(unittest.TestCase):
    def test_it_is_valid(self):
        openapi_spec_validator.validate(document.DOCUMENT)

    def test_it_has_the_routes_of_the_source_with_their_roles(self):
        described = {(op.method, op.path): set(op.definition["x-roles"]) for op in document.operations()}
        self.assertEqual(described, routes.of_source())

    def test_it_has_the_routes_of_the_page_for_readers(self):
        described = {(op.method, op.path) for op in document.operations()}
        self.assertEqual(described ^ routes.of_api_page(), set())

    def test_every_operation_has_its_own_name(self):
        names = [op.definition["operationId"] for op in document.operations()]
        self.assertEqual(len(set(names)), len(names))


class Rest(unittest.TestCase):
    """Every operation that answers well at least once."""

    @classmethod
    def setUpClass(cls):
        cls.aegis = harness.Aegis().start()
        cls.addClassCleanup(cls.aegis.close)

    def test_what_the_other_tests_leave_out(self):
        tenant = self.aegis.tenant().register_tools()
        agent = tenant.register_agent()
        denied = [agent.authorize(trust="untrusted_external") for _ in range(6)]
        for path in ("/health", "/readyz", "/metrics"):
            self.aegis.get(path)
        tenant.post("/v1/mcp/servers", {"key": "files", "name": "Files", "tools": [{"name": "read"}]}, key=tenant.registrar).expect(201)
        tenant.post("/v1/mcp/servers/files/tools", {"tools": [{"name": "write", "inputSchema": {"type": "object"}}]}).expect(201)
        tenant.post("/v1/mcp/servers/files/manifest", {"tools": [{"name": "read"}, {"name": "wipe"}]}).expect(200)
        tenant.post("/v1/mcp/servers/files/tools", {"tools": [], "dismissed": ["wipe"]}).expect(201)
        for verb in ("quarantine", "restore"):
            tenant.post(f"/v1/mcp/servers/files/{verb}", {"reason": "test"}).expect(200)
        for path in ("mcp/servers/files", "tools/crm", f"agents/{agent.id}", "edges", "containment", "channels", "resources",
                     "rules/sets", "rules/waiting", "detection/lanes"):
            tenant.get(f"/v1/{path}").expect(200)
        key = tenant.post("/v1/keys", {"role": "auditor", "name": "k"}).expect(201)["key_id"]
        self.aegis.call("DELETE", f"/v1/keys/{key}", tenant.admin).expect(200)
        self.deliver(tenant)
        decision = denied[0]["decision_id"]
        for path in (f"decisions/{decision}", f"receipts/{decision}", f"receipts/{decision}/verify", "receipts", "receipts/export", "audit/events"):
            self.assertEqual(tenant.get(f"/v1/{path}").status, 200, path)
        run = tenant.get(f"/v1/decisions/{decision}").json["run_id"]
        tenant.get(f"/v1/runs/{run}/timeline").expect(200)
        self.look_at_incidents(tenant)
        agent.read(run_id="frozen")

    def deliver(self, tenant):
        tenant.set_webhook_secret("s" * 32)
        body = b'{"action": "opened", "repository": {"full_name": "a/b", "private": true}, "sender": {"login": "eve"}}'
        for secret, times in (("s" * 32, 2), ("x" * 32, 1)):
            for _ in range(times):
                headers = deliveries.webhook_headers("issues", "delivery-1", body, secret)
                self.aegis.post(f"/v1/webhooks/github/{tenant.name}", None, body, headers)
        harness.wait_until("the event", lambda: tenant.list(deliveries.GITHUB_EVENTS))

    def look_at_incidents(self, tenant):
        alert = harness.wait_until("an alert", lambda: tenant.list("/v1/alerts"))[0]
        incident = harness.wait_until("an incident", lambda: tenant.list("/v1/incidents"))[0]
        tenant.get(f"/v1/alerts/{alert['alert_id']}").expect(200)
        tenant.get(f"/v1/incidents/{incident['incident_id']}").expect(200)
        for status in (200, 409):
            tenant.post(f"/v1/incidents/{incident['incident_id']}/close", {"reason": "test"}).expect(status)
        tenant.get("/v1/soc/summary").expect(200)


class ZLast(unittest.TestCase):
    def test_every_answer_was_as_the_document_says(self):
        for (where, complaint), path in sorted(wrong.items()):
            print(f"{where} ({path[:120]}): {complaint}", file=sys.stderr)
        self.assertEqual(len(wrong), 0)

    def test_every_operation_was_answered_well(self):
        well = {name for name, status in answered if status < 300}
        self.assertEqual({op.definition["operationId"] for op in document.operations()} - well, NOT_CALLED)


def look_at_recorded(folder, group):
    """What a group kept. One of which nothing is there is no group that was in order."""
    seen = 0
    for exchange in recorded(folder / f"{group}.jsonl"):
        look_at(*exchange)
        seen += 1
    if seen < 10:
        sys.exit(f"openapi: {folder} has {seen} exchanges of {group}")


def main(kept=None):
    harness.send = recording(harness.send)
    loader = unittest.defaultTestLoader
    suite = unittest.TestSuite([loader.loadTestsFromTestCase(Document), loader.loadTestsFromModule(rule_header)])
    for group in GROUPS:
        if kept:
            look_at_recorded(pathlib.Path(kept), group)
            continue
        suite.addTests(loader.loadTestsFromModule(importlib.import_module(group)))
    suite.addTests(loader.loadTestsFromTestCase(case) for case in (Rest, ZLast))
    result = unittest.TextTestRunner(verbosity=1).run(suite)
    statuses = len({(name, status) for name, status in answered})
    print(f"openapi: {len(document.operations())} operations, {statuses} of their statuses seen in real answers, {len(wrong)} wrong")
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
