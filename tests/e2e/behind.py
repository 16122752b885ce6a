"""A process that runs behind, beside others: what it says is kept until it is over, and nothing that it began is left then."""

import os
import signal
import subprocess
import tempfile
import time


class Behind:
    """It and its children are a process group of their own."""

    def __init__(self, name, command, is_shown=False, **process_options):
        """`is_shown`: it says everything at once, as nothing beside it says much."""
        self.name = name
        self.started = time.monotonic()
        self._log = tempfile.TemporaryFile()
        told = {} if is_shown else {"stdout": self._log, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, start_new_session=True, **told, **process_options)

    @property
    def is_over(self):
        """It is not reaped yet: its number stands for its children until they are ended."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    @property
    def seconds(self):
        return time.monotonic() - self.started

    def close(self):
        """Ends it and whatever is left of it, shows what it said, and returns its exit code."""
        self._signal(signal.SIGKILL)
        returncode = self._process.wait()
        self._log.seek(0)
        print(self._log.read().decode("utf-8", "replace"), end="", flush=True)
        self._log.close()
        return returncode

    def ask_to_end(self):
        # Not SIGINT, which whoever was started behind a shell does not hear.
        self._signal(signal.SIGTERM)

    def _signal(self, number):
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass


def end_as_by_ctrl_c():
    """SIGTERM is Ctrl-C: what is tidied up then is tidied up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def wait_for_some(running):
    """Those that are over, once there is one."""
    while not (over := [behind for behind in running if behind.is_over]):
        time.sleep(0.05)
    return over


def end_all(running, within_s):
    """Asks them to end, shows what they said (nobody else will), and ends those that do not."""
    for behind in running:
        behind.ask_to_end()
    end = time.monotonic() + within_s
    while time.monotonic() < end and not all(behind.is_over for behind in running):
        time.sleep(0.05)
    for behind in running:
        behind.close()
