"""The real program under test: started, stopped, killed, spoken to over HTTP and by its command line."""

import http.client
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse

from exchange import send
from nats import SERVERS, NatsServer
from own_process import OwnProcess
from tenants import Tenant
from waiting import DEADLINE_S, unique, wait_until

BINARY = pathlib.Path(os.environ["AEGIS_BIN"]).resolve()
VERIFIER = BINARY.with_name("aegis-verify-receipts")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

NATS = os.environ.get("AEGIS_E2E_NATS")

# The program's own variables would reach it from the caller's environment and change what is tested.
CLEAN_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}


class StartFailed(AssertionError):
    """The program ended, or said nothing, instead of starting."""

    def __init__(self, returncode, output):
        super().__init__(f"aegis up did not start (exit code {returncode}):\n{output}")
        self.returncode, self.output = returncode, output


class Aegis(OwnProcess):
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
        # Port 0 is a free one; a test that must find the program again after a restart names its own.
        self.listen = "127.0.0.1:0"
        # Where the log of every start goes; None: that of the last start is kept while it runs.
        self.log_file = None
        self.port = None
        self._log = None
        self._output = []

    def join(self, nats):
        """Makes the server's streams, and before that its users, where it asks for a login."""
        self.environment |= nats.environment
        if nats.is_secured:
            self.cli("streams", "users", "--data", self.data, "--write", nats.users)
            self.environment["AEGIS_NATS_USERS_FILE"] = str(nats.users)
            nats.start()
        self.apply_streams(nats)

    def apply_streams(self, nats):
        options = ["--data", self.data] if nats.is_secured else []
        self.cli("streams", "apply", "--nats", nats.url, *options, *nats.options, *nats.apply_options)

    # Life

    ROLE = "up"

    def command(self):
        command = [str(BINARY), self.ROLE, "--data", str(self.data), "--listen", self.listen]
        return command + (["--config", str(self.config)] if self.config else [])

    def spawn(self, **process_options):
        """Starts the process without waiting for anything."""
        assert not self.running, "already started"
        self._log = self.log_file.open("a+b") if self.log_file else tempfile.TemporaryFile()
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
            returncode = process.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            returncode = None
        raise StartFailed(returncode, b"".join(self._output).decode() + self.log())

    def log(self):
        """What the last process wrote to stderr; with a log file, what all of them did."""
        # Read beside its place: that is where the process, which has the same open file, writes next.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode("utf-8", "replace")

    def stop(self):
        """Stops the process as an operator does; it must end well."""
        returncode = self.end(signal.SIGTERM)
        assert returncode == 0, f"exit code {returncode} after SIGTERM:\n{self.log()[-4000:]}"

    def restart(self):
        self.stop()
        return self.start()

    def close(self):
        """Ends whatever still runs and removes the folder."""
        if self.running:
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

    # Variables that its commands need beside the clean environment.
    cli_environment = {}

    def cli(self, *arguments, expect=0, stdin=None, program=BINARY):
        """Runs a command of the program and returns what it printed."""
        done = subprocess.run(
            [str(program), *map(str, arguments)], env=CLEAN_ENVIRONMENT | self.cli_environment, input=stdin, capture_output=True, text=True, timeout=300
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
