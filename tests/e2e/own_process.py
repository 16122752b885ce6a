"""A process that a test starts, signals and ends: the program under test, or a server beside it."""

import shutil
import signal

from waiting import DEADLINE_S


class OwnProcess:
    # Whoever starts it sets it.
    _process = None

    @property
    def running(self):
        return self._process is not None

    @property
    def pid(self):
        return self._process.pid

    def signal(self, number):
        self._process.send_signal(number)

    def hang(self):
        """It takes connections and answers nothing."""
        self.signal(signal.SIGSTOP)

    def go_on(self):
        self.signal(signal.SIGCONT)

    def end(self, how, within_s=DEADLINE_S):
        """Ends it by a signal and returns its exit code. From its beginning on nobody takes it for one that runs."""
        process, self._process = self._process, None
        process.send_signal(how)
        return process.wait(timeout=within_s)

    def kill9(self):
        """Ends it as a power cut does (less the disk's cache)."""
        self.end(signal.SIGKILL)


class OwnServer(OwnProcess):
    """A server beside the program under test, and its folder, which goes with it."""

    # Whoever makes it sets it.
    folder = None

    def close(self):
        if self.running:
            self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)
