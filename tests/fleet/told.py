"""What the clients of a fleet were told, over its whole life: that is what must be true afterwards."""

import collections
import threading
import time

# Answers of an edge whose time is kept, the latest: more than any fault of a run has.
MOST_TIMES = 50_000


class Told:
    """Acknowledgements, and whatever should not have been said. Written by many threads."""

    def __init__(self):
        self._lock = threading.Lock()
        # Receipt hash → (decision id, edge).
        self.receipts = {}
        # Approval id → (hash of the action that is held, its agent), the newest last.
        self.approvals = {}
        # Event ids of deliveries that were taken.
        self.webhooks = set()
        # Answers that should not have been given.
        self.wrong = []
        # Calls to an edge that lived, and gave no answer in time.
        self.unanswered = []
        self.counts = collections.Counter()
        # The slowest answer of each edge, and of the latest ones when they were asked for and how long they took, in seconds.
        self.slowest_s = collections.Counter()
        self._times = collections.defaultdict(lambda: collections.deque(maxlen=MOST_TIMES))

    def count(self, who, word):
        with self._lock:
            self.counts[who, word] += 1

    def acknowledge(self, edge_id, answer):
        """Notes the receipt of an answer, if it has one."""
        receipt_hash = answer["receipt"]["receipt_hash"]
        if receipt_hash is not None:
            with self._lock:
                self.receipts[receipt_hash] = (answer["decision_id"], edge_id)

    def hold(self, approval, agent):
        """Notes that an action waits for a person."""
        with self._lock:
            self.approvals[approval["approval_id"]] = (approval["action_hash"], agent)

    def take_delivery(self, event_id):
        with self._lock:
            self.webhooks.add(event_id)

    def complain(self, text):
        with self._lock:
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {text}")

    def miss(self, edge_id, error, after_s):
        with self._lock:
            self.unanswered.append(f"{time.strftime('%H:%M:%S')} {edge_id}: {type(error).__name__} {error} after {after_s:.1f} s")

    def answered_in(self, edge_id, started, seconds):
        with self._lock:
            self.slowest_s[edge_id] = max(self.slowest_s[edge_id], seconds)
            self._times[edge_id].append((started, seconds))

    def times(self, since, until):
        """By edge, the seconds that answers took which were asked for meanwhile."""
        with self._lock:
            return {edge_id: [seconds for started, seconds in times if since <= started < until] for edge_id, times in self._times.items()}

    def snapshot(self):
        """The counts as they are now."""
        with self._lock:
            return collections.Counter(self.counts)

    def __str__(self):
        words = collections.Counter()
        for (_, word), count in self.counts.items():
            words[word] += count
        said = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
        return f"{len(self.receipts)} receipts ({said}); slowest answer {max(self.slowest_s.values(), default=0):.1f} s"
