"""The real program under test: started, stopped, killed, spoken to over HTTP and by its command line.

Everything here waits on a condition with a deadline; nothing sleeps and hopes.
"""

import contextlib
import hashlib
import hmac
import http.client
import itertools
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid

from nats import SERVERS, NatsServer

BINARY = pathlib.Path(os.environ["AEGIS_BIN"]).resolve()
VERIFIER = BINARY.with_name("aegis-verify-receipts")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

NATS = os.environ.get("AEGIS_E2E_NATS")

# Long, because the machine may be busy; a condition that holds ends the wait at once.
DEADLINE_S = 60
# The program's own variables would reach it from the caller's environment and change what is tested.
CLEAN_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}

_numbers = itertools.count(1)


def unique(prefix):
    """A name that no other test of this run uses."""
    return f"{prefix}-{next(_numbers)}"


def wait_until(what, condition, deadline_s=DEADLINE_S, longest_pause_s=0.25):
    """Returns the first truthy value of `condition`; fails when there is none within the deadline."""
    end = time.monotonic() + deadline_s
    pause = min(0.005, longest_pause_s)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, longest_pause_s)


class Reply:
    """Status, headers and body of one HTTP reply."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """The code of an error reply, or None."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return self.json["error"]["code"]
        return None

    def expect(self, status):
        """The body as JSON of a reply that must have this status."""
        if self.status != status:
            raise AssertionError(f"expected HTTP {status}, got {self.status}: {self.text[:600]}")
        return self.json

    def __repr__(self):
        return f"Reply({self.status}, {self.text[:300]})"


