"""Writing into the control feed's buckets as whoever has control's login on the NATS server, and not its signing key."""

import base64
import copy
import hashlib
import json

from nats_client import Client
from receipts import canonical


def containment_place(agent):
    """The bucket and the key of an agent's containment."""
    return "containment", f"{agent.tenant.name}.agent.{hashlib.sha256(agent.id.encode()).hexdigest()}"


def tool_place(tenant, tool):
    return "control", f"{tenant.name}.tool.{hashlib.sha256(tool.encode()).hexdigest()}"


BEAT = ("control", "beat")


def signed_by(key, entry, key_id=None):
    """The entry with a signature of somebody else, under his own name or another's."""
    entry = copy.deepcopy(entry) | {"key_id": key_id or key.key_id()}
    entry.pop("signature", None)
    return entry | {"signature": base64.b64encode(key.sign(canonical(entry))).decode()}


class Forger:
    """A connection with somebody's login."""

    def __init__(self, fleet, user="control", nkey_file=None):
        node = next(node for node in fleet.cluster.nodes if node.running)
        self.client = Client(node.url, fleet.cluster.folder, nkey_file or fleet.control.data / "keys" / "nats.nk", user)

    def read(self, place):
        return self.client.get(*place)

    def entry(self, place):
        """What stands there; empty where it is no entry at all."""
        try:
            return json.loads(self.read(place))
        except ValueError:
            return {}

    def write(self, place, value, headers=None):
        self.client.put(*place, value if isinstance(value, bytes) else json.dumps(value).encode(), headers)

    def close(self):
        self.client.close()
