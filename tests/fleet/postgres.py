"""A real Postgres on loopback for the control plane's tables: Debian's, on a folder and a port of its own, asking for a password."""

import os
import pathlib
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile

from nats import free_port
from own_process import OwnServer
from waiting import wait_until

USER, DATABASE = "aegis", "aegis"
# Postgres refuses to run as root; Debian's package brings this user.
UNPRIVILEGED = "postgres"


def programs():
    """The folder of the newest version's programs, or None."""
    folders = [folder for folder in pathlib.Path("/usr/lib/postgresql").glob("*/bin") if (folder / "postgres").exists()]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


class Postgres(OwnServer):
    """One server with its own folder. It goes on as its user, and what it holds survives its death."""

    def __init__(self):
        self.bin = programs()
        assert self.bin, "Postgres is missing: run scripts/setup.sh"
        self.port = free_port()
        # Not below the repository: its user may not be able to go there.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="aegis-postgres-"))
        self.data, self._log = self.folder / "data", self.folder / "log"
        self._as_user = []
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._initialise(secrets.token_urlsafe(24))

    def _initialise(self, password):
        """A cluster that only asks for passwords, and the file that the control plane reads its address from."""
        secret = self._private_file(self.folder / "password", password)
        self._run("initdb", "-D", self.data, "-U", USER, "-E", "UTF8", "--locale=C", "--auth=scram-sha-256", f"--pwfile={secret}")
        secret.unlink()
        self.url_file = pathlib.Path(tempfile.mkdtemp(prefix="aegis-postgres-url-")) / "url"
        self._private_file(self.url_file, f"postgres://{USER}:{password}@127.0.0.1:{self.port}/{DATABASE}\n", os.geteuid())
        self._environment = {"PGPASSWORD": password}
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", USER, DATABASE)

    def _private_file(self, path, text, owner=None):
        """A file that its owner alone can read: Postgres's user, where none is named."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)
        os.chown(path, self.folder.stat().st_uid if owner is None else owner, -1)
        return path

    def _run(self, program, *arguments):
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"} | getattr(self, "_environment", {})
        command = [*self._as_user, str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    @property
    def environment(self):
        """How the control plane is told of it."""
        return {"AEGIS_STORE_URL_FILE": str(self.url_file)}

    def start(self):
        options = ["-D", self.data, "-p", self.port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with self._log.open("ab") as log:
            command = [*self._as_user, str(self.bin / "postgres"), *map(str, options)]
            self._process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until("Postgres takes connections", self._is_ready)
        return self

    def _is_ready(self):
        assert self._process.poll() is None, f"Postgres ended:\n{self._log.read_text()[-4000:]}"
        asked = [self.bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER]
        return subprocess.run(asked).returncode == 0

    def stop(self, how=signal.SIGQUIT):
        """SIGQUIT is Postgres's immediate mode: no transaction is finished, and the next start recovers from the log."""
        self.end(how)

    def close(self):
        if self.running:
            self.stop()
        super().close()
        shutil.rmtree(self.url_file.parent, ignore_errors=True)
