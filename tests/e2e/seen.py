"""What detection saw, held against what was sealed (L-LOOKED): it says of each lane how far it has followed it, and what of it rules were shown."""

import collections
import uuid

from waiting import wait_until

LANES = "/v1/detection/lanes"


def shown(lane):
    """A lane as detection has followed it: its head, how many of its receipts rules were shown, and the sum of their ids."""
    return lane["seq"], lane["receipt_hash"], lane["in_time"] + lane["late"], lane["event_id_sum"]


def sealed(lines, head):
    """The same of a lane's receipts up to a head."""
    lines = sorted((line for line in lines if line["seq"] <= head), key=lambda line: line["seq"])
    last = lines[-1] if lines else {"seq": 0, "receipt_hash": None}
    ids = sum(uuid.UUID(line["event_id"]).int for line in lines) % (1 << 128)
    return last["seq"], last["receipt_hash"], len(lines), str(uuid.UUID(int=ids))


def complaints(lanes, by_lane):
    """What is wrong with lanes as detection has followed them, by their names, where these are the receipts of each, up to there or further."""
    broken = [lane for lane in lanes.values() if lane["missing"] or lane["before"] or lane["unproved"]]
    said = [f"{len(broken)} lanes were not followed whole from their first receipt on, e.g. {broken[:2]}"] if broken else []
    pairs = {name: (shown(lane), sealed(by_lane.get(name, []), lane["seq"])) for name, lane in lanes.items()}
    other = [(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]
    return said + ([f"of {len(other)} lanes rules were not shown what was sealed, e.g. {other[:2]}"] if other else [])


def heads(by_lane):
    return {name: max(line["seq"] for line in lines) for name, lines in by_lane.items()}


def are_as_far(heads_there, wanted):
    return all(heads_there.get(name, 0) >= seq for name, seq in wanted.items())


def by_lane_of(lines):
    by_lane = collections.defaultdict(list)
    for line in lines:
        by_lane[line["lane"]].append(line)
    return by_lane


def assert_seen_once(tenant, lines, export, within_s):
    """Detection has followed each lane to every receipt of `lines` and further, without a gap, and rules were shown each receipt once. Its counts are
    held against what `export` gives, the receipts of the tenant's whole history: they must be those that were acknowledged."""
    wanted = heads(by_lane_of(lines))

    def followed():
        # For a moment, behind a start, it does not answer.
        if tenant.get(f"{LANES}?limit=1").status == 503:
            return None
        lanes = {lane["lane"]: lane for lane in tenant.list(LANES)}
        return lanes if are_as_far({name: lane["seq"] for name, lane in lanes.items()}, wanted) else None

    def history():
        # It may be a moment behind detection.
        by_lane = by_lane_of(export())
        return by_lane if are_as_far(heads(by_lane), {name: lane["seq"] for name, lane in lanes.items()}) else None

    lanes = wait_until("detection has followed every lane", followed, within_s, longest_pause_s=2)
    by_lane = wait_until("the history is as far as detection", history, within_s, longest_pause_s=2)
    wrong = complaints(lanes, by_lane)
    assert not wrong, "\n".join(wrong)
