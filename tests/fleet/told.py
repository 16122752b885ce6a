"""What the clients of a fleet were told, over its whole life: that is what must be true afterwards."""

import collections
import threading
import time


class Told:
    """Acknowledgements, and whatever should not have been said. Written by many threads."""

    def __init__(self):
        self._lock = threading.Lock()
        # Receipt hash → (decision id, edge).
        self.receipts = {}
        # Event ids of deliveries that were taken.
        self.webhooks = set()
        # Answers that should not have been given.
        self.wrong = []
        # Calls to an edge that lived, and gave no answer in time.
        self.unanswered = []
        self.counts = collections.Counter()
        self.slowest_s = collections.Counter()

    def count(self, who, word):
        with self._lock:
            self.counts[who, word] += 1

    def acknowledge(self, edge_id, answer):
        """Notes the receipt of an answer, if it has one."""
        receipt_hash = answer["receipt"]["receipt_hash"]
        if receipt_hash is not None:
            with self._lock:
                self.receipts[receipt_hash] = (answer["decision_id"], edge_id)

    def take_delivery(self, event_id):
        with self._lock:
            self.webhooks.add(event_id)

    def complain(self, text):
        with self._lock:
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {text}")

    def miss(self, edge_id, error, after_s):
        with self._lock:
            self.unanswered.append(f"{time.strftime('%H:%M:%S')} {edge_id}: {type(error).__name__} {error} after {after_s:.1f} s")

    def answered_in(self, edge_id, seconds):
        with self._lock:
            self.slowest_s[edge_id] = max(self.slowest_s[edge_id], seconds)

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
