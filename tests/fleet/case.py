"""What every fault stands on: a fleet that is kept from test to test while it is whole, and a load that runs through the fault."""

import contextlib
import os
import pathlib
import random
import shutil
import tempfile
import threading
import time
import unittest

from evidence import assert_whole
from fleet import Fleet
from load import WAIT_S, Load
from told import Told
from unfelt import assert_not_felt
from waiting import wait_until

SERVER = os.environ.get("AEGIS_FLEET_NATS", "current")
SEED = int(os.environ.get("AEGIS_SEED", str(random.SystemRandom().randrange(1 << 32))))
# How long a fault lasts that has a length, seconds.
LONG_S = float(os.environ.get("AEGIS_FLEET_LONG_S", "60"))
# Acknowledged calls at each edge before, during and after a fault, at least.
SOME = 40
# How long edges may take to ship what they have, before a reload is thought to be needed.
DRAINED_WITHIN_S = 30


class Shared:
    """The fleet of this run, and what its clients were told. A test that fails leaves it to nobody."""

    fleet = told = None

    @classmethod
    def get(cls):
        if cls.fleet is None:
            cls.fleet, cls.told = Fleet(SERVER), Told()
        return cls.fleet, cls.told

    @classmethod
    def close(cls):
        if cls.fleet is not None:
            cls.fleet.close()
        cls.fleet = cls.told = None


class FleetTest(unittest.TestCase):
    """One fault each. `self.load` runs; `self.whole()` stops it and checks everything that must hold."""

    # Whether the fleet is for no other test afterwards.
    spoils = False

    def setUp(self):
        self.fleet, self.told = Shared.get()
        # Of its own for each test, so that one alone does what it did in the whole.
        self.dice = random.Random(f"{SEED} {self._testMethodName}")
        self.extra = []
        self.load = Load(self.fleet, self.told, self.dice.randrange(1 << 32))
        self.fleet.wait_heard()
        # One agent is frozen before the fault: no edge may allow it anything, whatever happens.
        self.frozen = self.fleet.tenant.register_agent()
        self.load.freeze_enforced(self.frozen)
        self.before = self.told.snapshot()
        began = time.monotonic()
        self.load.more(SOME)
        self.calm = [seconds for times in self.told.times(began, time.monotonic()).values() for seconds in times]

    def run(self, result=None):
        failed, known = len(result.details), len(result.expectedFailures)
        super().run(result)
        if getattr(self, "load", None):
            self.load.stop()
        if len(result.details) > failed:
            self._keep_logs(result)
        if self.spoils or len(result.details) > failed or len(result.expectedFailures) > known:
            Shared.close()
        for edge in getattr(self, "extra", ()):
            edge.close()

    def _keep_logs(self, result):
        """The logs of a fleet in which something failed."""
        if Shared.fleet is None:
            return
        kept = pathlib.Path(tempfile.mkdtemp(prefix="aegis-fleet-failed-"))
        for log in Shared.fleet.logs():
            shutil.copy(log, kept / "-".join(log.relative_to(Shared.fleet.folder).parts))
        result.details.append(f"logs of {self._testMethodName}: {kept}")

    def whole(self):
        """The load goes on for a moment, stops, and everything acknowledged is accounted for."""
        self.load.more(SOME)
        if SERVER == "debian":
            self.webhooks_go_on()
        for edge in self.fleet.running_edges:
            self.assertEqual(edge.would(self.frozen, action="read_customer", mutates_state=False)["reason"], "agent_frozen", edge.edge_id)
        self.load.stop()
        reloaded = SERVER == "debian" and self.reloads_if_stuck()
        counts = self.told.snapshot() - self.before
        for word in ("allow", "deny", "read", "contained", "webhook", "held", "pending"):
            self.assertGreater(sum(count for (_, said), count in counts.items() if said == word), 0, f"the load had no `{word}`")
        lines = assert_whole(self.fleet, self.told)
        acknowledged = sum(count for (_, said), count in counts.items() if said in ("allow", "deny", "contained", "held", "refused"))
        slowest_s = max(self.told.slowest_s.values())
        so_far = f"{len(self.told.receipts)} receipts and {len(self.told.webhooks)} webhooks so far, all there; the slowest answer took {slowest_s:.2f} s"
        self.note = f"{'reloaded; ' if reloaded else ''}{acknowledged} calls here, {so_far}"
        return lines

    def reloads_if_stuck(self):
        """Debian's server may lose the way between an edge's account and that of the streams, and finds it again when it is reloaded (README)."""
        drained = lambda: not any(edge.metric("ase_spool_backlog") for edge in self.fleet.running_edges)
        with contextlib.suppress(AssertionError):
            return not wait_until("everything is shipped", drained, DRAINED_WITHIN_S)
        self.fleet.cluster.reload()
        return True

    def webhooks_go_on(self):
        """Control takes webhooks. Ingest has an account of its own too, and so may lose its way as edges do."""
        more = lambda within_s: self.load.more(SOME, "control", word="webhook", within_s=within_s)
        if SERVER == "debian":
            with contextlib.suppress(AssertionError):
                return more(DRAINED_WITHIN_S)
            self.fleet.cluster.reload()
        return more(WAIT_S)

    @contextlib.contextmanager
    def unfelt(self):
        """What is taken away in here lies behind the edges that are asked meanwhile: they answer as they did before it."""
        began = time.monotonic()
        yield
        times = {name: took for name, took in self.told.times(began, time.monotonic()).items() if len(took) >= SOME}
        self.assertTrue(times, "no edge answered enough to tell")
        for name, took in times.items():
            assert_not_felt(self.calm, took, name)

    def freeze_later(self):
        """An agent that is frozen in the middle of a fault."""
        agent = self.fleet.tenant.register_agent()
        return agent, self.load.freeze(agent)

    def wait_denied(self, agent, *edges, name=None):
        """Until these edges (all that run, where none is named) deny an agent, and from then on they must. `name`: of the one in the load."""
        for edge in edges or self.fleet.running_edges:
            denied = lambda edge=edge: edge.would(agent, action="read_customer", mutates_state=False)["reason"] == "agent_frozen"
            wait_until(f"{edge.edge_id} enforces the freeze", denied, 120)
            self.load.must_deny(agent, name or edge.edge_id)


def pass_time(seconds):
    """Part of a fault, not a wait for something."""
    threading.Event().wait(seconds)