def send(connection, method, path, body=None, headers=None):
    """One exchange. A server that refuses a body may close before it has read all of it: then the reply still counts."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return Reply(response.status, response.headers, response.read())


class Session:
    """A kept-alive connection, for load. Any failure is raised: the caller must not count what was not answered."""

    def __init__(self, port):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, method, path, body=None, headers=None):
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def close(self):
        self._connection.close()


class StartFailed(AssertionError):
    """The program ended, or said nothing, instead of starting."""

    def __init__(self, returncode, output):
        super().__init__(f"aegis up did not start (exit code {returncode}):\n{output}")
        self.returncode, self.output = returncode, output


class Aegis:
    """One data folder and the process that runs on it."""

    def __init__(self, data=None, config=None, environment=None, nats=None):
        """`nats`: a running server to carry events and state, instead of a file. With AEGIS_E2E_NATS (debian, current) every instance
        that names none gets one of its own."""
        self._own = tempfile.TemporaryDirectory(prefix="aegis-e2e-") if data is None else None
        self.data = pathlib.Path(data or self._own.name) / "data" if data is None else pathlib.Path(data)
        self.environment = dict(environment or {})
        self._nats = NatsServer(SERVERS[NATS]).start() if NATS and nats is None else None
        nats = nats or self._nats
        if nats:
            self.join(nats)
        self.config = config
        self.port = None
        self._process = None
        self._log = None
        self._output = []

    def join(self, nats):
        """Makes the server's streams, and before that its users, where it asks for a login."""
        self.environment |= nats.environment
        if nats.is_secured:
            self.cli("streams", "users", "--data", self.data, "--write", nats.users)
            self.environment["AEGIS_NATS_USERS_FILE"] = str(nats.users)
            nats.start()
        options = ["--data", self.data] if nats.is_secured else []
        self.cli("streams", "apply", "--nats", nats.url, *options, *nats.options)

    # Life

    ROLE = "up"

    def command(self):
        command = [str(BINARY), self.ROLE, "--data", str(self.data), "--listen", "127.0.0.1:0"]
        return command + (["--config", str(self.config)] if self.config else [])

    def spawn(self, **process_options):
        """Starts the process without waiting for anything."""
        assert self._process is None, "already started"
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self.command(),
            env=CLEAN_ENVIRONMENT | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            **process_options,
        )
        self._output = []
        return self

    def start(self, **process_options):
        """Starts the process and waits until it says where it listens and is ready."""
        self.spawn(**process_options)
        lines = queue.Queue()
        threading.Thread(target=self._read_output, args=(self._process.stdout, lines), daemon=True).start()
        end = time.monotonic() + DEADLINE_S
        self.port = None
        while self.port is None:
            try:
                line = lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                self._fail_start()
            if line.startswith("aegis: listening on http://"):
                self.port = urllib.parse.urlsplit(line.split()[-1]).port
        wait_until("/readyz answers 200", lambda: self.get("/readyz").status == 200)
        return self

    def _read_output(self, stream, lines):
        for line in stream:
            self._output.append(line)
            lines.put(line.decode())
        lines.put(None)

    def _fail_start(self):
        process, self._process = self._process, None
        try:
            returncode = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            returncode = None
        raise StartFailed(returncode, b"".join(self._output).decode() + self.log())

    def log(self):
        """What the last process wrote to stderr."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def stop(self):
        """Stops the process as an operator does; it must end well."""
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        returncode = process.wait(timeout=DEADLINE_S)
        assert returncode == 0, f"exit code {returncode} after SIGTERM:\n{self.log()[-4000:]}"

    def kill9(self):
        """Ends the process as a power cut does (less the disk's cache)."""
        process, self._process = self._process, None
        process.kill()
        process.wait(timeout=DEADLINE_S)

    def signal(self, name):
        self._process.send_signal(getattr(signal, f"SIG{name}"))

    def restart(self):
        self.stop()
        return self.start()

    @property
    def running(self):
        return self._process is not None

    def close(self):
        """Ends whatever still runs and removes the folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._nats:
            self._nats.close()
        if self._own:
            shutil.rmtree(self._own.name, ignore_errors=True)

    # HTTP

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def call(self, method, path, key=None, body=None, headers=None):
        """One exchange on its own connection. `body`: bytes as they are, anything else as JSON."""
        headers = {"content-type": "application/json"} | (headers or {}) if body is not None else dict(headers or {})
        headers = {name: value for name, value in headers.items() if value is not None}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = self.connection()
        try:
            return send(connection, method, path, body, headers)
        finally:
            connection.close()

    def get(self, path, key=None, headers=None):
        return self.call("GET", path, key, None, headers)

    def post(self, path, key=None, body=None, headers=None):
        return self.call("POST", path, key, {} if body is None else body, headers)

    def put(self, path, key=None, body=None, headers=None):
        return self.call("PUT", path, key, body, headers)

    def metric(self, name):
        """The sum of a metric over its labels, or None where there is none."""
        values = []
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name:
                values.append(float(value))
        return sum(values) if values else None

    # Command line

    def cli(self, *arguments, expect=0, stdin=None, program=BINARY):
        """Runs a command of the program and returns what it printed."""
        done = subprocess.run(
            [str(program), *map(str, arguments)], env=CLEAN_ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == expect, f"{arguments}: exit code {done.returncode}, expected {expect}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout if expect < 2 else done.stdout + done.stderr

    def create_key(self, tenant, role, name, groups=()):
        options = [part for group in groups for part in ("--group", group)]
        printed = self.cli("keys", "create", "--tenant", tenant, "--role", role, "--name", name, *options, "--data", self.data, "--json")
        return json.loads(printed)["key"]

    def tenant(self, name=None):
        """A new tenant with an admin key made on the command line."""
        return Tenant(self, name or unique("tenant"))

    def export(self, tenant):
        """The tenant's receipts as the command line exports them."""
        printed = self.cli("receipts", "export", "--tenant", tenant, "--data", self.data)
        return [json.loads(line) for line in printed.splitlines()]

    def verify(self, lines, roots=True, expect=0):
        """The verifier's report on an export; for exit code 2 what it says instead. The exit code is checked."""
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for line in lines:
                file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
            file.flush()
            keys = [part for name in ("control", "edge") for part in ("--root", self.data / "keys" / f"{name}.pub")] if roots else []
            said = self.cli(file.name, *keys, "--json", expect=expect, program=VERIFIER)
            return said if expect == 2 else json.loads(said)


class ControlPlane(Aegis):
    """Control and SOC, without an edge."""

    ROLE = "control"

    def invite(self, edge_id, *tenants):
        options = [part for tenant in tenants for part in ("--tenant", tenant.name)]
        return self.cli("edge", "invite", "--id", edge_id, *options, "--data", self.data).strip()


class Edge(Aegis):
    """An edge that was enrolled: what agents call, and nothing else."""

    ROLE = "edge"

    def join(self, nats):
        self.nats = nats
        self.environment |= nats.environment

    def enroll(self, control, edge_id, *tenants):
        token = control.invite(edge_id, *tenants)
        self.cli("edge", "enroll", "--control", f"http://127.0.0.1:{control.port}", "--data", self.data, stdin=token)
        if self.nats.is_secured:
            nkey = self.data / "keys" / "nats.nk"
            wait_until("control has written the new user", lambda: f"# {edge_id}:" in self.nats.users.read_text())
            assert nkey.exists()
            self.nats.reload()
        return self


class Tenant:
    """A tenant of a running instance, with a key of every role."""

    def __init__(self, aegis, name):
        self.aegis, self.name = aegis, name
        self.admin = aegis.create_key(name, "admin", "ada")
        self._keys = {}

    def key(self, role, name=None, groups=()):
        """A key of this role, made once for each name and set of groups."""
        identity = (role, name or f"{role}-person", tuple(groups))
        if identity not in self._keys:
            body = {"role": role, "name": identity[1], "groups": list(groups)}
            self._keys[identity] = self.post("/v1/keys", body).expect(201)["key"]
        return self._keys[identity]

    @property
    def registrar(self):
        return self.key("registrar")

    def get(self, path, key=None, **options):
        return self.aegis.get(path, key or self.admin, **options)

    def post(self, path, body=None, key=None, **options):
        return self.aegis.post(path, key or self.admin, body, **options)

    def put(self, path, body=None, key=None, **options):
        return self.aegis.put(path, key or self.admin, body, **options)

    def list(self, path, page=500):
        """Every entry of a list, page by page."""
        entries = []
        while True:
            joint = "&" if "?" in path else "?"
            part = self.get(f"{path}{joint}limit={page}&offset={len(entries)}").expect(200)
            entries += part
            if len(part) < page:
                return entries

    def register_tools(self):
        """The neutral tool `crm` and the usual actions of `github`."""
        for tool in (CRM, GITHUB):
            self.post("/v1/tools", tool, key=self.registrar).expect(201)
        return self

    def register_agent(self, **fields):
        body = {"agent_key": unique("agent"), "name": "an agent", "environment": "production", "risk_tier": "low"} | fields
        registered = self.post("/v1/agents/register", body, key=self.registrar).expect(201)
        return Agent(self, registered["id"], registered["agent_token"], body)

    def set_webhook_secret(self, secret):
        self.put("/v1/webhooks/github/secret", {"secret": secret}).expect(200)

    def settings(self, **changes):
        current = self.get("/v1/settings").expect(200)
        self.put("/v1/settings", current | changes).expect(200)

    def export(self):
        return self.aegis.export(self.name)


class Agent:
    """A registered agent and its token."""

    def __init__(self, tenant, agent_id, token, registration):
        self.tenant, self.id, self.token, self.registration = tenant, agent_id, token, registration

    def request(self, tool="crm", action="update_customer", mutates_state=True, trust="trusted_internal_unsigned",
                resource="customer-1", parameters=None, run_id=None, **fields):
        """The body of an authorize call. `context` and `trace` in `fields` add to what stands there."""
        body = {
            "agent": {"id": self.id, "environment": "production"},
            "tool_call": {"tool": tool, "action": action, "resource": resource, "mutates_state": mutates_state,
                          "parameters": parameters if parameters is not None else {}},
            "context": {"source_trust": trust} | fields.pop("context", {}),
        }
        trace = ({"run_id": run_id} if run_id else {}) | fields.pop("trace", {})
        # A run of its own for each call that names none: the agent's implicit run would carry labels from call to call.
        body["trace"] = trace if trace else {"run_id": unique("run")}
        return body | fields

    def send(self, body, headers=None):
        return self.tenant.aegis.post("/v1/authorize", self.token, body, headers)

    def authorize(self, **options):
        """The decision on a call that must get one."""
        return self.send(self.request(**options)).expect(200)

    def read(self, **options):
        return self.authorize(**({"action": "read_customer", "mutates_state": False} | options))


def _action(name, risk, mutates_state, parameters=(), **fields):
    properties = {parameter: {"type": kind} for parameter, kind in parameters}
    return {"action": name, "risk": risk, "mutates_state": mutates_state, "approval_required": False, "default_decision": "policy",
            "parameters": {"type": "object", "properties": properties}} | fields


CRM = {
    "tool": "crm", "name": "CRM", "default_risk": "medium",
    "actions": [
        _action("read_customer", "low", False, [("id", "string")], data_access="internal"),
        _action("read_card_number", "low", False, [("id", "string")], data_access="sensitive"),
        _action("update_customer", "medium", True, [("id", "string"), ("email", "string"), ("amount", "integer")]),
        _action("export_customers", "high", False, [("to", "string")], destination="external", target_parameter="to"),
        _action("delete_all", "critical", True),
        _action("format_disk", "high", True, default_decision="deny"),
        _action("refund", "medium", True, [("amount", "integer")], approval_required=True),
    ],
}

_REPOSITORIES = [(name, "string") for name in ("source_repository", "head_repository", "target_repository")]

GITHUB = {
    "tool": "github", "name": "GitHub", "default_risk": "medium",
    "actions": [
        _action("get_file_contents", "low", False, [("path", "string"), ("ref", "string"), *_REPOSITORIES], data_access="internal"),
        _action("get_issue", "low", False, [("issue_number", "integer"), *_REPOSITORIES], data_access="internal"),
        _action("create_pull_request", "medium", True,
                [("title", "string"), ("body", "string"), ("head", "string"), ("base", "string"), *_REPOSITORIES], destination="external"),
        _action("create_issue_comment", "medium", True, [("issue_number", "integer"), ("body", "string"), *_REPOSITORIES],
                destination="external"),
        _action("merge_pull_request", "high", True, [("pr_number", "integer"), ("base_branch", "string"), *_REPOSITORIES],
                destination="external"),
    ],
}


# Webhooks


def signature(secret, body):
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def webhook_headers(event, delivery, body, secret):
    """What GitHub sends with a delivery."""
    return {
        "content-type": "application/json",
        "user-agent": "GitHub-Hookshot/e2e",
        "x-github-event": event,
        "x-github-delivery": delivery,
        "x-hub-signature-256": signature(secret, body),
    }


EXTERNAL_NAMESPACE = uuid.UUID(int=0x61656769732D65787465726E616C3031)


def external_event_id(tenant, delivery, adapter="github"):
    """The event id that follows from a delivery: UUIDv5 over tenant, adapter and delivery id."""
    return str(uuid.uuid5(EXTERNAL_NAMESPACE, f"{tenant}\0{adapter}\0{delivery}"))


GITHUB_EVENTS = "/v1/audit/events?kind=external_event:github_webhook"


# Receipts, checked here once more and independently of the program


def canonical(value):
    """RFC 8785 for what receipts hold: objects with ASCII keys, strings, integers, booleans, null."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check_chain(lines):
    """Recomputes every hash and link of an export and returns the receipts by lane."""
    lanes = {}
    for line in lines:
        body = dict(line["receipt"])
        receipt_hash = body.pop("receipt_hash")
        assert hashlib.sha256(canonical(body)).hexdigest() == receipt_hash == line["receipt_hash"], f"hash of {body['lane']}#{body['seq']}"
        lanes.setdefault(body["lane"], []).append((body["seq"], body["prev_receipt_hash"], receipt_hash, body))
    for lane, receipts in lanes.items():
        receipts.sort(key=lambda receipt: receipt[0])
        assert [receipt[0] for receipt in receipts] == list(range(1, len(receipts) + 1)), f"lane {lane} has a hole or a fork"
        previous = ""
        for seq, prev_hash, receipt_hash, _ in receipts:
            assert prev_hash == previous, f"lane {lane}, seq {seq} does not link to the receipt before it"
            previous = receipt_hash
    return lanes
