"""Vectors at the default size limit, which are too large to store."""

import hashlib

import corpus
import rfc8785
import strict_reader


def vectors() -> list[dict]:
    """In the form of the stored ones."""
    limit, zeros = strict_reader.DEFAULT_MAX_BYTES, "0" * 700_000
    accepted = {
        "a string that fills the limit": '"' + "a" * (limit - 2) + '"',
        "700,000 leading zeros and the exponent that balances them": f"0.{zeros}1e700001",
        "700,000 trailing zeros and the exponent that balances them": f"-25{zeros}E-700001",
        "halfway above 2^53, decided 700,000 digits later": f"9007199254740993.{zeros}1",
    }
    rejected = {
        "a string one byte over the limit": ('"' + "a" * (limit - 1) + '"', "size_exceeded"),
        "a canonical form over the limit": ("[" + ",".join(["1e20"] * 60_000) + "]", "size_exceeded"),
        "a million brackets": ("[" * 1_000_000, "depth_exceeded"),
        "a million digits": ("1" * 1_000_000, "integer_out_of_range"),
    }
    made = []
    for number, (description, content) in enumerate(accepted.items(), start=1):
        canonical = rfc8785.dumps(strict_reader.read(content.encode()))
        sha256 = hashlib.sha256(canonical).hexdigest()
        made.append({"id": f"large-accepted-{number}", "description": description, "canonical": corpus.encoded(canonical), "sha256": sha256})
        made[-1]["input"] = corpus.encoded(content.encode())
    for number, (description, (content, reason)) in enumerate(rejected.items(), start=1):
        made.append({"id": f"large-rejected-{number}", "description": description, "reason": reason, "input": corpus.encoded(content.encode())})
    return made
