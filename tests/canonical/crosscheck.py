"""Compares corpus/canonical with the independent `rfc8785` package, and with the real binary where AEGIS_BIN names one.

Prints every vector on which two of them disagree, and exits 1 if there is one.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import corpus
import large
import rfc8785
import strict_reader

# The command line is asked about every so-many-th vector; tests/corpus asks about all of them, many at a time.
SAMPLED = 12

# What Python's own parser with the rfc8785 package lets pass; strict_reader.py has to see these.
UNSEEN_BY_LIBRARY = {"duplicate_key", "depth_exceeded", "size_exceeded"}


class Report:
    def __init__(self) -> None:
        self.differences = 0

    def difference(self, vector: dict, what: str) -> None:
        self.differences += 1
        print(f"DIFFERENCE {vector['id']} ({vector['description']}): {what}", file=sys.stderr)
        print(f"  input {shown(corpus.decoded(vector['input']))}", file=sys.stderr)


def shown(data: bytes) -> str:
    return repr(data if len(data) <= 200 else data[:200] + b"...")


def library_form(data: bytes) -> bytes:
    """What a program gets that has only the standard parser and the library; raises where either refuses."""
    return rfc8785.dumps(json.loads(data.decode("utf-8")))


def check_accepted(vector: dict, report: Report) -> None:
    data, expected = corpus.decoded(vector["input"]), corpus.decoded(vector["canonical"])
    if hashlib.sha256(expected).hexdigest() != vector["sha256"]:
        report.difference(vector, "sha256 is not that of the canonical form")
    found = library_form(data)
    if found != expected:
        report.difference(vector, f"rfc8785 has {shown(found)}, the corpus {shown(expected)}")
    try:
        strict_reader.read(data, **vector.get("limits", {}))
    except strict_reader.Rejected as rejection:
        report.difference(vector, f"the strict reader rejects it as {rejection.reason}")


def check_rejected(vector: dict, report: Report) -> bool:
    """Also tells whether the library alone refused the vector."""
    data, limits = corpus.decoded(vector["input"]), vector.get("limits", {})
    try:
        canonical = rfc8785.dumps(strict_reader.read(data, **limits))
        found = "size_exceeded" if len(canonical) > limits.get("max_bytes", strict_reader.DEFAULT_MAX_BYTES) else "no reason"
    except strict_reader.Rejected as rejection:
        found = rejection.reason
    # With several faults the strict reader may name another of them.
    if found != vector["reason"] and (found == "no reason" or vector["class"] != corpus.SEVERAL_FAULTS):
        report.difference(vector, f"the strict reader found {found}, the corpus says {vector['reason']}")
    try:
        library_form(data)
        refused = False
    except (ValueError, RecursionError):  # every refusal of json and of rfc8785 is a ValueError
        refused = True
    if not refused and vector["reason"] not in UNSEEN_BY_LIBRARY and vector["class"] != corpus.SEVERAL_FAULTS:
        report.difference(vector, f"rfc8785 accepts what the corpus rejects as {vector['reason']}")
    return refused


# --- the binary ---------------------------------------------------------------------------------------------------------


def run(binary: str, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run([binary, "canon", *arguments], input=data, capture_output=True, timeout=60, check=False)


def check_binary(binary: str, vector: dict) -> str | None:
    """What is wrong with the binary's answer, or None."""
    data = corpus.decoded(vector["input"])
    answer = run(binary, data=data)
    if "reason" in vector:
        named = vector["reason"] in answer.stderr.decode("utf-8", "replace").replace(":", " ").split()
        if answer.returncode == 1 and answer.stdout == b"" and named:
            return None
        return f"the binary exits {answer.returncode} and says {shown(answer.stderr)} for {vector['reason']}"
    expected = corpus.decoded(vector["canonical"])
    if answer.returncode != 0 or answer.stdout != expected:
        return f"the binary has {shown(answer.stdout)} (exit {answer.returncode}), the corpus {shown(expected)}"
    hashed = run(binary, "--hash", data=data)
    if hashed.returncode != 0 or hashed.stdout.strip() != vector["sha256"].encode():
        return f"the binary's hash is {shown(hashed.stdout)}, the corpus has {vector['sha256']}"
    return None


def check_file_argument(binary: str, vector: dict) -> str | None:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(corpus.decoded(vector["input"]))
        file.flush()
        answer = run(binary, file.name)
    return None if answer.stdout == corpus.decoded(vector["canonical"]) else f"the binary reads a file as {shown(answer.stdout)}"


def check_all_with_binary(binary: str, vectors: list[dict], report: Report) -> None:
    # The command line has the default limits only.
    runnable = [vector for vector in vectors if "limits" not in vector][::SAMPLED] + large.vectors()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        complaints = list(pool.map(lambda vector: check_binary(binary, vector), runnable))
    complaints.append(check_file_argument(binary, runnable[0]))
    for vector, complaint in zip([*runnable, runnable[0]], complaints, strict=True):
        if complaint:
            report.difference(vector, complaint)
    print(f"binary: {len(runnable)} vectors run through {binary}")


def main() -> int:
    report = Report()
    accepted, rejected = corpus.load(corpus.ACCEPTED), corpus.load(corpus.REJECTED)
    if len(accepted) < 300 or len(rejected) < 100:
        print(f"the corpus is incomplete: {len(accepted)} accepted and {len(rejected)} rejected vectors", file=sys.stderr)
        return 1
    for vector in accepted:
        check_accepted(vector, report)
    total, refused = Counter(), Counter()
    for vector in rejected:
        total[vector["reason"]] += 1
        refused[vector["reason"]] += check_rejected(vector, report)
    print(f"rfc8785: {len(accepted)} accepted vectors compared, {len(rejected)} rejected ones read")
    for reason in sorted(total):
        blind = "  (the library cannot see this class; strict_reader.py does)" if reason in UNSEEN_BY_LIBRARY else ""
        print(f"  {reason}: refused by json + rfc8785 {refused[reason]} of {total[reason]}{blind}")

    binary = os.environ.get("AEGIS_BIN")
    if binary:
        check_all_with_binary(binary, accepted + rejected, report)
    else:
        print("binary: not run; AEGIS_BIN names none")
    print(f"python: {report.differences} differences")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
