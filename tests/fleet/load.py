"""A steady load on a fleet: authorize calls at every edge, GitHub's webhooks at control. It says at once what should not have been answered,
and keeps what was acknowledged."""

import contextlib
import http.client
import json
import random
import threading
import time
import uuid

from deliveries import external_event_id, webhook_headers
from exchange import Session
from fleet import WEBHOOK_SECRET
from tenants import until_enforced
from waiting import wait_until

# A commit is waited for 5 s; a call is answered by then, whatever is gone behind the edge, and a client waits for the rest. How soon answers must
# come is said in `unfelt`: this only ends a call that would hang.
ANSWER_S = 20
# Control answers a webhook once NATS has it, and may wait for that.
WEBHOOK_ANSWER_S = 30
# Between two calls of one caller: the load is steady, and leaves room for a build beside it.
PACE_S = 0.05
CALLERS = 2
WAIT_S = 120

# What a caller asks, and how often.
CALLS = {"change": 50, "tainted": 15, "read": 15, "contained": 15, "hold": 5}


class Load:
    """Threads that call until they are stopped. An edge that a test takes away is named before, and again when it is back."""

    def __init__(self, fleet, told, seed, pace_s=PACE_S):
        self.fleet, self.told, self.pace_s = fleet, told, pace_s
        self._stopping = threading.Event()
        self._absent, self._returned = set(), {}
        # By edge: agents that it must deny from now on; reasons for which it may deny what it would allow otherwise.
        self.contained, self.may_refuse = {}, {}
        self._dice = random.Random(seed)
        self._threads = []
        for edge in fleet.edges.values():
            self.call(edge)
        self._start(Webhooks(self, self._dice.randrange(1 << 32)))

    def call(self, edge, name=None):
        """Begins to ask an edge."""
        name = name or edge.edge_id
        self.contained.setdefault(name, [])
        self.may_refuse.setdefault(name, set())
        for _ in range(CALLERS):
            self._start(Caller(self, edge, name, self._dice.randrange(1 << 32)))

    def _start(self, work):
        thread = threading.Thread(target=work.run, daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def stopped(self):
        return self._stopping.is_set()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def pause(self, seconds):
        self._stopping.wait(seconds)

    # What a test takes away

    def take_away(self, name):
        self._absent.add(name)

    def give_back(self, name):
        self._returned[name] = time.monotonic()
        self._absent.discard(name)

    @contextlib.contextmanager
    def without(self, name):
        """`name` (an edge, or `control`) need not answer in here."""
        self.take_away(name)
        yield
        self.give_back(name)

    def is_absent(self, name):
        return name in self._absent

    def excused(self, name, since):
        """True if it was away at some moment since then."""
        return name in self._absent or self._returned.get(name, 0) >= since

    # What a test waits for

    def more(self, count, *names, word="allow", within_s=WAIT_S):
        """Waits until each of these edges (all that are there, where none is named) has given `count` more such answers."""
        names = names or [name for name in self.contained if not self.is_absent(name)]
        before = self.told.snapshot()

        def enough():
            assert not self.told.wrong, self.told.wrong[:5]
            now = self.told.snapshot()
            return all(now[name, word] - before[name, word] >= count for name in names)

        wait_until(f"{count} more answers `{word}` at {', '.join(names)}", enough, within_s)

    def freeze(self, agent, **body):
        """Freezes an agent; from the reply on, edges that are said to enforce it must deny."""
        reply = agent.freeze(**body)
        if reply["enforced"]:
            self.must_deny(agent, *(name for name in self.contained if name not in reply["edges"]["silent"] and not self.is_absent(name)))
        return reply

    def freeze_enforced(self, agent):
        return until_enforced(lambda: self.freeze(agent))

    def must_deny(self, agent, *names):
        for name in names:
            self.contained[name].append(agent)

    def forget(self, agent):
        """It may be allowed again."""
        self.contained = {name: [one for one in agents if one is not agent] for name, agents in self.contained.items()}


class Caller:
    """One client of one edge."""

    def __init__(self, load, edge, name, seed):
        self.load, self.told, self.edge, self.name = load, load.told, edge, name
        self.dice = random.Random(seed)
        self._session, self._held = None, []

    def run(self):
        while not self.load.stopped:
            if self.load.is_absent(self.name):
                self._hang_up()
                self.load.pause(self.load.pace_s)
                continue
            started = time.monotonic()
            try:
                self._session = self._session or Session(self.edge.port, ANSWER_S)
                self._call()
            except (OSError, http.client.HTTPException) as error:
                self._hang_up()
                if not self.load.excused(self.name, started):
                    self.told.miss(self.name, error, time.monotonic() - started)
                    self.load.pause(self.load.pace_s * 10)
            except Exception as error:  # A caller that ends unseen would hide what it was to see.
                self.told.complain(f"{self.name}: {type(error).__name__} {error}")
            self.load.pause(self.load.pace_s)
        self._hang_up()

    def _hang_up(self):
        if self._session:
            self._session.close()
            self._session = None

    def _call(self):
        what = self.dice.choices(list(CALLS), list(CALLS.values()))[0]
        agent = self.dice.choice(self.load.fleet.agents)
        may_refuse = set(self.load.may_refuse[self.name])
        getattr(self, f"_{what}")(agent, may_refuse)

    def _ask(self, agent, word, expected, may_refuse=frozenset(), **options):
        """The answer, if it was the expected one; anything but that and a tolerated deny is wrong."""
        headers = {"authorization": f"Bearer {agent.token}", "content-type": "application/json"}
        started = time.monotonic()
        reply = self._session.send("POST", "/v1/authorize", json.dumps(agent.request(**options)).encode(), headers)
        # Where the edge itself was away, or its own disk is the fault, it is not what lies behind it that is waited for.
        if not self.load.excused(self.name, started) and not self.load.may_refuse[self.name]:
            self.told.answered_in(self.name, started, time.monotonic() - started)
        if reply.status != 200:
            self.told.complain(f"{self.name}: {word}: {reply}")
            return None
        answer = reply.json
        self.told.acknowledge(self.name, answer)
        if answer["decision"] == expected:
            self.told.count(self.name, word)
            return answer
        if answer["decision"] == "deny" and answer["reason"] in may_refuse | self.load.may_refuse[self.name]:
            self.told.count(self.name, "refused")
        else:
            self.told.complain(f"{self.name}: {word}: {answer}")
        return None

    def _change(self, agent, may_refuse):
        answer = self._ask(agent, "allow", "allow", may_refuse)
        if answer and answer["receipt"]["receipt_hash"] is None:
            self.told.complain(f"{self.name}: an allowed change without a receipt: {answer}")

    def _tainted(self, agent, may_refuse):
        self._ask(agent, "deny", "deny", trust="untrusted_external")

    def _read(self, agent, may_refuse):
        self._ask(agent, "read", "allow", may_refuse, action="read_customer", mutates_state=False)

    def _contained(self, agent, may_refuse):
        """An agent whose freeze this edge enforces gets no allow, not even for a harmless read."""
        contained = self.load.contained[self.name]
        if contained:
            self._ask(self.dice.choice(contained), "contained", "deny", action="read_customer", mutates_state=False)

    def _hold(self, agent, may_refuse):
        """What waits for a person does not pass without one, nor does an approval that nobody asked for."""
        answer = self._ask(agent, "held", "require_approval", may_refuse, action="refund", parameters={"amount": 1})
        # Control may be waited for longer than an edge keeps a connection on which nothing comes.
        self._hang_up()
        self._consume(agent, str(uuid.UUID(int=self.dice.getrandbits(128), version=4)), "0" * 64, {"approval_not_found": "unknown"})
        if answer:
            self.told.hold(answer["approval"], agent)
            # Control may not have the new one yet, and has the one before it where nothing holds that up.
            self._held = (self._held + [(agent, answer["approval"])])[-2:]
            words = {"approval_pending": "pending", "approval_not_found": "not there yet"}
            for whose, approval in self._held:
                self._consume(whose, approval["approval_id"], approval["action_hash"], words)

    def _consume(self, agent, approval_id, action_hash, words):
        """Control answers this, and may be gone: no answer is no pass. `words`: what each of its refusals counts as; another one is wrong."""
        claimed = {"claimed_action_hash": action_hash}
        with contextlib.suppress(OSError, http.client.HTTPException):
            session = Session(self.edge.port, WEBHOOK_ANSWER_S)
            with contextlib.closing(session):
                headers = {"authorization": f"Bearer {agent.token}", "content-type": "application/json"}
                reply = session.send("POST", f"/v1/approvals/{approval_id}/consume", json.dumps(claimed).encode(), headers)
            if reply.status >= 500:
                self.told.count(self.name, "consume refused")
            elif reply.status in (404, 409) and reply.code in words:
                self.told.count(self.name, words[reply.code])
            else:
                self.told.complain(f"{self.name}: consumed without an approval: {reply}")


class Webhooks:
    """GitHub: a delivery that was not taken comes again under the same id, until it is."""

    def __init__(self, load, seed):
        self.load, self.told, self.control, self.tenant = load, load.told, load.fleet.control, load.fleet.tenant
        self.dice = random.Random(seed)

    def run(self):
        number = 0
        while not self.load.stopped:
            number += 1
            self._deliver(str(uuid.UUID(int=self.dice.getrandbits(128), version=4)), number)
            self.load.pause(self.load.pace_s * 2)

    def _deliver(self, delivery, number):
        body = json.dumps({"action": "opened", "number": number}).encode()
        while not self.load.stopped:
            if not self.load.is_absent("control"):
                started = time.monotonic()
                try:
                    if self._is_taken(delivery, body):
                        return
                except (OSError, http.client.HTTPException) as error:
                    if not self.load.excused("control", started):
                        self.told.count("control", "webhook unanswered")
            self.load.pause(self.load.pace_s * 4)

    def _is_taken(self, delivery, body):
        with contextlib.closing(Session(self.control.port, WEBHOOK_ANSWER_S)) as session:
            headers = webhook_headers("issues", delivery, body, WEBHOOK_SECRET)
            reply = session.send("POST", f"/v1/webhooks/github/{self.tenant.name}", body, headers)
        if reply.status in (200, 202):
            self.told.take_delivery(external_event_id(self.tenant.name, delivery))
            self.told.count("control", "webhook")
            return True
        if reply.status != 503:
            self.told.complain(f"webhook: {reply}")
            return True
        self.told.count("control", "webhook refused")
        return False
