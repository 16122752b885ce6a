"""`kill -9` at random moments under load: nothing acknowledged is lost, nothing happens twice, and no chain forks.

What a client was told before the kill must be there after it: receipts, webhooks, changes of the registry, approvals and their one
consumption. The disk's own cache is not cut off: that an fsync reaches the platter is the kernel's promise, not tested here.
"""

import collections
import http.client
import json
import os
import random
import threading
import time
import unittest
import uuid

from deliveries import GITHUB_EVENTS, external_event_id, webhook_headers
from exchange import Session
from harness import Aegis
from receipts import check_chain
from seen import assert_seen_once
from waiting import DEADLINE_S, wait_until

ROUNDS = int(os.environ.get("AEGIS_KILLS", "5"))
SEED = int(os.environ.get("AEGIS_SEED", str(random.SystemRandom().randrange(1 << 32))))
AUTHORIZERS, HOOKS, CHANGERS, APPROVERS = 8, 2, 2, 3
# How many acknowledgements a round collects before it kills, at most.
MOST_ACKNOWLEDGED = 400
SECRET = "the webhook secret of the killed one"


class Acknowledged:
    """What clients were told, over all rounds."""

    def __init__(self):
        self.receipts = {}
        self.webhooks = set()
        self.channels = set()
        # Of this round: approval id → (agent, action hash, the last answered step: asked, approved or consumed)
        self.approvals = {}
        self.approvals_checked = 0
        self.consumed = 0

    def __len__(self):
        return len(self.receipts) + len(self.webhooks) + len(self.channels) + len(self.approvals)

    def counts(self):
        """Of each kind: a kind of which none was told proves nothing."""
        return {"receipts": len(self.receipts), "webhooks": len(self.webhooks), "changes": len(self.channels), "consumed approvals": self.consumed}

    def has_every_kind(self):
        return all(self.counts().values())


