"""`aegis-status`: whether the server can do its work, and where things stand in the tenant."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import _program


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    parser = _program.parser("Shows whether the server is ready, and what is open in the tenant. Role: admin, analyst or auditor.")
    options = parser.parse_args(arguments)
    return _program.run(lambda: _status(options))


def _status(options: argparse.Namespace) -> int:
    with _program.client(options) as client:
        ready, summary = client.ready(), client.summary()
        contained = [
            {"type": state.target_type, "id": state.target_id, "verdict": state.verdict} for state in client.containment(limit=500)
        ]
    found = {"ready": ready.get("ready") is True, "checks": ready.get("checks"), "summary": summary, "contained": contained}
    _program.show(found, _text(found), options)
    return _program.DONE if found["ready"] else _program.SAID_NO


def _text(found: dict[str, Any]) -> str:
    checks, summary = found["checks"] or {}, found["summary"]
    failing = [name for name, holds in checks.items() if holds is not True]
    incidents = summary.get("incidents") or {}
    lines = [
        "ready" if found["ready"] else f"not ready: {', '.join(failing)}",
        f"incidents open {incidents.get('open', 0)}, contained {incidents.get('contained', 0)}",
        f"alerts in the last day {summary.get('alerts_24h', 0)}",
        f"approvals pending {summary.get('approvals_pending', 0)}",
        *(f"{state['verdict']}: {state['type']} {state['id']}" for state in found["contained"]),
    ]
    return "\n".join(map(_program.one_line, lines))


if __name__ == "__main__":
    sys.exit(main())
