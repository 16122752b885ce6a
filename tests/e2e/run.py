"""Runs the groups named on the command line (all when none is) and prints one line a test. Exit 1 when any failed.

    run.py [GROUP[.WORD]]...     e.g. `approvals`, `faults.disk`: the tests of `faults` with `disk` in their name
"""

import faulthandler
import importlib
import signal
import sys
import time
import traceback
import unittest

GROUPS = ["webhooks", "bad_input", "bad_admin", "decisions", "approvals", "containment", "exports", "policies", "readme", "faults", "transport", "kills"]


class Printer(unittest.TestResult):
    """One line a test, the failures' details at the end."""

    def __init__(self):
        super().__init__()
        self.passed = 0
        self.failed = 0
        self.details = []
        self._started = time.monotonic()
        self._broken = False

    def startTest(self, test):
        super().startTest(test)
        self._started = time.monotonic()
        self._broken = False

    def _line(self, word, test, note=""):
        group = type(test).__module__
        rule = getattr(test, "_testMethodName", str(test)).removeprefix("test_").replace("_", " ")
        note = note or getattr(test, "note", "")
        elapsed = time.monotonic() - self._started
        print(f"{word:<4} {group:<11} {rule}{f'  ({note})' if note else ''}  {elapsed:.1f} s", flush=True)

    def _add(self, test, error):
        self._broken = True
        self.details.append(f"--- {test}\n{''.join(traceback.format_exception(*error))}")

    def addSuccess(self, test):
        self.passed += 1
        self._line("ok", test)

    def addFailure(self, test, error):
        self._add(test, error)

    def addError(self, test, error):
        self._add(test, error)
        if not isinstance(test, unittest.TestCase):
            # A class that could not be set up: none of its tests runs, and none is stopped.
            self.stopTest(test)

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self._add(subtest, error)

    def stopTest(self, test):
        if self._broken:
            self.failed += 1
            self._line("FAIL", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line("SKIP", test, reason)


def chosen(names):
    suite = unittest.TestSuite()
    loader = unittest.TestLoader()
    for name in names or GROUPS:
        group, _, word = name.partition(".")
        if group not in GROUPS:
            sys.exit(f"there is no group `{group}`; the groups are {', '.join(GROUPS)}")
        for case in loader.loadTestsFromModule(importlib.import_module(group)):
            matching = [test for test in case if word in test._testMethodName]
            if matching:
                suite.addTests(matching)
    if suite.countTestCases() == 0:
        sys.exit(f"no test matches {names}")
    return suite


def main():
    faulthandler.register(signal.SIGUSR1)
    started = time.monotonic()
    printer = Printer()
    chosen(sys.argv[1:]).run(printer)
    for details in printer.details:
        print(f"\n{details}", file=sys.stderr)
    skipped = f", {len(printer.skipped)} skipped" if printer.skipped else ""
    print(f"e2e: {printer.passed} passed, {printer.failed} failed{skipped} in {time.monotonic() - started:.0f} s")
    return 1 if printer.failed else 0


if __name__ == "__main__":
    sys.exit(main())
