"""What this SDK says about the files of the corpus, for the comparison of languages in `tests/corpus`.

corpus.py FILE...               of `corpus/canonical`: a line {"id", "canonical_sha256"} or {"id", "reason"} for each vector
corpus.py --receipts FILE...    of `corpus/receipts/cases.jsonl`: a line {"id", "exit", "report"} for each case
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegisagent import canon
from aegisagent.errors import CanonError, ConfigError
from aegisagent.receipts import BadInput, Roots, verify_export

_BAD_INPUT = 2


def canonical(vector: dict[str, Any]) -> dict[str, Any]:
    """The hash of the canonical form of a vector's input, or the reason that it has none."""
    try:
        form = canon.canonicalize(base64.b64decode(vector["input"]), **vector.get("limits", {}))
    except CanonError as error:
        return {"reason": error.reason}
    return {"canonical_sha256": canon.sha256_hex(form)}


def verdict(case: dict[str, Any]) -> dict[str, Any]:
    """What the program of this SDK says about a case: its exit code, and its report without the message, which is for people."""
    try:
        report = verify_export(io.BytesIO(base64.b64decode(case["input"])), Roots.read(case["roots"]))
    except (BadInput, ConfigError):
        return {"exit": _BAD_INPUT, "report": None}
    shown = report.as_json()
    if shown["failure"] is not None:
        del shown["failure"]["message"]
    return {"exit": int(shown["verdict"] == "invalid"), "report": shown}


def _answer(files: list[str], ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            for line in lines:
                vector = json.loads(line)
                print(json.dumps({"id": vector["id"], **ask(vector)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--receipts"]:
        _answer(sys.argv[2:], verdict)
    else:
        _answer(sys.argv[1:], canonical)
