"""A server beside the program under test: its process, and its folder, which goes with it."""

import shutil
import signal


class OwnProcess:
    # Whoever starts it sets both.
    _process = None
    folder = None

    @property
    def running(self):
        return self._process is not None

    @property
    def pid(self):
        return self._process.pid

    def kill9(self):
        self._process.kill()
        self._process.wait()
        self._process = None

    def freeze(self):
        """It takes connections and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def close(self):
        if self.running:
            self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)
