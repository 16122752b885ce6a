"""What the program must tell of a rule's matches: its alerts, as a rule test expects them; and what `aegis rules test` says of such tests."""

import json
import random
import subprocess
import sys
from pathlib import Path

MOST_EVIDENCE = 64
"""Of a longer list than twice as many, so many of both ends are evidence."""


def alerts(rule, found):
    """The alerts of a match set, as (tenant, key, evidence): the first match of each episode, one for each first evidence. Matches of a key with the
    same ends are one."""
    by_key = {}
    for tenant, key, instant, evidence in found:
        ends = (instant, (evidence[0][0][0], evidence[0][0][3]), (evidence[-1][0][0], evidence[-1][0][3]))
        by_key.setdefault((tenant, key), []).append((ends, evidence))
    told = []
    for (tenant, key), of_key in sorted(by_key.items()):
        begin, first_of_all, ids = None, None, set()
        for (instant, first, _), evidence in sorted(of_key):
            joins = begin is not None and (instant < begin + rule.suppress if rule.suppress else first == first_of_all)
            if joins:
                continue
            begin, first_of_all = instant, first
            if first not in ids:
                ids.add(first)
                told.append((tenant, dict(zip(rule.key, key, strict=True)), evidence))
    return told


def expected(rule, found, fields):
    """The alerts of a match set as a rule test expects them. Where matches that are one list other evidence between its ends, it may be any of theirs:
    those come last, when all whose evidence is told have been found."""
    lists = {}
    for tenant, key, _, evidence in found:
        lists.setdefault((tenant, key, evidence[0], evidence[-1]), set()).add(evidence)
    written, untold = [], []
    for tenant, key, evidence in alerts(rule, found):
        labels = [label for _, label in evidence]
        if len(labels) > 2 * MOST_EVIDENCE:
            labels = labels[:MOST_EVIDENCE] + labels[-MOST_EVIDENCE:]
        if len(lists[tenant, tuple(key.values()), evidence[0], evidence[-1]]) > 1:
            untold.append({"tenant": tenant, "key": key})
        else:
            written.append({"tenant": tenant, "key": key, "evidence": labels, "fields": fields[evidence]})
    return written + untold


def test_file(name, events, expect):
    """A rule test; JSON is YAML."""
    written = []
    for event in events:
        columns = {k: v for k, v in event.items() if k not in ("ms", "lane", "seq")}
        written.append({"at": f"{event['ms']}ms", **columns})
    return json.dumps({"name": name, "events": written, "expect": expect})


def ask_program(program, folder):
    """What the program says of the tests of a folder of rules: (rule, file) to failures; and of rules that it does not take, why."""
    result = subprocess.run([program, "rules", "test", str(folder), "--json"], capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        sys.exit(f"judge: `aegis rules test` ended with {result.returncode}: {result.stderr.strip()}")
    answers, refused = {}, {}
    for rule in json.loads(result.stdout)["rules"]:
        if not rule["tests"]:
            refused[rule["rule"]] = " ".join(rule["problems"])
        for test in rule["tests"]:
            answers[rule["rule"], Path(test["file"]).stem] = test["failures"]
    return answers, refused


def numbers(*what):
    """The random numbers of something: the same for the same seed, whatever else is judged."""
    return random.Random(" ".join(map(str, what)))
