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
    """One line a test. `may_skip`: the groups, and GROUP.WORD, that may leave out tests; None: every one may."""

    def __init__(self, may_skip=None):
        super().__init__()
        self._may_skip = may_skip
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
        if self._may_skip is not None and not any(is_named(test, name) for name in self._may_skip):
            self._broken = True
            print(f"     it may not be left out: {reason}", flush=True)
            self.details.append(f"--- {test}\nit was left out ({reason}), and this run is of everything: AEGIS_MAY_SKIP names what may be\n")
            if not isinstance(test, unittest.TestCase):
                self.stopTest(test)
            return
        super().addSkip(test, reason)
        self._line("SKIP", test, reason)


def is_named(test, name):
    """True if GROUP, or GROUP.WORD with the word in the test's name, or with that name of its class, names it."""
    group, _, word = name.partition(".")
    return group == type(test).__module__ and (word in getattr(test, "_testMethodName", "") or word == type(test).__name__)


def chosen(names, groups):
    """The tests that `names` name (`is_named`), all when there is none. A name that matches nothing would leave out what it meant."""
    suite = unittest.TestSuite()
    loader = unittest.TestLoader()
    for name in names or groups:
        group = name.partition(".")[0]
        if group not in groups:
            sys.exit(f"there is no group `{group}`; the groups are {', '.join(groups)}")
        matching = [test for case in loader.loadTestsFromModule(importlib.import_module(group)) for test in case if is_named(test, name)]
        if not matching:
            sys.exit(f"no test matches `{name}`")
        suite.addTests(matching)
    return suite


def run_here(title, names, groups, may_skip=None):
    """Runs them in this process, one after another, prints what became of them and returns the counts."""
    faulthandler.register(signal.SIGUSR1)
    end_as_by_ctrl_c()
    started = time.monotonic()
    printer = Printer(may_skip)
    chosen(names, groups).run(printer)
    for details in printer.details:
        print(f"\n{details}", file=sys.stderr)
    counts = Counts(printer.passed, printer.failed, len(printer.skipped), len(printer.expectedFailures))
    print(f"{title}: {counts} in {time.monotonic() - started:.0f} s", flush=True)
    return counts


def run(title, names, groups, may_skip=None):
    """The same. 1 when any failed."""
    return 1 if run_here(title, names, groups, may_skip).failed else 0
