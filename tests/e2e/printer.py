"""Runs groups of tests and prints one line a test, the failures' details at the end."""

import dataclasses
import faulthandler
import importlib
import signal
import sys
import time
import traceback
import unittest

from behind import end_as_by_ctrl_c


@dataclasses.dataclass
class Counts:
    """What became of the tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    known: int = 0

    def __add__(self, other):
        return Counts(*(ours + theirs for ours, theirs in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __str__(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        known = f", {self.known} known to fail" if self.known else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}{known}"


class Printer(unittest.TestResult):
    """One line a test."""

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
        print(f"{word:<5} {group:<11} {rule}{f'  ({note})' if note else ''}  {elapsed:.1f} s", flush=True)

    def _add(self, test, error):
        self._broken = True
        print("     " + "".join(traceback.format_exception_only(*error[:2])).strip().replace("\n", "\n     ")[:2000], flush=True)
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

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self._line("XFAIL", test, getattr(test, "known", "known"))

    def addUnexpectedSuccess(self, test):
        self._broken = True
        self.details.append(f"--- {test}\nit passed, and is marked as one that fails: take the mark away\n")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line("SKIP", test, reason)


def chosen(names, groups):
    """The tests that `names` name, all when there is none: GROUP, or GROUP.WORD with the word in the test's name, or with that name of its class."""
    suite = unittest.TestSuite()
    loader = unittest.TestLoader()
    for name in names or groups:
        group, _, word = name.partition(".")
        if group not in groups:
            sys.exit(f"there is no group `{group}`; the groups are {', '.join(groups)}")
        for case in loader.loadTestsFromModule(importlib.import_module(group)):
            matching = [test for test in case if word in test._testMethodName or word == type(test).__name__]
            if matching:
                suite.addTests(matching)
    if suite.countTestCases() == 0:
        sys.exit(f"no test matches {names}")
    return suite


def run_here(title, names, groups):
    """Runs them in this process, one after another, prints what became of them and returns the counts."""
    faulthandler.register(signal.SIGUSR1)
    end_as_by_ctrl_c()
    started = time.monotonic()
    printer = Printer()
    chosen(names, groups).run(printer)
    for details in printer.details:
        print(f"\n{details}", file=sys.stderr)
    counts = Counts(printer.passed, printer.failed, len(printer.skipped), len(printer.expectedFailures))
    print(f"{title}: {counts} in {time.monotonic() - started:.0f} s", flush=True)
    return counts


def run(title, names, groups):
    """The same. 1 when any failed."""
    return 1 if run_here(title, names, groups).failed else 0
