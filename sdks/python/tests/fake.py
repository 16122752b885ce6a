"""A small server that answers as the real one would, or as a hostile one could: any answer can be put in the place of an honest one.

The tests against the real program are in `test_end_to_end*.py`; this is for what no real program does.
"""

import contextlib
import datetime
import http.server
import json
import threading
import uuid

from aegisagent import canon

HASH = "ab" * 32


class FakeEdge:
    """`decision` is what it decides; `statuses` what it says of the approval, one after the other, the last one again and again."""

    def __init__(self, decision="allow", statuses=("APPROVED",), risk_level="medium", tls=None):
        self.decision, self.statuses, self.risk_level = decision, list(statuses), risk_level
        self.calls = {}
        self.consumed, self.reported = {}, {}
        self.edited = None
        self.seen = []
        self.is_gone = False
        self.replace = {}
        self.before = {}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def close(self):
        self.is_gone = True
        self._server.shutdown()
        self._server.server_close()

    def sent(self, what):
        """The bodies that were sent to an endpoint: authorize, approval, consume, outcome."""
        return [json.loads(body) if body else None for name, body, _ in self.seen if name == what]

    def answer(self, name, path, body):
        honest = getattr(self, f"_{name}", lambda _path, _body: (200, {}))(path, body)
        change = self.replace.get(name)
        return change(honest) if callable(change) else honest if change is None else change

    def _authorize(self, _path, body):
        call = body["tool_call"]
        action_hash = canon.action_hash(call["tool"], call["action"], call["resource"], call["mutates_state"], call["parameters"])
        approval = None
        if self.decision == "require_approval":
            approval_id = str(uuid.uuid4())
            self.calls[approval_id] = (call, action_hash)
            approval = {
                "approval_id": approval_id,
                "status": "PENDING",
                "approver_group": "release",
                "expires_at": later(),
                "expires_in": 900,
                "action_hash": action_hash,
            }
        receipt = {"receipt_id": str(uuid.uuid4()), "receipt_hash": HASH, "prev_receipt_hash": HASH, "canon_version": "aegis-jcs-1"}
        return 200, {
            "decision_id": str(uuid.uuid4()),
            "decision": self.decision,
            "reason": "because",
            "matched_policies": [],
            "risk_score": 40,
            "risk_level": self.risk_level,
            "root_trust_level": body["context"]["source_trust"],
            "trust_token": "token",
            "action_hash": action_hash,
            "dry_run": False,
            "approval": approval,
            "receipt": receipt,
        }

    def _approval(self, path, _body):
        approval_id = path.split("/")[3]
        call, action_hash = self.calls[approval_id]
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == 404:
            return 404, {"error": {"code": "approval_not_found", "message": "not yet"}}
        edited, current = self.edited, action_hash
        if edited:
            current = canon.action_hash(edited["tool"], edited["action"], edited["resource"], edited["mutates_state"], edited["parameters"])
        return 200, {
            "approval_id": approval_id,
            "status": status,
            "agent_id": "a",
            "decision_id": "d",
            "action_hash": current,
            "original_action_hash": action_hash,
            "is_edited": edited is not None,
            "tool_call": call,
            "edited_tool_call": edited,
            "approver_group": "release",
            "approvals_needed": 1,
            "approved_by": [],
            "source_trust": "unknown",
            "reason": "r",
            "requested_at": later(0),
            "expires_at": later(),
            "expires_in": 900,
            "edited_by": None,
            "policy_digest": HASH,
            "risk_level": "high",
            "matched_policies": [],
            "user_id": None,
        }

    def _consume(self, path, body):
        approval_id = path.split("/")[3]
        if self.consumed.setdefault(approval_id, body["request_id"]) != body["request_id"]:
            return 409, {"error": {"code": "approval_consumed", "message": "the approval was consumed already"}}
        return 200, {"status": "consumed", "approval_id": approval_id, "action_hash": body["claimed_action_hash"]}

    def _outcome(self, path, body):
        return 201, {
            "decision_id": path.split("/")[3],
            "outcome_id": self.reported.setdefault((path, body["request_id"]), f"o-{len(self.reported)}"),
            "status": body["status"],
            "violation": None,
            "receipt_hash": HASH,
        }


def later(seconds=900):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def name_of(method, path):
    if path == "/v1/authorize":
        return "authorize"
    return {"consume": "consume", "outcome": "outcome"}.get(path.rsplit("/", 1)[-1], "approval" if "/approvals/" in path else "other")


def _handler(edge):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_arguments):
            pass

        def do_GET(self):
            name = name_of(self.command, self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            edge.seen.append((name, body.decode(), dict(self.headers)))
            edge.before.get(name, lambda: None)()
            if edge.is_gone:
                self.close_connection = True
                return
            answer = edge.answer(name, self.path, json.loads(body) if body else None)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if callable(answer):
                    self.close_connection = True
                    answer(self)
                else:
                    self.reply(*answer)

        do_POST = do_PUT = do_DELETE = do_GET

        def reply(self, status, value, headers=()):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for header, text in headers:
                self.send_header(header, text)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