class Load:
    """Threads that call until the process dies. What was answered is acknowledged; what was not may or may not have happened."""

    def __init__(self, aegis, tenant, agents, acknowledged, round_number):
        self._aegis, self._tenant, self._agents, self._round = aegis, tenant, agents, round_number
        self._acknowledged = acknowledged
        self._lock = threading.Lock()
        self._stopped, self._killed = threading.Event(), threading.Event()
        self.wrong = []
        steps = [self._authorize] * AUTHORIZERS + [self._post_webhook] * HOOKS
        steps += [self._change] * CHANGERS + [self._take_approval_through] * APPROVERS
        self._threads = [threading.Thread(target=self._until_killed, args=(step, n)) for n, step in enumerate(steps)]
        for thread in self._threads:
            thread.start()

    def expect_the_kill(self):
        """From now on a connection may break; before, that is as wrong as a bad answer."""
        self._killed.set()

    def join(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _until_killed(self, step, thread):
        try:
            session = Session(self._aegis.port)
            number = 0
            while not self._stopped.is_set():
                step(session, self._agents[thread % len(self._agents)], f"r{self._round}-t{thread}-{number}")
                number += 1
        except Exception as error:  # noqa: BLE001 a thread that ends unseen leaves a run that proves nothing
            if not (self._killed.is_set() and isinstance(error, (OSError, http.client.HTTPException))):
                self._complain(step.__name__, repr(error))

    def _post(self, session, path, body, key, expected):
        """The reply's body, or None where the status is not `expected`, which is wrong: the process answers well or not at all."""
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        reply = session.send("POST", path, json.dumps(body).encode(), headers)
        if reply.status == expected:
            return reply.json
        self._complain(path, reply)
        return None

    def _complain(self, what, reply):
        with self._lock:
            self.wrong.append(f"{what}: {reply}")

    def _authorize(self, session, agent, name):
        answer = self._post(session, "/v1/authorize", agent.request(parameters={"id": name}, run_id=name, request_id=name), agent.token, 200)
        if answer and answer["decision"] == "allow" and answer["receipt"]["receipt_hash"]:
            with self._lock:
                self._acknowledged.receipts[answer["receipt"]["receipt_hash"]] = answer["decision_id"]
        elif answer:
            self._complain("authorize", answer)

    def _post_webhook(self, session, agent, name):
        delivery = str(uuid.uuid4())
        body = json.dumps({"action": "opened", "name": name}).encode()
        reply = session.send("POST", f"/v1/webhooks/github/{self._tenant.name}", body, webhook_headers("issues", delivery, body, SECRET))
        if reply.status == 202:
            with self._lock:
                self._acknowledged.webhooks.add(external_event_id(self._tenant.name, delivery))
        else:
            self._complain("webhook", reply)

    def _change(self, session, agent, name):
        channel = {"channel": f"channel-{name}", "source_trust": "unknown"}
        if self._post(session, "/v1/channels", channel, self._tenant.registrar, 201):
            with self._lock:
                self._acknowledged.channels.add(channel["channel"])

    def _take_approval_through(self, session, agent, name):
        answer = self._post(session, "/v1/authorize", agent.request(action="refund", run_id=name, request_id=name), agent.token, 200)
        if answer is None:
            return
        if answer["decision"] != "require_approval" or answer["approval"]["action_hash"] != answer["action_hash"]:
            self._complain("refund", answer)
            return
        approval_id, action_hash = answer["approval"]["approval_id"], answer["action_hash"]
        path = f"/v1/approvals/{approval_id}"
        self._note(approval_id, agent, action_hash, "asked")
        authorization = {"authorization": f"Bearer {agent.token}"}
        wait_until("the approval arrives", lambda: session.send("GET", path, None, authorization).status == 200)
        if self._post(session, f"{path}/approve", {}, self._tenant.approver, 200):
            self._note(approval_id, agent, action_hash, "approved")
            consumed = self._post(session, f"{path}/consume", {"claimed_action_hash": action_hash}, agent.token, 200)
            if consumed == {"status": "consumed", "approval_id": approval_id, "action_hash": action_hash}:
                self._note(approval_id, agent, action_hash, "consumed")
            elif consumed:
                self._complain("consume", consumed)

    def _note(self, approval_id, agent, action_hash, step):
        with self._lock:
            self._acknowledged.approvals[approval_id] = (agent, action_hash, step)
            self._acknowledged.consumed += step == "consumed"


class Kills(unittest.TestCase):
    def test_kill_9_loses_nothing_that_was_acknowledged(self):
        print(f"     kills: {ROUNDS} rounds, AEGIS_SEED={SEED}", flush=True)
        dice = random.Random(SEED)
        self.aegis = Aegis()
        self.addCleanup(self.aegis.close)
        self.aegis.start()
        self.tenant = self.aegis.tenant().register_tools()
        self.tenant.set_webhook_secret(SECRET)
        self.tenant.approver = self.tenant.key("approver", "rita", groups=("security",))
        agents = [self.tenant.register_agent().until_tools_are_known() for _ in range(3)]
        self.acknowledged = Acknowledged()
        for number in range(1, ROUNDS + 1):
            started = time.monotonic()
            twice = self.round(dice, agents, number)
            lanes = self.check()
            told = self.acknowledged
            print(f"     kills: round {number}: killed{' twice' if twice else ''}; {len(told.receipts)} receipts, {len(told.webhooks)} webhooks, "
                  f"{len(told.channels)} changes, {told.approvals_checked} approvals all there, {lanes} lanes  {time.monotonic() - started:.1f} s", flush=True)
        self.assertTrue(self.acknowledged.has_every_kind(), self.acknowledged.counts())
        self.assertGreater(self.acknowledged.approvals_checked, 0)
        self.note = f"{ROUNDS} kills, {len(self.acknowledged.receipts)} receipts, {len(self.acknowledged.webhooks)} webhooks, seed {SEED}"

    def round(self, dice, agents, number):
        """Load, a kill at a random moment, sometimes another one during the start; then a start that stays."""
        told = self.acknowledged
        enough = len(told) + dice.randint(1, MOST_ACKNOWLEDGED)
        load = Load(self.aegis, self.tenant, agents, self.acknowledged, number)
        try:
            # Every kind once before the first kill; later ones come at any moment.
            wait_until("enough acknowledgements of every kind", lambda: load.wrong or (len(told) >= enough and told.has_every_kind()), longest_pause_s=0.02)
            pass_time(dice.uniform(0, 0.03))
            load.expect_the_kill()
            self.aegis.kill9()
        finally:
            load.join()
        self.assertEqual(load.wrong, [], "answers that should not have been given")
        twice = dice.random() < 0.3
        if twice:
            self.aegis.spawn()
            pass_time(dice.uniform(0, 0.8))
            self.aegis.kill9()
        self.aegis.start()
        return twice

    def check(self):
        """Everything acknowledged so far is there exactly once, and the chains are whole. Returns the number of lanes."""
        # The first receipt of this start opens its lanes, so that the gap is told.
        self.tenant.register_agent().authorize()
        self.check_approvals()
        lines = self.tenant.export()
        lanes = check_chain(lines)
        self.assertEqual(self.aegis.verify(lines)["verdict"], "valid")
        self.check_receipts(lines)
        consumed = [line["approval_id"] for line in lines if line["kind"] == "approval_consumed"]
        self.assertEqual(repeated(consumed), [], "an approval was consumed twice")
        self.check_changes(lines)
        self.check_events()
        assert_seen_once(self.tenant, lines, self.tenant.export, DEADLINE_S)
        reasons = collections.Counter(line["receipt"]["detail"]["reason"] for line in lines if line["receipt"]["phase"] == "gap")
        self.assertEqual(set(reasons), {"unclean_stop"}, "a kill damaged or lost more than an unclean stop may")
        self.assertEqual([record for record in self.tenant.list("/v1/alerts") if "AEG-3004" in json.dumps(record)], [], "a kill is no broken chain")
        return len(lanes)

    def check_receipts(self, lines):
        self.assertEqual(repeated(line["event_id"] for line in lines), [], "events with two receipts")
        events = {line["receipt_hash"]: line["event_id"] for line in lines}
        self.assertEqual(len(events), len(lines), "a receipt stands twice in the export")
        missing = [receipt_hash for receipt_hash, event_id in self.acknowledged.receipts.items() if events.get(receipt_hash) != event_id]
        self.assertEqual(missing[:5], [], f"{len(missing)} acknowledged receipts are not there")

    def check_changes(self, lines):
        """Every change that is stored has exactly one receipt, whether its reply came or not."""
        stored = [record["channel"] for record in self.tenant.list("/v1/channels")]
        self.assertLessEqual(self.acknowledged.channels, set(stored), "acknowledged changes that are not stored")
        receipted = [line["receipt"]["detail"]["channel"] for line in lines if line.get("reason") == "channel_registered"]
        self.assertEqual(sorted(receipted), sorted(stored))

    def check_events(self):
        """The same through the bus: webhooks, and the decisions that were acknowledged."""
        for path, wanted in ((GITHUB_EVENTS, self.acknowledged.webhooks), ("/v1/decisions", set(self.acknowledged.receipts.values()))):
            def arrived(path=path, wanted=wanted):
                ids = [event["event_id"] for event in self.tenant.list(path)]
                return ids if wanted.issubset(ids) else None

            self.assertEqual(repeated(wait_until(f"everything acknowledged is in {path}", arrived)), [], "events that stand twice")

    def check_approvals(self):
        """An approval that was told of exists, and what was consumed cannot be consumed again."""
        for approval_id, (agent, action_hash, step) in self.acknowledged.approvals.items():
            path = f"/v1/approvals/{approval_id}"
            wait_until(f"approval {approval_id}", lambda path=path: self.tenant.get(path).status == 200)
            reply = self.tenant.post(f"{path}/consume", {"claimed_action_hash": action_hash}, key=agent.token)
            allowed = {"asked": {"approval_pending", "approval_consumed", None}, "approved": {None, "approval_consumed"}, "consumed": {"approval_consumed"}}[step]
            self.assertIn(reply.code, allowed, f"{step}: {reply}")
            if reply.code is None:
                reply.expect(200)
        # Later rounds see in the receipts that none is consumed again.
        self.acknowledged.approvals_checked += len(self.acknowledged.approvals)
        self.acknowledged.approvals.clear()


def repeated(values):
    return [value for value, count in collections.Counter(values).items() if count > 1]


def pass_time(seconds):
    """Part of the fault, not a wait for something: moves the kill to a random moment."""
    threading.Event().wait(seconds)
